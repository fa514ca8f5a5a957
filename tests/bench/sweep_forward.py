"""Products out of forward passes over the causal-LM types of transformers, as tiny models of random weights in float64.

    python tests/bench/sweep_forward.py [TYPE ...] [--json FILE] [--method central]

Models are those of `sweep_capture.py`. A type is exact where no row's product is off by more than a hundredth of the
largest product. Routers choose experts by a threshold, which a step may cross: a type that is not exact is tried again
with steps of a tenth, a hundredth and a thousandth, and the one that it was exact with is named. A type is warned of where
the self-check warns of products that are not exact. Types that do not run in float64 are run in float32.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from sweep_capture import LENGTH, VOCABULARY, build
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gradalign import DirectionError
from gradalign.forward import Band, Direction

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tiny_causal_lms import Batch, exact_products, gradients_of, logprobs_of

TARGETS = {torch.float64: (1e-3, 1e-4, 1e-5, 1e-6), torch.float32: (1e-2, 1e-3)}
"""Changes of a token's log-prob, in nats, as rounding lets them be."""
ENOUGH = 1e-2


def made(kind: str, dtype: torch.dtype) -> nn.Module | None:
    """A tiny model of a type, or None."""
    model = build(kind)
    if model is None:
        return None
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the default has no float64
    return model.to(dtype)


def error_of(model: nn.Module, target: float, method: str, batches: list[Batch], want: Tensor) -> dict[str, Any]:
    """The largest error of a row's product over the largest product, the self-check's quotient, and what it warned of."""
    validation, batch = batches
    model.zero_grad()
    validation.loss(model).backward()
    direction = Direction(model, method=method, target=target, band=Band(refuse=(0, float("inf"))))
    direction.take()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check = direction.check(logprobs_of(model), validation, validation.weights, validation.mask)
    found = direction.products(logprobs_of(model), batch, batch.weights, batch.mask)
    error = float((found - want).abs().max() / want.abs().max())
    warned = next((str(w.message) for w in said if "add up to" in str(w.message)), "")
    outcome = "exact" if error < ENOUGH else "warned" if warned else "wrong"
    return {"outcome": outcome, "target": target, "error": error, "quotient": check.quotient, "why": warned[:140]}


def measured(kind: str, method: str) -> dict[str, Any]:
    """What became of a type; in float32 where it does not run in float64, or gives NaN there."""
    begun, row = time.perf_counter(), {"type": kind, "outcome": "not built"}
    for dtype, targets in TARGETS.items():
        model = made(kind, dtype)
        if model is None:
            return row
        try:
            row |= {"dtype": str(dtype).removeprefix("torch."), **compared(model, targets, method)}
        except Exception as error:
            row |= {"outcome": "no backward", "why": f"{type(error).__name__}: {str(error)[:140]}"}
            continue
        break
    return row | {"seconds": round(time.perf_counter() - begun, 1)}


def compared(model: nn.Module, targets: tuple[float, ...], method: str) -> dict[str, Any]:
    """Products beside exact ones, with smaller steps until they are exact."""
    batches = [batch_of(1), batch_of(2)]
    model.zero_grad()
    batches[0].loss(model).backward()
    want = exact_products(model, batches[1], gradients_of(model))
    if not bool(torch.isfinite(want).all()):
        raise ValueError("the backward gives NaN")
    row: dict[str, Any] = {}
    for target in targets:
        try:
            row |= error_of(model, target, method, batches, want)
        except DirectionError as error:
            row |= {"outcome": "refused", "target": target, "why": str(error)[:140]}
        if row["outcome"] == "exact":
            break
        row.setdefault("first", {key: row[key] for key in ("outcome", "error", "why") if key in row})
    return row


def batch_of(seed: int) -> Batch:
    """Rows of which every token counts."""
    batch, random = Batch(rows=6, length=LENGTH, vocabulary=VOCABULARY), torch.Generator().manual_seed(seed)
    batch["input_ids"] = torch.randint(3, VOCABULARY, (6, LENGTH), generator=random)
    batch["attention_mask"].fill_(1)
    batch.labels, batch.mask = batch["input_ids"][:, 1:], torch.ones(6, LENGTH - 1, dtype=torch.bool)
    batch.weights = torch.randn(6, generator=random) / batch.mask.sum()
    return batch


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of the report, as Markdown; then all that is not exact at the first step."""
    yield f"torch {torch.__version__}, transformers {transformers.__version__}: {len(rows)} types"
    yield ""
    yield "| outcome | types | which |"
    yield "|---|---|---|"
    outcomes = [
        f"exact at {row['target']:g}, {row['dtype']}" if row["outcome"] == "exact" else row["outcome"] for row in rows
    ]
    for outcome in sorted(set(outcomes)):
        which = [row["type"] for row, its in zip(rows, outcomes, strict=True) if its == outcome]
        yield f"| {outcome} | {len(which)} | {', '.join(which)} |"
    yield from (str(row) for row in rows if row["outcome"] != "exact" or "first" in row)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--method", default="central")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for kind in args.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        rows.append(measured(kind, args.method))
        print(*(f"{key}={value}" if key != "type" else f"{value:<28}" for key, value in rows[-1].items()), flush=True)
        if args.json:
            args.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
