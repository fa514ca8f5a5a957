"""What the recipe for SkyRL touches of it: its trainer, prompts and checkpoints where it is installed, else stand-ins.

The generator and the workers are stood in for in both, as is Ray. The stand-ins for the rest have the signatures of skyrl
0.3.0: `RayPPOTrainer(cfg, tracker, tokenizer, train_dataset, inference_engine_client, generator, ...)` with
`_build_train_dataloader_and_compute_training_steps`, `generate(input_batch)`, `train_critic_and_policy(data)`,
`load_checkpoints()` and `all_metrics`; `PromptDataset` with `dataframe` and `uid = str(row)`; `BasePPOExp.get_trainer`.
"""

import asyncio
import json
import pickle
import shutil
from collections import defaultdict
from types import SimpleNamespace

import recipekit

GROUP, BATCH = 8, 8
REAL = recipekit.source_here("skyrl")
if REAL:
    recipekit.installed("skyrl.train.entrypoints.main_base")


class Generator:
    """Answers as the known policy does; in two steps a trajectory, with a reward for each token, where told."""

    def __init__(self, steps=1):
        self.steps = steps

    async def generate(self, input_batch):
        attempts, made = defaultdict(int), defaultdict(list)
        for name, prompt in zip(input_batch["trajectory_ids"], input_batch["prompts"], strict=True):
            attempts[name.instance_id] += 1
            for step in range(self.steps):
                end = step == self.steps - 1
                reward = recipekit.reward(prompt[0]["content"], attempts[name.instance_id]) * end
                made["trajectory_ids"].append(name)
                made["is_last_step"].append(end)
                made["rewards"].append(reward if self.steps == 1 else [0.0, reward])
        tokens = [[1, 2] for _ in made["rewards"]]
        own = {"prompt_token_ids": tokens, "response_ids": tokens, "loss_masks": tokens, "rollout_metrics": None}
        several = made if self.steps > 1 else {"rewards": made["rewards"]}
        return {**own, "stop_reasons": None, "rollout_logprobs": None, **several}


class Tokenizer:
    pad_token_id = eos_token_id = 0
    padding_side = "left"

    def apply_chat_template(self, messages, **_):
        return [1, 2]

    def decode(self, tokens, **_):
        return "x"


class Dispatch:
    """As the dispatch of workers, without any."""

    async def save_weights_for_sampler(self): ...

    def get_lcm_dp_size(self):
        return 1

    def __getattr__(self, name):
        return lambda *_, **__: None


class Prompts:
    """As `PromptDataset`."""

    def __init__(self, rows):
        self.dataframe = rows

    def __len__(self):
        return len(self.dataframe)

    def __getitem__(self, row):
        return self.dataframe[row]["prompt"], None, {}, str(row)

    def collate_fn(self, items):
        return [dict(zip(("prompt", "env_class", "env_extras", "uid"), item, strict=True)) for item in items]


class Trainer:
    """As `RayPPOTrainer`, of whom the order of calls in `train` is left."""

    def __init__(self, cfg, tracker, tokenizer, train_dataset, inference_engine_client, generator, colocate_pg=None):
        self.cfg, self.tracker, self.train_dataset, self.generator = cfg, tracker, train_dataset, generator
        self.global_step, self.all_metrics = 0, {}
        self._build_train_dataloader_and_compute_training_steps()

    def _build_train_dataloader_and_compute_training_steps(self): ...

    async def generate(self, input_batch):
        return await self.generator.generate(input_batch)

    def load_checkpoints(self):
        step = max(map(_step_of, self.cfg.folder.glob("global_step_*")), default=0)
        if step:
            self.train_dataloader.load_state_dict(
                pickle.loads((self.cfg.folder / f"global_step_{step}/data").read_bytes())
            )
        return step, None

    def train_critic_and_policy(self, data):
        return self._execute_training_step("policy", data)

    async def train(self):
        self.global_step = self.load_checkpoints()[0]
        for _ in range(self.global_step // len(self.train_dataloader), self.cfg.trainer.epochs):
            for prompts in self.train_dataloader:
                await self._step(prompts)
                if self.global_step == self.cfg.trainer.max_training_steps:
                    return

    async def _step(self, prompts):
        self.global_step += 1
        rows = [each for each in prompts for _ in range(GROUP)]
        names = [SimpleNamespace(instance_id=each["uid"]) for each in rows]
        made = await self.generate({"trajectory_ids": names, "prompts": [each["prompt"] for each in rows]})
        kept = self._kept(made.get("trajectory_ids", names), made["rewards"])
        data = SimpleNamespace(metadata={"uids": kept})
        self.fwd_logprobs_values_reward(data)
        self.train_critic_and_policy(data)
        self.tracker.log(self.all_metrics, step=self.global_step)
        folder = self.cfg.folder / f"global_step_{self.global_step}"
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(pickle.dumps(self.train_dataloader.state_dict()))

    def _kept(self, names, rewards):
        """The prompts of groups that dynamic sampling leaves; it draws no others here."""
        found = defaultdict(set)
        for name, reward in zip(names, rewards, strict=True):
            found[name.instance_id].add(str(reward))
        filtering = self.cfg.trainer.algorithm.dynamic_sampling.type
        return [name.instance_id for name in names if len(found[name.instance_id]) > 1 or not filtering]


class Exp:
    """As `BasePPOExp`."""

    def __init__(self, cfg):
        self.cfg = cfg

    def run(self):
        self.cfg.ran = self.get_trainer(**self.cfg.given)


def _step_of(folder):
    return int(folder.name.removeprefix("global_step_"))


def rewind(folder, step):
    """Leave the checkpoints of a training up to a step."""
    for each in (folder / "checkpoints").glob("global_step_*"):
        if _step_of(each) > step:
            shutil.rmtree(each)
    (folder / "checkpoints/latest_ckpt_global_step.txt").write_text(str(step))


def install(monkeypatch):
    """Stand-ins where imports find them, if SkyRL is not here."""
    if REAL:
        return
    recipekit.stand_in_loader(monkeypatch)
    config = type("SkyRLTrainConfig", (), {"from_cli_overrides": staticmethod(lambda arguments: arguments)})
    modules = {
        "ray": {"remote": lambda **_: lambda function: SimpleNamespace(remote=function), "get": lambda made: made},
        "skyrl.train.config": {"SkyRLTrainConfig": config},
        "skyrl.train.entrypoints.main_base": {"BasePPOExp": Exp},
        "skyrl.train.trainer": {"RayPPOTrainer": Trainer},
        "skyrl.train.utils": {"validate_cfg": lambda cfg: None},
        "skyrl.train.utils.utils": {"initialize_ray": lambda cfg: None},
    }
    recipekit.stand_in(monkeypatch, **modules)


class Log:
    """As the tracker."""

    def __init__(self):
        self.logged = []

    def log(self, data, step, commit=True):
        self.logged.append(dict(data))

    def finish(self): ...


def given(folder, problems, steps, epochs, filtering, generator):
    """What the trainer is made of."""
    rows = [{"prompt": [{"role": "user", "content": question}], "answer": "yes"} for question in problems]
    cfg = (
        _config(folder, steps, epochs, filtering, generator.steps) if REAL else _stand_in_config(folder, steps, epochs)
    )
    if REAL:
        from skyrl.train.dataset import PromptDataset

        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset = PromptDataset([str(folder / "train.jsonl")], Tokenizer(), 64, num_workers=1)
    else:
        cfg.trainer.algorithm.dynamic_sampling.type = filtering
        dataset = Prompts(rows)
    return {
        "cfg": cfg, "tracker": Log(), "tokenizer": Tokenizer(), "train_dataset": dataset, "inference_engine_client": None,
        "generator": generator,
    }  # fmt: skip


def _stand_in_config(folder, steps, epochs):
    algorithm = SimpleNamespace(dynamic_sampling=SimpleNamespace(type=None))
    own = SimpleNamespace(train_batch_size=BATCH, epochs=epochs, max_training_steps=steps, algorithm=algorithm)
    return SimpleNamespace(trainer=own, folder=folder / "checkpoints")


def _config(folder, steps, epochs, filtering, turns):
    from skyrl.train.config import SkyRLTrainConfig

    return SkyRLTrainConfig.from_cli_overrides(
        [
            f"trainer.train_batch_size={BATCH}",
            f"trainer.policy_mini_batch_size={BATCH}",
            f"trainer.epochs={epochs}",
            f"trainer.max_training_steps={steps}",
            "trainer.eval_interval=-1",
            "trainer.ckpt_interval=1",
            f"trainer.ckpt_path={folder / 'checkpoints'}",
            "trainer.resume_mode=latest",
            "trainer.placement.colocate_all=false",
            "trainer.print_example_interval=0",
            "trainer.enable_ray_gpu_monitor=false",
            "generator.inference_engine.enable_ray_prometheus_stats=false",
            f"trainer.algorithm.dynamic_sampling.type={filtering or 'null'}",
            f"generator.n_samples_per_prompt={GROUP}",
            f"generator.step_wise_trajectories={turns > 1}",
        ]
    )


def make(module, monkeypatch, folder, problems, steps=12, epochs=9, filtering=None, turns=1):
    """The recipe's trainer; with SkyRL here its own down to the calls of the generator and the workers."""
    trainer = module.CurriculumExp.get_trainer(
        None, **given(folder, problems, steps, epochs, filtering, Generator(turns))
    )
    trainer.trained = []

    def forward(data):
        trainer.trained.append([problems[int(uid.partition(".")[0])] for uid in dict.fromkeys(data.metadata["uids"])])
        if REAL:
            for name in ("base_action_log_probs", "action_log_probs", "values"):
                data[name] = None
        return data

    monkeypatch.setattr(trainer, "fwd_logprobs_values_reward", forward, raising=False)
    monkeypatch.setattr(trainer, "_execute_training_step", lambda model, data: {}, raising=False)
    if REAL:
        from skyrl.train import trainer as own

        monkeypatch.setattr(own, "run_on_each_node", lambda *_: None)
        monkeypatch.setattr(trainer, "init_weight_sync_state", lambda: None)
        trainer.dispatch = Dispatch()
    return trainer


def train(trainer):
    """The prompts of each update of a training."""
    asyncio.run(trainer.train())
    return trainer.trained


def epochs(cfg):
    """Of a configuration that the entry point made of its arguments."""
    return cfg.trainer.epochs if REAL else int(cfg[0].removeprefix("trainer.epochs="))
