"""What the recipe for OpenRLHF touches of it: its trainer where it is installed, else a stand-in.

vLLM, DeepSpeed and OpenRLHF's models need a GPU build, and are stood in for in both, as are Ray's references. The stand-in
for the trainer has the signatures of openrlhf 0.11.2 (and main at 3c3be62): `PPOTrainer(pretrain, strategy, ...)`,
made remote, with `prompts_dataloader`, `samples_generator`, `fit`, `train_step(rollout_samples, global_step)`,
`save_logs_and_checkpoints(global_step, logs_dict, client_states)` and `init_checkpoint_states()`; `SamplesGenerator` with
`generate_samples` and `_process_response_into_experience(response)`; torchdata's `StatefulDataLoader`.
"""

import importlib.abc
import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import recipekit
import torch
from torch.utils.data import Dataset

GROUP = 8
OF_A_GPU = ("vllm", "deepspeed", "openrlhf.models")


class Named(ModuleType):
    """A module that has whatever is imported from it."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, **_: None})


class OfAGpu(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if any(name == own or name.startswith(f"{own}.") for own in OF_A_GPU):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Named(spec.name)

    def exec_module(self, module): ...


REAL = recipekit.source_here("openrlhf")
if REAL:
    sys.meta_path.insert(0, OfAGpu())
    recipekit.installed("openrlhf.trainer.ppo_trainer")


class Prompts(Dataset):
    """As `PromptDataset`."""

    def __init__(self, rows):
        self.prompts, self.labels = [row["input"] for row in rows], [row["label"] for row in rows]

    def __len__(self):
        return len(self.prompts)

    def __getitem__(self, index):
        return "default", self.prompts[index], self.labels[index], None

    def collate_fn(self, items):
        return tuple(map(list, zip(*items, strict=True)))


class Generator:
    """As `SamplesGenerator`; the engines are asked in turn, and dynamic filtering drops groups without a replacement."""

    def __init__(self, strategy, prompts_dataloader, eval_dataloader, tokenizer, vllm_engines):
        self.args, self.prompts_dataloader, self.tokenizer = strategy.args, prompts_dataloader, tokenizer
        self.vllm_engines, self.rows = vllm_engines, None

    def generate_samples(self, **generate_kwargs):
        self.rows = self.rows or iter(self.prompts_dataloader)
        found, asked = [], 0
        for _, prompts, labels, _ in self.rows:
            asked += 1
            group = [self._process_response_into_experience(each) for each in respond(prompts[0], labels[0])]
            mean = sum(float(each.scores[0]) for each in group) / len(group)
            found += group if 0 < mean < 1 or not self.args.algo.dynamic_filtering_enable else []
            if asked == self.args.rollout.batch_size:
                return found, None, asked, False
        self.rows = None
        return found, None, asked, True

    def _process_response_into_experience(self, response, **generate_kwargs):
        scores = torch.tensor([response["scores"]])
        return SimpleNamespace(prompts=[response["prompt"]], scores=scores, rewards=torch.tensor([response["reward"]]))


class Trainer:
    """As `PPOTrainer`, of whom only the order of calls in `fit` is left."""

    def __init__(self, pretrain, strategy, actor_model_group, *others, **generate_kwargs):
        self.strategy, self.args, self.group = strategy, strategy.args, actor_model_group
        rows = [json.loads(line) for line in Path(self.args.data.prompt_dataset).read_text().splitlines()]
        self.prompts_dataloader, self.eval_dataloader = recipekit.Loader(Prompts(rows)), None
        self.samples_generator = Generator(strategy, self.prompts_dataloader, None, None, [])

    def init_checkpoint_states(self):
        return self.group.kept or {"episode": 0, "global_step": 0, "data_loader_state_dict": {}}

    def fit(self, global_step=0):
        states = self.init_checkpoint_states()
        global_step = states["global_step"] or global_step
        if states["data_loader_state_dict"]:
            self.prompts_dataloader.load_state_dict(states["data_loader_state_dict"])
        for episode in range(states["episode"], self.args.train.num_episodes):
            exhausted = False
            while not exhausted:
                samples, _, _, exhausted = self.samples_generator.generate_samples()
                if samples:
                    status, global_step = self.train_step(samples, global_step)
                    kept = {"data_loader_state_dict": self.prompts_dataloader.state_dict()}
                    self.save_logs_and_checkpoints(
                        global_step, status, {"episode": episode, "global_step": global_step, **kept}
                    )

    def train_step(self, rollout_samples, global_step):
        self.group.trained.append([sample.prompts[0] for sample in rollout_samples])
        return {}, global_step + 1

    def save_logs_and_checkpoints(self, global_step, logs_dict=None, client_states=None):
        self.group.logs.append(logs_dict)
        if global_step % self.args.ckpt.save_steps == 0:
            self.group.kept = client_states


def respond(prompt, label):
    """What an engine answers: the rollouts of a group."""
    return [
        {
            "prompt": prompt, "label": label, "scores": recipekit.reward(prompt, place), "reward": -1.0,
            "observation_tokens": [1, 2, 3], "action_ranges": [(1, 3)], "rollout_log_probs": None,
        }
        for place in range(GROUP)
    ]  # fmt: skip


def install(monkeypatch):
    """Stand-ins where imports find them, if OpenRLHF is not here."""
    if not REAL:
        Trainer.__ray_actor_class__ = Trainer
        modules = {
            "openrlhf.trainer.ppo_trainer": {"PPOTrainer": Trainer, "SamplesGenerator": Generator},
            "ray": {"remote": lambda kind: kind},
        }
        recipekit.stand_in(monkeypatch, **modules)
        recipekit.stand_in_loader(monkeypatch)


def strategy(folder, questions, **settings):
    """OpenRLHF's strategy with the arguments of a run, as far as the trainer reads them."""
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps({"input": question, "label": "yes"}) + "\n" for question in questions))
    own = {
        "data": {"prompt_dataset": str(data), "prompt_probs": None, "prompt_split": "train", "max_samples": 1000,
                 "input_template": None, "dataloader_num_workers": 0, "disable_fast_tokenizer": False, "max_len": 64,
                 "input_key": "input", "label_key": "label", "apply_chat_template": False},
        "eval": {"dataset": None, "steps": -1}, "ckpt": {"save_steps": 2, "path": str(folder / "ckpt"), "load_enable": True},
        "train": {"num_episodes": 4, "batch_size": 64, "max_epochs": 1, "seed": 1, "dynamic_batch_enable": False},
        "rollout": {"batch_size": 8, "n_samples_per_prompt": GROUP, "vllm_generate_batch_size": None},
        "algo": {"kl": {"target": None, "init_coef": 0.0}, "dynamic_filtering_enable": False,
                 "dynamic_filtering_range": (0.0, 1.0), "advantage": {"is_correction_level": "off"}},
        "logger": {"wandb": {"key": None}, "tensorboard_dir": None, "logging_steps": 1}, "critic": {"freezing_steps": -1},
        "ds": {"enable_sleep": False}, "vllm": {"enable_sleep": False}, "use_ms": False,
    }  # fmt: skip
    for path, value in settings.items():
        room, name = path.split("__")
        own[room][name] = value
    made = SimpleNamespace(args=_namespace(own), print=print, is_rank_0=lambda: True)
    if REAL:
        from openrlhf.utils.deepspeed import DeepspeedStrategy

        made.setup_dataloader = lambda *given, **named: DeepspeedStrategy.setup_dataloader(made, *given, **named)
    return made


def _namespace(value):
    return SimpleNamespace(**{k: _namespace(v) for k, v in value.items()}) if isinstance(value, dict) else value


class Actors:
    """Stands in for the group of model actors: keeps what it would train on, and a checkpoint's client states."""

    def __init__(self):
        self.trained, self.logs, self.kept = [], [], None

    def async_run_method_batch(self, method_name, experience):
        self.trained.append([each.prompts[0] for each in experience])
        return []

    def async_run_method(self, method_name, **given):
        if method_name == "save_checkpoint":
            self.kept = given["client_states"]
        return {"fit": [recipekit.Later({})], "get_checkpoint_states": [recipekit.Later(self.kept)]}.get(
            method_name, []
        )


class Here:
    """As `ray`, on this process."""

    @staticmethod
    def get(references):
        return [each.value for each in references] if isinstance(references, list) else references.value

    @staticmethod
    def wait(references, num_returns, timeout):
        return references[:num_returns], references[num_returns:]


class Engine:
    """As the handle of a vLLM engine."""

    get_num_unfinished_requests = SimpleNamespace(remote=lambda: recipekit.Later(0))
    generate_responses = SimpleNamespace(remote=lambda prompt, label, **_: recipekit.Later(respond(prompt, label)))


def make(module, monkeypatch, folder, actors, questions, **settings):
    """The recipe's trainer; with OpenRLHF here its own code down to the calls of Ray, of vLLM and of the models."""
    plan = strategy(folder, questions, **settings)
    if not REAL:
        return module.CurriculumTrainer("none", plan, actors, None, None, None, [])
    from openrlhf.trainer import ppo_trainer
    from openrlhf.trainer.ppo_utils import samples_generator

    if actors.kept:
        (folder / "ckpt/_actor").mkdir(parents=True, exist_ok=True)
    plainly = SimpleNamespace(make_experience_batch=lambda samples: samples)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder))
    monkeypatch.setattr(ppo_trainer, "get_tokenizer", lambda *_, **__: SimpleNamespace(decode=lambda *_, **__: ["x"]))
    monkeypatch.setattr(ppo_trainer, "RemoteExperienceMaker", lambda *_, **__: plainly)
    for own in (ppo_trainer, samples_generator):
        monkeypatch.setattr(own, "ray", Here)
    return module.CurriculumTrainer("none", plan, actors, None, None, None, [Engine()])
