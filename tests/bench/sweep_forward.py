"""Products out of forward passes over the causal-LM types of transformers, as tiny models of random weights in float64.

    python tests/bench/sweep_forward.py [TYPE ...] [--json FILE] [--method central]

For each type that a tiny model can be made of and a backward runs through: the largest error of a row's product, over
the largest product. Routers choose experts by a threshold, which a step may cross.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gradalign.forward import Band, Direction

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tiny_causal_lms import Batch, exact_products, gradients_of, logprobs_of, shrunken


def made(kind: str) -> Any:
    """A tiny model of a type."""
    torch.manual_seed(0)
    config = shrunken(AutoConfig.for_model(kind))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).double().eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the default has no float64
    return model


def measured(kind: str, method: str) -> dict[str, Any]:
    """What became of a type."""
    begun = time.perf_counter()
    stage = "no model"
    try:
        model = made(kind)
        if sum(p.numel() for p in model.parameters()) > 20_000_000:
            return {"type": kind, "outcome": "not tiny"}
        stage = "no backward"
        vocabulary = min(64, model.get_input_embeddings().weight.shape[0])
        validation, batch = (Batch(rows=4, length=16, vocabulary=vocabulary, seed=s) for s in (1, 2))
        validation.loss(model).backward()
        against = gradients_of(model)
        want = exact_products(model, batch, against)
        stage = "refused"
        direction = Direction(model, method=method, target=1e-3, band=Band(refuse=(0, float("inf"))))
        direction.take()
        check = direction.check(logprobs_of(model), validation, validation.weights, validation.mask)
        found = direction.products(logprobs_of(model), batch, batch.weights, batch.mask)
    except Exception as error:
        return {"type": kind, "outcome": stage, "why": f"{type(error).__name__}: {str(error)[:140]}"}
    error = float((found - want).abs().max() / want.abs().max())
    outcome = "equal" if error < 1e-2 else "differs"
    seconds = round(time.perf_counter() - begun, 1)
    return {"type": kind, "outcome": outcome, "error": error, "quotient": check.quotient, "seconds": seconds}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--method", default="central")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for kind in args.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        rows.append(measured(kind, args.method))
        print(*(f"{key}={value}" if key != "type" else f"{value:<28}" for key, value in rows[-1].items()), flush=True)
        if args.json:
            args.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcomes = [row["outcome"] for row in rows]
    print({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))})


if __name__ == "__main__":
    main()
