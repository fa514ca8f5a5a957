"""A world in a folder, with a tiny random Llama and a tokenizer made on the spot: what a user's folder looks like."""

import json
import zlib

from tiny_causal_lms import tiny

from gradalign_trainer.worlds.tinymodel import character_tokenizer

SCALE = {
    "updates": 2, "updates_per_round": 1, "evaluations": 2, "pool": 24, "candidates": 8, "batch": 4, "large_batch": 6,
    "trusted": 4, "trusted_turn": 2, "group_size": 4, "validation_rollouts": 4, "proposed_from": 8, "again": 6,
}  # fmt: skip
SETTINGS = {
    "stop": "\n", "max_new_tokens": 3, "share_prompts": True, "dim": 256, "learning_rate": 1e-3, "evaluation": "sampled",
    "evaluation_rollouts": 2,
}  # fmt: skip
TABLE = {
    "name": "toy", "model": "model", "target": "train.jsonl", "heldout": "test.jsonl", "off_target": ["other.jsonl"],
    "verifier": "toyworld:marked",
}  # fmt: skip


def marked(problem, completion):
    """Differs wherever completions do, so that every group of any model has a signal."""
    return zlib.crc32(f"{problem.prompt} {completion}".encode()) / 2**32


def toml_of(table):
    """The lines of a table whose values are JSON that TOML reads too."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def toy_world(folder, *, scale=None, **changes):
    """Write the folder; `changes` to the top of `world.toml`, None to leave a key out."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = character_tokenizer("0123456789+=\n")
    model = tiny("llama", vocab_size=len(tokenizer), pad_token_id=None, bos_token_id=None, eos_token_id=1)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, start, count in (("train", 0, 40), ("test", 100, 5), ("other", 200, 30)):
        lines = [
            json.dumps({"prompt": f"{number}+1=", "answer": str(number + 1)}) for number in range(start, start + count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    top = {key: value for key, value in {**TABLE, **changes}.items() if value is not None}
    (folder / "world.toml").write_text(
        f"{toml_of(top)}[scale]\n{toml_of(SCALE if scale is None else scale)}[settings]\n{toml_of(SETTINGS)}"
    )
    return folder
