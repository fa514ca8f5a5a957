"""What the recipe for NeMo-RL touches of it: its GRPO where its source is in PYTHONPATH, else stand-ins.

The policy, its generation and the environment's actor are stood in for in both, as are Ray's references. NeMo-RL is on no
package index but for a placeholder. The stand-ins have the signatures of NeMo-RL at 7ea279a: `grpo_train(policy,
policy_generation, wrapped_dataloader, ..., logger, checkpointer, grpo_save_state, master_config)`, which calls
`scale_rewards(repeated_batch, cfg)` behind each generation and `policy.train(data, loss_fn)` once a step;
`setup(master_config, ...)`; `load_dataloader_state(loader, path, data_config)`; a batch with `idx` and `total_reward`.
"""

import shutil
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import recipekit
import torch

GROUP, BATCH = 8, 8
REAL = recipekit.source_here("nemo_rl")
if REAL:
    recipekit.installed("nemo_rl.algorithms.grpo")

SCRIPT = """\
import nemokit
from nemo_rl.algorithms.grpo import grpo_train, setup

setup(nemokit.RUN["master_config"], "tokenizer", "dataset", None)
grpo_train(nemokit.RUN.pop("policy"), nemokit.RUN.pop("policy_generation"), **nemokit.RUN)
"""
RUN = {}
STAND_IN = ModuleType("nemo_rl.algorithms.grpo")


class Policy:
    """Keeps what it would train on: problems, whose place among all is their first token."""

    def __init__(self, problems):
        self.problems, self.trained = problems, []

    def train(self, data, loss_fn, **_):
        own = dict.fromkeys(int(tokens[0]) - 1 for tokens in data["input_ids"])
        self.trained.append([self.problems[place] for place in own])
        own = {"global_valid_toks": [10], "token_mult_prob_error": [1.0], "gen_kl_error": [0.0]}
        return {"loss": torch.tensor(0.5), "grad_norm": torch.tensor(1.0), "all_mb_metrics": own}

    def get_logprobs(self, data, **_):
        return {"logprobs": torch.zeros(data["input_ids"].shape)}

    def get_reference_policy_logprobs(self, data, **_):
        return {"reference_logprobs": torch.zeros(data["input_ids"].shape)}

    def save_checkpoint(self, weights_path, **_):
        Path(weights_path).mkdir(parents=True)

    def __getattr__(self, name):
        return lambda *_, **__: None


class Generation:
    """Answers one token."""

    def generate(self, data, greedy):
        tokens, ones = data["input_ids"], torch.ones(len(data["input_ids"]), dtype=torch.long)
        output = torch.cat([tokens, 50 * ones[:, None]], 1)
        return {
            "output_ids": output, "generation_lengths": ones, "unpadded_sequence_lengths": data["input_lengths"] + 1,
            "logprobs": torch.zeros(output.shape),
        }  # fmt: skip

    def prepare_for_generation(self, **_): ...

    def finish_generation(self): ...

    def clear_logger_metrics(self): ...

    def get_logger_metrics(self):
        return {}


class Environment:
    """As the handle of an environment's actor: rewards of the known policy."""

    def __init__(self):
        self.attempts, self.step = defaultdict(int), SimpleNamespace(remote=self._step)

    def _step(self, logs, metadata):
        rewards = []
        for log in logs:
            self.attempts[log[0]["content"]] += 1
            rewards.append(recipekit.reward(log[0]["content"], self.attempts[log[0]["content"]]))
        seen = [{"role": "environment", "content": "graded"} for _ in logs]
        done = torch.ones(len(logs))
        return recipekit.Later((seen, metadata, None, torch.tensor(rewards), done, None))


class Log:
    """As the logger."""

    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step, prefix="", **_):
        self.logged.append((prefix, step, metrics))

    def __getattr__(self, name):
        return lambda *_, **__: None


class Rows:
    """As `AllTaskProcessedDataset`."""

    def __init__(self, rows, process):
        self.dataset, self.process = rows, process

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, place):
        return self.process(self.dataset[place], None, None, None, place)


class Checkpoints:
    """As `CheckpointManager`."""

    def __init__(self, config):
        self.folder = Path(config["checkpoint_dir"])

    def get_latest_checkpoint_path(self):
        return max(self.folder.glob("step_*"), key=_step_of, default=None)

    def save(self, step, state):
        (self.folder / f"step_{step}").mkdir(parents=True)
        torch.save(state, self.folder / f"step_{step}/train_dataloader.pt")


def _step_of(folder):
    return int(folder.name.removeprefix("step_"))


def rewind(folder, step):
    """Leave the checkpoints of a training up to a step."""
    for each in (folder / "checkpoints").glob("step_*"):
        if _step_of(each) > step:
            shutil.rmtree(each)


def process(row, spec, tokenizer, length, place):
    """A row as NeMo-RL's processors give it."""
    tokens = torch.tensor([place + 1, 3])
    log = [{"role": "user", "content": row["problem"], "token_ids": tokens}]
    return {
        "message_log": log, "length": 2, "extra_env_info": {}, "loss_multiplier": 1.0, "idx": place, "task_name": "math",
    }  # fmt: skip


def tokenizer():
    """Of words, a tiny one."""
    if not REAL:
        return None
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def load(loader, path, data_config, suffix=""):
    loader.load_state_dict(torch.load(f"{path}/train_dataloader{suffix}.pt"))


def train(
    policy, policy_generation, wrapped_dataloader, val_dataloader, tokenizer, loss_fn, task_to_env, val_task_to_env, logger,
    checkpointer, grpo_save_state, master_config,
):  # fmt: skip
    """As `grpo_train`, of which the order of calls is left; dynamic sampling draws no others here."""
    from nemo_rl.algorithms import grpo

    while grpo_save_state.total_steps < master_config.grpo.max_num_steps:
        for batch in wrapped_dataloader:
            rows = [each for each in batch for _ in range(GROUP)]
            rewards = task_to_env["math"].step.remote([each["message_log"] for each in rows], None).value[3]
            grpo.scale_rewards({"idx": [each["idx"] for each in rows], "total_reward": rewards}, None)
            mixed = rewards.view(-1, GROUP).std(1) > 0
            kept = mixed if master_config.grpo.use_dynamic_sampling else torch.ones_like(mixed)
            own = [each["message_log"][0]["token_ids"] for each, stays in zip(batch, kept, strict=True) if stays]
            policy.train({"input_ids": own}, loss_fn)
            grpo_save_state.total_steps += 1
            checkpointer.save(grpo_save_state.total_steps, wrapped_dataloader.state_dict())
            if grpo_save_state.total_steps == master_config.grpo.max_num_steps:
                return


def install(monkeypatch):
    """Stand-ins where imports find them, if NeMo-RL is not here."""
    if not REAL:
        recipekit.stand_in_loader(monkeypatch)
        monkeypatch.setitem(sys.modules, STAND_IN.__name__, STAND_IN)  # the recipe, loaded once, holds it
        grpo = {"grpo_train": train, "scale_rewards": lambda batch, cfg: batch, "load_dataloader_state": load}
        recipekit.stand_in(monkeypatch, **{"nemo_rl.algorithms.grpo": {"setup": None, **grpo}})


def fill(grpo, monkeypatch, folder, problems, steps, dynamic=False, total_steps=0, **settings):
    """Put the arguments of `grpo_train` where the script takes them; the policy and the log, to look at."""
    monkeypatch.setattr(grpo, "grpo_train", grpo.grpo_train)
    monkeypatch.setattr(grpo, "setup", lambda config, *_: None)  # makes the policy, which needs a GPU
    config = _config(folder, steps, dynamic, settings)
    rows = [{"problem": question, "task_name": "math"} for question in problems]
    parts = _parts(grpo, monkeypatch, config, rows, total_steps)
    policy, log = Policy(problems), Log()
    RUN.clear()
    RUN.update(
        policy=policy, policy_generation=Generation(), val_dataloader=None, tokenizer=tokenizer(), loss_fn=None,
        task_to_env={"math": Environment()}, val_task_to_env=None, logger=log, master_config=config, **parts,
    )  # fmt: skip
    return policy, log


def _parts(grpo, monkeypatch, config, rows, total_steps):
    if not REAL:
        loader = recipekit.Loader(Rows(rows, process), batch_size=BATCH, collate_fn=list)
        state = SimpleNamespace(total_steps=total_steps)
        return {
            "wrapped_dataloader": loader,
            "checkpointer": Checkpoints(config.checkpointing),
            "grpo_save_state": state,
        }
    from nemo_rl.data.datasets import AllTaskProcessedDataset
    from nemo_rl.data.interfaces import TaskDataSpec
    from nemo_rl.experience import rollouts
    from nemo_rl.utils import memory_tracker

    monkeypatch.setattr(memory_tracker, "memory_summary", lambda **_: "", raising=False)
    monkeypatch.setattr(rollouts, "ray", SimpleNamespace(get=lambda made: [each.value for each in made]))
    monkeypatch.setattr(grpo, "refit_policy_generation", lambda *_, **__: {})
    checkpointer = grpo.CheckpointManager(config.checkpointing)
    latest = checkpointer.get_latest_checkpoint_path()
    dataset = AllTaskProcessedDataset(rows, tokenizer(), None, {"math": (TaskDataSpec(task_name="math"), process)})
    loader = grpo.StatefulDataLoader(
        dataset, batch_size=BATCH, shuffle=True, collate_fn=grpo.rl_collate_fn, drop_last=True, num_workers=0
    )
    if latest is not None:  # as `setup` does
        grpo.load_dataloader_state(loader, latest, config.data)
    state = grpo._get_grpo_save_state(checkpointer.load_training_info(latest))
    return {"wrapped_dataloader": loader, "checkpointer": checkpointer, "grpo_save_state": state}


def _config(folder, steps, dynamic, settings):
    own = {
        "max_num_steps": steps, "max_num_epochs": 99, "num_prompts_per_step": BATCH, "num_generations_per_prompt": GROUP,
        "max_rollout_turns": 1, "val_period": 0, "val_at_start": False, "val_at_end": False, "use_dynamic_sampling": dynamic,
        "normalize_rewards": True, "use_leave_one_out_baseline": False, "overlong_filtering": False,
    }  # fmt: skip
    rooms = {
        "data": {"use_multiple_dataloader": False}, "env": {}, "data_plane": None,
        "checkpointing": {
            "enabled": True, "checkpoint_dir": str(folder / "checkpoints"), "save_period": 1, "metric_name": None,
            "higher_is_better": True, "keep_top_k": None, "checkpoint_must_save_by": None, "save_optimizer": False,
        },
    }  # fmt: skip
    asynchronous = settings.pop("async_grpo", False)
    rooms |= settings
    if not REAL:
        grpo = SimpleNamespace(**own, async_grpo=SimpleNamespace(enabled=asynchronous))
        return SimpleNamespace(grpo=grpo, **rooms)
    from nemo_rl.algorithms import grpo

    generation = {
        "backend": "vllm",
        "colocated": {"enabled": True},
        "vllm_cfg": {"async_engine": False},
        "temperature": 1.0,
    }
    policy = {
        "precision": "float32", "train_global_batch_size": BATCH * GROUP, "max_total_sequence_length": 64,
        "make_sequence_length_divisible_by": 1, "generation": {**generation, "top_p": 1.0, "top_k": None},
    }  # fmt: skip
    made = grpo.GRPOConfig(**own, async_grpo=grpo.AsyncGRPOConfig(enabled=asynchronous))
    return grpo.MasterConfig.model_construct(
        grpo=made, policy=policy, loss_fn=grpo.ClippedPGLossConfig(), cluster={"num_nodes": 1, "gpus_per_node": 1},
        logger={"num_val_samples_to_print": 0}, reward_penalties=grpo.RewardPenaltyConfig(),
        on_policy_distillation=None, **rooms,
    )  # fmt: skip
