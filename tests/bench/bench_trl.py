"""What the TRL adapter adds to a training step: forward and capture against TRL alone, in interleaved runs.

    python tests/bench/bench_trl.py [--hidden 512 --layers 8 --tokens 48 --rows 32] [--repeats 3]

Each arm trains the same random Qwen2 for `--steps` steps; the first step of a run, and the validation gradients, are told
apart from the rest. A step is TRL's `step_time`: generation, rewards, loss, backward and update.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from gradalign_trainer.adapters.trl import GradAlignConfig, GradAlignGRPOTrainer
from gradalign_trainer.curriculum.localscorer import local_scorer
from gradalign_trainer.worlds.tinymodel import byte_tokenizer, tiny_model

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from trlkit import graded

ARMS = ("none", "forward", "capture")


def made(arm: str, url: str, run_id: str, output: str, options: Any) -> GRPOTrainer:
    """A trainer of an arm."""
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer, seed=0, hidden=options.hidden, layers=options.layers, heads=8, mlp=4 * options.hidden)
    model.config.pad_token_id = 0
    rows = [{"prompt": f"{i:02} + {i:02} =", "answer": str(2 * i), "part": "pool"} for i in range(64)]
    common: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "reward_funcs": graded,
        "train_dataset": Dataset.from_list(rows),
        "args": GRPOConfig(
            output_dir=output,
            max_steps=options.steps,
            per_device_train_batch_size=options.rows,
            num_generations=8,
            num_iterations=options.iterations,
            max_completion_length=options.tokens,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
    }
    if arm == "none":
        return GRPOTrainer(**common)
    trusted = Dataset.from_list([{**row, "prompt": "?" + row["prompt"], "part": "validation"} for row in rows[:4]])
    return GradAlignGRPOTrainer(
        **common,
        gradalign=GradAlignConfig(
            scorer_url=url, run_id=run_id, validation_dataset=trusted, alignment=arm, refresh_every=options.steps
        ),
    )


def timed(arm: str, url: str, run_id: str, options: Any) -> dict[str, float]:
    """Medians of a run, in seconds: of a step, of measuring a batch; and the one validation gradient."""
    with tempfile.TemporaryDirectory() as output:
        trainer = made(arm, url, run_id, output, options)
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "step_time" in entry]
    found = {"step": statistics.median(entry["step_time"] for entry in log[1:])}
    if arm != "none":
        found["measuring"] = statistics.median(
            entry["gradalign/seconds_measuring"] for entry in log[1:] if "gradalign/seconds_measuring" in entry
        )
        found["validation"] = log[0]["gradalign/seconds_validation"]
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with local_scorer() as url:
        for repeat in range(options.repeats):
            for arm in ARMS:
                runs[arm].append(timed(arm, url, f"{arm}-{repeat}", options))
                print(repeat, arm, runs[arm][-1], file=sys.stderr, flush=True)
    for arm in ARMS:
        for name in runs[arm][0]:
            # Of one repetition against TRL's step of the same one: what else the machine does is in both.
            ratios = [run[name] / plain["step"] for run, plain in zip(runs[arm], runs["none"], strict=True)]
            seconds = [run[name] for run in runs[arm]]
            print(
                f"{arm:8} {name:10} {statistics.median(seconds):8.3f} s   {statistics.median(ratios):6.3f} of TRL's step "
                f"({min(ratios):.3f} to {max(ratios):.3f})"
            )
    ratios = [
        one["measuring"] / other["measuring"] for one, other in zip(runs["forward"], runs["capture"], strict=True)
    ]
    print(
        f"forward's measuring over capture's: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
