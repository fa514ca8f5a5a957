"""Files of scored responses as the reference implementation writes them, and a model that might have given them."""

import json
import random

import torch

from gradalign_trainer.worlds.tinymodel import byte_tokenizer, tiny_model

WORDS = ["so", "then", "add", "carry", "the", "ones", "7", "12", "we get", "therefore", "done"]


def save_model(folder, *, seed=1, hidden=32):
    """A tiny Qwen2 over bytes, untrained but far from zero; its folder."""
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer, seed=seed, hidden=hidden, mlp=2 * hidden, heads=2)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def responses(groups, samples, *, seed, solved=0.4):
    """Records of `groups` problems with `samples` responses each; every fifth group is solved always."""
    rng = random.Random(seed)
    records = []
    for group in range(groups):
        for sample in range(samples):
            text = " ".join(rng.choices(WORDS, k=rng.randint(2, 7)))
            right = group % 5 == 4 or rng.random() < solved
            records.append(
                {
                    "group_id": group,
                    "sample_id": sample,
                    "prompt": f"Q{group}: {3 * group + seed} + {group}? A:",
                    "response": f" {text}",
                    "is_correct": right,
                    "expected_answer": str(4 * group + seed),
                }
            )
    return records


def problems(groups):
    """The problems of the groups in verl's form."""
    return [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"Q{group}"}],
            "reward_model": {"ground_truth": str(group), "style": "rule"},
            "extra_info": {"index": group, "split": "train"},
        }
        for group in range(groups)
    ]


def write_list(path, records):
    """As `responses_sorted.json`."""
    path.write_text(json.dumps(records, indent=1))
    return path


def write_jsonl(path, records):
    """As JSONL."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def save_files(folder, groups, samples):
    """A model, its responses to `groups` problems in `train.json` and to four others in `val.json`; the folder."""
    save_model(folder / "model")
    write_list(folder / "train.json", responses(groups, samples, seed=3))
    write_list(folder / "val.json", responses(4, samples, seed=8))
    return folder


def read_jsonl(path):
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
