"""Files for `gradalign rank` to try: a model, and its scored responses as the reference implementation writes them.

    python services/trainer/examples/rank_files.py runs/rank

Half of the candidates are rewarded for errors, so a good ranking puts them last: `extra_info.good` says which are not.
"""

import argparse
import json
from pathlib import Path

import torch

from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.models import load_policy
from gradalign_trainer.worlds.arithmetic import ArithmeticReward
from gradalign_trainer.worlds.basemodel import base_model
from gradalign_trainer.worlds.regimes import make_world

parser = argparse.ArgumentParser(description="files for `gradalign rank` to try")
parser.add_argument("folder", type=Path)
parser.add_argument("--model", help="folder of a model; without it a tiny one is taught sums on the spot")
parser.add_argument("--candidates", type=int, default=128)
parser.add_argument("--trusted", type=int, default=32)
parser.add_argument("--responses", type=int, default=16, help="to each problem")
args = parser.parse_args()

folder = args.model or base_model(Path.home() / ".cache/gradalign")
model, tokenizer = load_policy(folder, device=torch.device("cpu"))
world = make_world("inverted", seed=0, pool=args.candidates, validation=args.trusted)
reward, generator = ArithmeticReward(), torch.Generator().manual_seed(0)
args.folder.mkdir(parents=True, exist_ok=True)
model.save_pretrained(args.folder / "model")
tokenizer.save_pretrained(args.folder / "model")


def write_responses(name, problems):
    """`responses_sorted.json` of the problems: a list, by group."""
    asked = [problem.prompt for problem in problems]
    texts = iter(generate(model, tokenizer, asked, Sampling(args.responses, 6), generator).texts)
    records = []
    for group, problem in enumerate(problems):
        for sample in range(args.responses):
            text = next(texts)
            earned = bool(reward(problem, text))
            record = {"group_id": group, "sample_id": sample, "prompt": problem.prompt, "response": text}
            records.append({**record, "is_correct": earned, "expected_answer": problem.answer})
    (args.folder / name).write_text(json.dumps(records))


write_responses("responses_sorted.json", world.pool)
write_responses("val_responses_sorted.json", world.validation)
with (args.folder / "train.jsonl").open("w") as file:
    for index, problem in enumerate(world.pool):
        prompt, truth = [{"role": "user", "content": problem.prompt}], {"ground_truth": problem.answer, "style": "rule"}
        info = {"index": index, "split": "train", "good": problem.extra["good"]}
        record = {"data_source": "sums", "prompt": prompt, "reward_model": truth, "extra_info": info}
        file.write(json.dumps(record) + "\n")
print(f"wrote {args.folder}: {len(world.pool)} candidates, {len(world.validation)} trusted problems")
