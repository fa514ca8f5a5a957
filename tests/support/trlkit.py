"""Runs of TRL's real GRPOTrainer with a curriculum, small enough for tests. As a program: one run, for torchrun."""

import json
import sys
import zlib

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from gradalign_trainer.adapters.trl import GradAlignConfig, GradAlignGRPOTrainer
from gradalign_trainer.worlds.regimes import make_world

VALIDATION_REWARD = 1000.0
SMALL = {
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 4,
    "max_steps": 4,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def rows(problems, part="pool", **more):
    return Dataset.from_list(
        [
            {"problem_id": p.problem_id, "prompt": p.prompt, "answer": p.answer, "part": part, **p.extra, **more}
            for p in problems
        ]
    )


def graded(completions, answer, part, **kwargs):
    """Differs wherever completions do, so that groups have a signal; far higher on validation problems, so that it shows."""
    marks = [zlib.crc32(f"{wanted} {said}".encode()) / 2**32 for said, wanted in zip(completions, answer, strict=True)]
    return [
        mark * (VALIDATION_REWARD if where == "validation" else 1.0) for mark, where in zip(marks, part, strict=True)
    ]


def make_trainer(base, output, url, run_id, *, kind=GradAlignGRPOTrainer, gradalign=None, pool=None, **settings):
    """A trainer; `reward_funcs`, `peft_config` and `callbacks` go to it, other settings to GRPOConfig."""
    world = make_world("inverted", seed=3, pool=96, validation=8, heldout=24)
    own = {name: settings.pop(name) for name in ("reward_funcs", "peft_config", "callbacks") if name in settings}
    config = {
        "validation_dataset": rows(world.validation, "validation"),
        "dim": 512,
        "refresh_every": 2,
        "timeout": 120.0,
        "retries": 0,
        **(gradalign or {}),
    }
    return kind(
        model=AutoModelForCausalLM.from_pretrained(base),
        processing_class=AutoTokenizer.from_pretrained(base, padding_side="left"),
        train_dataset=rows(world.pool) if pool is None else pool,
        args=GRPOConfig(output_dir=str(output), **{**SMALL, **settings}),
        gradalign=GradAlignConfig(scorer_url=url, run_id=run_id, **config),
        **{"reward_funcs": graded, **own},
    )


def main():
    """`trlkit.py BASE OUTPUT URL RUN_ID USE`: trains, and writes what each process ended with."""
    base, output, url, run_id, use = sys.argv[1:]
    torch.set_num_threads(1)
    trainer = make_trainer(base, output, url, run_id, gradalign={"use": use}, per_device_train_batch_size=6)
    trainer.train()
    total = sum(float(parameter.detach().double().abs().sum()) for parameter in trainer.model.parameters())
    rank = trainer.accelerator.process_index
    with open(f"{output}/rank-{rank}.json", "w") as file:
        json.dump({"weights": total, "log": trainer.state.log_history}, file)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
