"""What the recipe for AReaL touches of it: its trainer, engine and checkpoints where it is installed, else stand-ins.

The actor's engine and the inference server are stood in for in both, as is the scheduler: all is in one process. The
stand-ins for the rest have the signatures of areal 1.0.4: `PPOTrainer(config, train_dataset, valid_dataset)` with
`_create_dataloader(dataset, dataset_config, rank, world_size)`, `_requires_proxy_workflow(workflow)` and
`train(workflow, eval_workflow, workflow_kwargs, ...)`, which calls `actor.prepare_batch(dataloader, workflow=,
workflow_kwargs=, should_accept_fn=, group_size=, dynamic_bs=)`; `RolloutWorkflow.arun_episode(engine, data)`;
`RTensor.localize`.
"""

import asyncio
import importlib
import itertools
import os
import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import recipekit
import torch

GROUP, BATCH, STATS = 8, 8, {}
REAL = recipekit.source_here("areal")
if REAL:
    recipekit.installed("areal.trainer.rl_trainer")
    from areal.api import RolloutWorkflow
else:

    class RolloutWorkflow:
        """As AReaL's."""


class Solver(RolloutWorkflow):
    """Solves every second attempt at some problems; its tokens are the place of the problem among all."""

    def __init__(self, problems):
        self.problems, self.attempts = problems, Counter()

    async def arun_episode(self, engine, data):
        assert set(data) == {"messages", "answer"}  # a reward function gets what it got without us
        question = data["messages"][0]["content"]
        self.attempts[question] += 1
        tokens = torch.tensor([[self.problems.index(question)]])
        return {
            "input_ids": tokens, "attention_mask": torch.ones_like(tokens), "loss_mask": torch.ones_like(tokens),
            "rewards": torch.tensor([recipekit.reward(question, self.attempts[question])]),
        }  # fmt: skip


class Interacting(Solver):
    """As a workflow of an agent: no tensors of its own."""

    async def arun_episode(self, engine, data):
        return {"input_ids": torch.ones(1, 1), "attention_mask": torch.ones(1, 1)}


class Actor:
    """As the actor's engine; keeps what it would train on."""

    data_parallel_rank, data_parallel_world_size, cpu_group = 0, 1, None

    def __init__(self, problems):
        self.problems, self.trained, self.engine = problems, [], None

    def connect_engine(self, engine, meta):
        self.engine = engine

    def prepare_batch(self, dataloader, **settings):
        return self.engine.prepare_batch(dataloader, **settings)

    def compute_advantages(self, groups):
        assert all(set(group) == {"input_ids", "attention_mask", "loss_mask", "rewards"} for group in groups)
        self.trained.append([self.problems[int(group["input_ids"][0, 0])] for group in groups])
        return groups

    def save(self, meta):
        Path(meta.path).mkdir(parents=True, exist_ok=True)

    def get_device_stats(self):
        return SimpleNamespace(log=lambda _: None)

    def export_stats(self):
        from areal.utils import stats_tracker

        self.stats = stats_tracker.export_all()
        return self.stats

    def __getattr__(self, name):
        return lambda *_, **__: None


class Trainer:
    """As `PPOTrainer`, of whom the order of calls in `train` is left."""

    def __init__(self, config, train_dataset=None, valid_dataset=None):
        self.config, self.actor, self.rollout = config, Actor(config.problems), Engine()
        self.actor.engine, self.start = self.rollout, 0
        self.train_dataloader = self._create_dataloader(train_dataset, config.train_dataset, 0, 1)
        if config.recover.mode == "on" and config.recover.file.exists():
            self.start, state = pickle.loads(config.recover.file.read_bytes())
            self.train_dataloader.load_state_dict(state)
            self.rollout.version = self.start

    def _requires_proxy_workflow(self, workflow):
        return workflow == "builtins.dict"

    def train(self, workflow=None, eval_workflow=None, workflow_kwargs=None, dynamic_filter_fn=None):
        for step in range(self.start, self.config.total_train_steps):
            groups = self.actor.prepare_batch(
                self.train_dataloader, workflow=workflow, workflow_kwargs=workflow_kwargs, group_size=GROUP
            )
            self.actor.compute_advantages(groups)
            self.rollout.version = step + 1
            self.actor.export_stats()
            if self.config.recover.mode == "on":
                self.config.recover.file.write_bytes(pickle.dumps((step + 1, self.train_dataloader.state_dict())))

    def close(self): ...


class Engine:
    """As a rollout engine without overlap."""

    version, rows = 0, None

    def get_version(self):
        return self.version

    def prepare_batch(self, dataloader, workflow, workflow_kwargs, group_size):
        made = workflow(**workflow_kwargs)
        self.rows = self.rows or itertools.chain.from_iterable(dataloader for _ in itertools.count())
        return [asyncio.run(self._group(made, data, group_size)) for data in next(self.rows)]

    async def _group(self, workflow, data, count):
        found = [await workflow.arun_episode(self, data) for _ in range(count)]
        return {
            name: torch.cat([each[name] for each in found]) if isinstance(value, torch.Tensor) else value
            for name, value in found[0].items()
        }


class Remote:
    """As `RDataset`, a dataset in AReaL's data service."""


def imported(path):
    """As AReaL's `import_from_string`."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def install(monkeypatch):
    """Stand-ins where imports find them, if AReaL is not here."""
    if REAL:
        return
    recipekit.stand_in_loader(monkeypatch)
    rtensor = {
        "RTensor": SimpleNamespace(localize=lambda columns: columns),
        "clear_fetch_buffer": len,
        "flatten_shard_ids": lambda columns: [],
    }
    modules = {
        "areal.api": {"RolloutWorkflow": RolloutWorkflow},
        "areal.trainer.rl_trainer": {"PPOTrainer": Trainer},
        "areal.infra.rpc.rtensor": rtensor,
        "areal.infra.data_service.rdataset": {"RDataset": Remote},
        "areal.utils": {"stats_tracker": SimpleNamespace(scalar=STATS.update, export_all=STATS.copy)},
        "areal.utils.dynamic_import": {"import_from_string": imported},
        "areal.utils.environ": {"is_single_controller": lambda: "AREAL_SPMD_MODE" not in os.environ},
    }
    recipekit.stand_in(monkeypatch, **modules)


def remote(folder):
    """A training set in AReaL's data service."""
    if not REAL:
        return Remote()
    from areal.infra.data_service.rdataset import RDataset

    return RDataset(path=str(folder))


def rows(problems):
    """A training set."""
    return [{"messages": [{"role": "user", "content": question}], "answer": "yes"} for question in problems]


def make(module, monkeypatch, folder, problems, steps=12, recover=False):
    """The recipe's trainer for some updates; with AReaL here its own down to the engines of the actor and the server."""
    mode = "on" if recover else "disabled"
    if not REAL:
        recover = SimpleNamespace(mode=mode, file=folder / "recover")
        own = SimpleNamespace(batch_size=BATCH)
        config = SimpleNamespace(train_dataset=own, recover=recover, total_train_steps=steps, problems=problems)
        return module.CurriculumTrainer(config, rows(problems))
    from areal.trainer import rl_trainer

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(rl_trainer, "load_hf_processor_and_tokenizer", lambda _: (None, None))
    monkeypatch.setattr(rl_trainer.PPOTrainer, "_init_scheduler", lambda _: None)
    monkeypatch.setattr(rl_trainer.PPOTrainer, "_create_train_engine", lambda *_: Actor(problems))
    monkeypatch.setattr(rl_trainer.PPOTrainer, "_init_rollout", lambda _, config, **__: _engine(config))
    return module.CurriculumTrainer(_config(folder, mode, steps), rows(problems))


def _engine(config):
    from areal.infra.remote_inf_engine import RemoteInfEngine

    engine = RemoteInfEngine(config, backend=None)
    engine._wait_for_server = lambda address: None
    engine.export_stats = dict  # that of the servers
    engine.initialize(addr="127.0.0.1:9", train_data_parallel_size=1)
    engine.staleness_manager = engine.workflow_executor.staleness_manager  # as a controller's
    return engine


def _config(folder, mode, steps):
    from areal.api import cli_args

    names = {"experiment_name": "recipe", "trial_name": "one", "fileroot": str(folder)}
    return cli_args.PPOConfig(
        experiment_name="recipe",
        trial_name="one",
        total_train_epochs=steps,
        total_train_steps=steps,
        gconfig=cli_args.GenerationHyperparameters(n_samples=GROUP),
        train_dataset=cli_args.TrainDatasetConfig(path="none", type="rl", batch_size=BATCH),
        rollout=cli_args.InferenceEngineConfig(
            backend="sglang:d1", consumer_batch_size=BATCH, max_concurrent_rollouts=2 * BATCH
        ),
        actor=cli_args.PPOActorConfig(backend="fsdp:d1", experiment_name="recipe", trial_name="one", kl_ctl=0.0),
        saver=cli_args.SaverConfig(**names),
        evaluator=cli_args.EvaluatorConfig(**names),
        stats_logger=cli_args.StatsLoggerConfig(**names),
        recover=cli_args.RecoverConfig(mode=mode, freq_steps=1, **names),
        cluster=cli_args.ClusterSpecConfig(fileroot=str(folder)),
    )
