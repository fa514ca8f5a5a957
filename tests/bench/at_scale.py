"""What alignment costs a run, on paper: the tables of docs/at-scale.md for a shape of model and a cluster.

    python tests/bench/at_scale.py [--shape layers=28 hidden=3584 ...] [--gpus 8] [--problems 64] [--lora-rank 16] ...

Nothing is run. The formulas are those of tests/support/costs.py, which tests hold to small models. The default is
Qwen2.5-7B, as its config.json has it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from costs import (
    WIDE,
    Job,
    Shape,
    dual_flops,
    forward_flops,
    gathered,
    hashes,
    head_alone_flops,
    part,
    reduced_gradients,
    reduced_one_by_one,
    reduced_sketches,
    shapes_of,
    sketching,
    update_flops,
    wire_bytes,
)

MEASURED: Final = {"one-sided": 1.13, "central": 2.13 / 2, "forward-ad": 3.61 / 3, "capture": 1.09, "from_grads": 1.29}
"""Time over that of the passes that a way is made of, at 26M parameters on a CPU: what steps and sketches add to them."""


@dataclass(frozen=True)
class Cost:
    """What a way adds to an update, a share of a refresh included.

    Attributes:
        name: of the way.
        forwards: in forwards over the update's rollouts.
        share: of the update's own forward and backward, times `MEASURED`.
        gathered, reduced, wire: bytes of a rank; `wire` of all.
        held, passing: bytes of a rank between batches and beside; `passing` while it is measured.
    """

    name: str
    forwards: float
    share: float
    gathered: float
    reduced: float
    wire: float
    held: float
    passing: float


def _cost(
    name: str, job: Job, ratio: float, own: tuple[float, float], refresh: tuple[float, float], **bytes_: float
) -> Cost:
    """Of (operations of measuring, of a plain backward) an update and a refresh."""
    measuring, plain = own[0] + refresh[0] / job.refresh, own[1] + refresh[1] / job.refresh
    return Cost(
        name, (measuring + plain) / forward_flops(job), (ratio * measuring + plain) / update_flops(job), **bytes_
    )


def differences(job: Job, passes: int) -> Cost:
    """Products by one or two forward passes; a refresh takes a backward, and three passes of a check."""
    again = job.validating()
    return _cost(
        "one-sided" if passes == 1 else "central", job, MEASURED["one-sided" if passes == 1 else "central"],
        (passes * forward_flops(job), 0), (3 * forward_flops(again), update_flops(again)),
        gathered=passes * gathered(job, backward=False)
        + (3 * gathered(again, backward=False) + gathered(again, backward=True)) / job.refresh,
        reduced=reduced_gradients(again) / job.refresh,
        wire=_both(job, "products"), held=part(job), passing=part(job),
    )  # fmt: skip


def forward_mode(job: Job) -> Cost:
    """Products by derivatives of whole weights: nothing is gathered; the validation gradient is reduced on all ranks."""
    again, whole = job.validating(), WIDE * job.trained
    return _cost(
        "forward-ad", job, MEASURED["forward-ad"], (dual_flops(job), 0), (dual_flops(again), update_flops(again)),
        gathered=0.0, reduced=2 * job.others * whole / job.refresh, wire=_both(job, "products"),
        held=whole, passing=whole,
    )  # fmt: skip


def capture(job: Job, *, own: bool) -> Cost:
    """Sketches out of a backward of their own, or out of the update's."""
    again, ratio = job.validating(), MEASURED["capture"]
    matrices = list(shapes_of(job))
    added = 0.0 if own else 1.0
    found = _cost(
        "capture, update's own backward" if own else "capture, backward of its own", job, ratio,
        (added * update_flops(job), 0), (update_flops(again), 0),
        gathered=added * gathered(job, backward=True) + gathered(again, backward=True) / job.refresh,
        reduced=reduced_sketches(job) + reduced_sketches(again) / job.refresh,
        wire=_both(job, "float32"), held=hashes(matrices), passing=sketching(job, matrices),
    )  # fmt: skip
    return replace(found, share=found.share + ratio - 1) if own else found


def one_by_one(job: Job) -> Cost:
    """A backward a problem, on all ranks at once."""
    again, single = job.validating(), replace(job, problems=1)
    matrices = list(shapes_of(job))
    each = gathered(single, backward=True)
    return _cost(
        "a backward a problem", job, MEASURED["from_grads"], (update_flops(job), 0), (update_flops(again), 0),
        gathered=each * (job.problems + job.validation / job.refresh),
        reduced=reduced_one_by_one(job) + reduced_one_by_one(again) / job.refresh,
        wire=_both(job, "float32"), held=hashes(matrices), passing=part(job),
    )  # fmt: skip


def head_alone(job: Job) -> Cost:
    """Sketches of the head's gradient: a forward, and no backward below the head."""
    again, matrices = job.validating(), [(job.shape.vocabulary, job.shape.hidden)]
    return _cost(
        "head alone", job, 1.0, (head_alone_flops(job), 0), (head_alone_flops(again), 0),
        gathered=gathered(job, backward=False) + gathered(again, backward=False) / job.refresh,
        reduced=reduced_sketches(job) + reduced_sketches(again) / job.refresh,
        wire=_both(job, "float32"), held=hashes(matrices), passing=sketching(job, matrices),
    )  # fmt: skip


def _both(job: Job, dtype: Literal["products", "float32"]) -> float:
    return wire_bytes(job, dtype) + wire_bytes(job.validating(), dtype) / job.refresh


def ways(job: Job) -> list[Cost]:
    """Of the sharded run all but forward mode; with LoRA that too, of a run whose weights are whole."""
    found = [differences(job, 1), differences(job, 2), capture(job, own=False), capture(job, own=True), one_by_one(job)]
    return [*found, forward_mode(job)] if job.lora_rank else [*found, head_alone(job)]


# Tables.


def size(count: float) -> str:
    """Bytes in the largest unit of 1000 that leaves a figure above one, to three digits."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{_three(count / scale)} {unit}"
    return f"{count:.0f} B"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compute_table(job: Job) -> str:
    """Passes, and shares of the update's compute."""
    with_, rows = replace(job, recompute=True), []
    for plain, again in zip(ways(job), ways(with_), strict=True):
        rows.append([plain.name, f"{plain.forwards:.2f}", f"{plain.share:.0%}", f"{again.share:.0%}"])
    own = [update_flops(each) / forward_flops(each) for each in (job, with_)]
    rows.append(["*the update itself*", f"{own[0]:.2f}; {own[1]:.2f} with recomputation", "100%", "100%"])
    return table(["way", "forwards added", "of the update's compute", "the same with recomputation"], rows)


def bytes_table(job: Job) -> str:
    """Bytes of a rank."""
    rows = [
        [way.name, size(way.gathered), size(way.reduced), size(way.wire), size(way.held), size(way.passing)]
        for way in ways(job)
    ]
    own = (gathered(job, backward=True), reduced_gradients(job))
    rows.append(["*the update itself*", size(own[0]), size(own[1]), "", "", ""])
    head = ["way", "gathered", "reduced", "to the scorer", "memory held", "memory while measuring"]
    return table(head, rows)


def gathers_table(job: Job) -> str:
    """What `reshard_after_forward` makes of the gathers of a pass over the update's rollouts."""
    rows = []
    for name, told in (("all", "true of all modules"), ("layers", "torch's default"), ("none", "false")):
        each = replace(job, reshard=name)
        rows.append([told, *(size(gathered(each, backward=backward)) for backward in (False, True))])
    return table(["`reshard_after_forward`", "a forward", "a forward and backward"], rows)


def wire_table(job: Job) -> str:
    """Bytes of a /score by kind of row."""
    kinds: tuple[Literal["products", "int8", "float16", "float32"], ...] = ("products", "int8", "float16", "float32")
    rows = [[kind, size(wire_bytes(job, kind))] for kind in kinds]
    return table(["rows of a `/score`", f"{job.problems} problems"], rows)


def tables(job: Job) -> dict[str, str]:
    """All tables of the page, by what they are of."""
    full = replace(job, lora_rank=0)
    return {
        "All weights trained: compute": compute_table(full),
        "All weights trained: bytes, of a rank and an update": bytes_table(full),
        f"LoRA of rank {job.lora_rank}: compute": compute_table(job),
        f"LoRA of rank {job.lora_rank}: bytes, of a rank and an update": bytes_table(job),
        "Gathers": gathers_table(full),
        "Requests": wire_table(full),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", type=_pair, default=[], metavar="NAME=NUMBER", help=f"of {_PARTS}")
    parser.add_argument("--reshard", choices=("all", "layers", "none"), default="all")
    for field in fields(Job):
        if type(field.default) is int:
            default = field.default or _LORA_RANK
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=_count, default=default)
    given = vars(parser.parse_args())
    job = Job(Shape(**dict(given.pop("shape"))), **given)
    print(f"{job.shape.parameters:,} parameters, {job.lora:,} of LoRA")
    for title, text in tables(job).items():
        print(f"\n{title}\n\n{text}")


_LORA_RANK: Final = 16
_PARTS: Final = ", ".join(field.name for field in fields(Shape))


def _count(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; expected a whole number of at least {least}")
    return int(text)


def _pair(text: str) -> tuple[str, int]:
    name, between, value = text.partition("=")
    if not between:
        raise argparse.ArgumentTypeError(f"{text!r} is no pair; expected NAME=NUMBER, such as layers=28")
    if name not in _PARTS.split(", "):
        raise argparse.ArgumentTypeError(f"{name!r} is no part of a shape; expected one of {_PARTS}")
    return name, _count(value, 0 if name in ("bias", "tied") else 1)


if __name__ == "__main__":
    main()
