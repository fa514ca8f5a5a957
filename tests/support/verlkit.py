"""What the verl adapter touches of verl: its own sampler class where it is installed, else stand-ins.

The interface is that of verl 0.7.1: `AbstractCurriculumSampler(data_source, data_config)` with `update(batch)`; `DataProto`
with `batch`, `non_tensor_batch`, `meta_info` and `select_idxs`; `DataParallelPPOActor` with `actor_module`,
`actor_optimizer`, `config`, `_forward_micro_batch` and `update_policy`.
"""

import sys
from abc import abstractmethod
from types import ModuleType, SimpleNamespace

import torch
from torch.utils.data import Sampler

from gradalign_trainer.worlds.tinymodel import byte_tokenizer, tiny_model

try:
    import verl  # noqa: F401
    from verl.experimental.dataset.sampler import AbstractCurriculumSampler  # noqa: F401

    REAL = True
except ImportError:
    REAL = False


def install_stand_in(monkeypatch):
    """Put `verl.experimental.dataset.sampler` where imports find it."""

    class AbstractCurriculumSampler(Sampler):
        @abstractmethod
        def __init__(self, data_source, data_config): ...

        @abstractmethod
        def update(self, batch): ...

    names = ("verl", "verl.experimental", "verl.experimental.dataset", "verl.experimental.dataset.sampler")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].AbstractCurriculumSampler = AbstractCurriculumSampler


class Batch:
    """As `DataProto`."""

    def __init__(self, batch, non_tensor_batch, meta_info):
        self.batch, self.non_tensor_batch, self.meta_info = batch, non_tensor_batch, meta_info

    def select_idxs(self, places):
        tensors = {name: value[places] for name, value in self.batch.items()}
        others = {name: [value[place] for place in places] for name, value in self.non_tensor_batch.items()}
        return Batch(tensors, others, self.meta_info)


class Actor:
    """As `DataParallelPPOActor`, with the plain forward of padded rows."""

    def __init__(self, module):
        self.actor_module = module
        self.actor_optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
        self.config = SimpleNamespace(ppo_micro_batch_size_per_gpu=2)
        self.updated_with = []

    def _forward_micro_batch(self, micro_batch, temperature, calculate_entropy=False):
        width = micro_batch["responses"].shape[1]
        named = ("input_ids", "attention_mask", "position_ids")
        logits = self.actor_module(**{name: micro_batch[name] for name in named}, use_cache=False).logits
        logp = torch.log_softmax(logits[:, -width - 1 : -1].float() / temperature, -1)
        return {"log_probs": logp.gather(-1, micro_batch["responses"][..., None])[..., 0]}

    def update_policy(self, data):
        self.updated_with.append(data.batch["advantages"].clone())
        return {"actor/pg_loss": 0.0}


def columns(problems, rollouts, *, seed=0, vocabulary=258):
    """Tensors and other columns of a batch with `rollouts` random rows for each of (problem id, trusted)."""
    generator = torch.Generator().manual_seed(seed)
    rows, prompt, width = len(problems) * rollouts, 4, 5
    ids = torch.randint(2, vocabulary, (rows, prompt + width), generator=generator)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    response = (torch.arange(width) < lengths[:, None]).long()
    attention = torch.cat([torch.ones(rows, prompt, dtype=torch.long), response], 1)
    rewards = torch.randint(0, 2, (len(problems), rollouts), generator=generator).float()
    rewards[:, 0], rewards[:, 1] = 0.0, 1.0  # a signal for each
    credit = (rewards - rewards.mean(1, keepdim=True)).flatten()
    tensors = {
        "responses": ids[:, prompt:],
        "response_mask": response,
        "input_ids": ids,
        "attention_mask": attention,
        "position_ids": attention.cumsum(1) - 1,
        "old_log_probs": torch.zeros(rows, width),
        "advantages": credit[:, None] * response,
        "token_level_scores": torch.nn.functional.one_hot(lengths - 1, width) * rewards.flatten()[:, None],
    }
    infos = [
        {"problem_id": name, "gradalign": "trusted" if trusted else ""}
        for name, trusted in problems
        for _ in range(rollouts)
    ]
    return tensors, {"extra_info": infos}, {"temperature": 1.0, "pad_token_id": 0}


class Rows:
    """As verl's RLHFDataset."""

    def __init__(self, rows):
        self.dataframe = rows

    def __len__(self):
        return len(self.dataframe)


def row(number, source="sums", *, truth=None, **info):
    prompt = [{"role": "user", "content": f"{number}+1="}]
    truth = {"ground_truth": truth or str(number + 1), "style": "rule"}
    return {"data_source": source, "prompt": prompt, "reward_model": truth, "extra_info": info}


def pool(count, trusted=0):
    marked = [row(1000 + number, problem_id=f"t{number}", gradalign="trusted") for number in range(trusted)]
    return [row(number, problem_id=f"p{number}") for number in range(count)] + marked


def model():
    return tiny_model(byte_tokenizer(), seed=4, hidden=16, mlp=32, heads=2)
