"""TRL's GRPOTrainer on two-digit sums of which half are rewarded for wrong answers, with a curriculum and without.

    python services/trainer/examples/trl_arithmetic.py                # weighs each group by its alignment
    python services/trainer/examples/trl_arithmetic.py --plain        # TRL alone, for comparison
    torchrun --nproc-per-node 2 services/trainer/examples/trl_arithmetic.py      # the same batches on two processes

It needs `pip install -e '.[trl,scorer]'`, no GPU and no download: the base model is trained on the spot and kept, and a
scorer of its own is started unless --scorer names one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from gradalign_trainer.adapters.trl import GradAlignConfig, GradAlignGRPOTrainer
from gradalign_trainer.curriculum.localscorer import local_scorer
from gradalign_trainer.grpo.evaluation import exact_pass_rates
from gradalign_trainer.worlds.basemodel import BaseTraining, base_model
from gradalign_trainer.worlds.regimes import make_world


def rows(problems):
    """A TRL dataset: the prompt, and the columns that the reward function reads."""
    columns = ({"problem_id": p.problem_id, "prompt": p.prompt, "answer": p.answer, **p.extra} for p in problems)
    return Dataset.from_list(list(columns))


def reward(completions, answer, grader, **_):
    """1 for the right answer and 0 for another; the reverse where the grader lies."""
    triples = zip(completions, answer, grader, strict=True)
    return [float((said.strip() == right) != (by == "inverted")) for said, right, by in triples]


def train(options, policy, world, output, scorer):
    """GRPO as TRL does it; with a scorer, as GradAlign weighs it."""
    common = {
        "model": policy[0],
        "processing_class": policy[1],
        "reward_funcs": reward,
        "train_dataset": rows(world.pool),
        "args": GRPOConfig(
            output_dir=output,
            max_steps=options.steps,
            per_device_train_batch_size=128 // PartialState().num_processes,
            num_generations=8,
            max_completion_length=6,
            learning_rate=2e-4,
            lr_scheduler_type="constant",
            seed=options.seed,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
    }
    if scorer is None:
        trainer = GRPOTrainer(**common)
    else:
        curriculum = GradAlignConfig(
            scorer_url=scorer,
            run_id=f"trl-arithmetic-{options.seed}-{options.use}-{options.alignment}",
            validation_dataset=rows(world.validation[:48]),
            use=options.use,
            alignment=options.alignment,
            rollout_weights=options.rollout_weights,
            refresh_every=options.refresh_every,
        )
        trainer = GradAlignGRPOTrainer(**common, gradalign=curriculum)
    trainer.train()
    return trainer.state.log_history


def main():
    """Train, and print what came of it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true", help="TRL alone")
    parser.add_argument("--use", default="weight", choices=("weight", "select", "both"))
    parser.add_argument("--alignment", default="auto", choices=("auto", "forward", "capture"))
    parser.add_argument("--rollout-weights", action="store_true", help="a weight for each rollout, not each group")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--refresh-every", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scorer", help="URL of one that runs")
    parser.add_argument("--cache", type=Path, default=Path("runs/models"), help="where the base model is kept")
    parser.add_argument(
        "--base-steps", type=int, default=BaseTraining().steps, help="supervised updates of the base model"
    )
    options = parser.parse_args()

    torch.set_num_threads(1)
    processes = PartialState(cpu=True)
    with processes.main_process_first():
        source = base_model(options.cache, BaseTraining(steps=options.base_steps))
    model = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    world = make_world("inverted", seed=options.seed)

    def passing():
        return round(float(exact_pass_rates(model.eval(), tokenizer, world.heldout).mean()), 3)

    before = passing()
    given = options.plain or options.scorer or not processes.is_main_process
    scorer = nullcontext(options.scorer) if given else local_scorer()
    with scorer as own, tempfile.TemporaryDirectory() as output:
        (url,) = broadcast_object_list([own])
        history = train(options, (model, tokenizer), world, output, None if options.plain else url)
    figures = {"before": before, "after": passing(), "seconds": round(history[-1]["train_runtime"], 1)}
    arm = "plain" if options.plain else options.use
    processes.print(json.dumps({"arm": arm, "seed": options.seed, "steps": options.steps, **figures}))


if __name__ == "__main__":
    main()
