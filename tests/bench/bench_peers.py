"""Side by side with TRAK, dattri and bergson: seconds a problem, and Spearman with the exact cosine, at one k in one run.

    tests/bench/make_peers.sh /tmp/peers
    PYTHONPATH=proto:services/trainer /tmp/peers/bin/python tests/bench/bench_peers.py [--dim 4096] [--problems 128]

All sketch the same GRPO gradients of the demo's trained base model. A problem's gradient is the sum of those of its eight
rollouts; a peer that works row by row has its rows added. Seconds are those of the whole way from rollouts to rows, the
best of some interleaved rounds, on as many threads as torch is given. TRAK and dattri's projectors take gradients, which
one backward a problem gives them (all of them at once, in one matrix); so does our from_grads().
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from grpo_gradients import Scored, Stage, cosines, spearman
from torch import Tensor, nn

from gradalign.sketch import Sketcher

Contestant = Callable[[Scored], Tensor]


def flat_gradients(model: nn.Module, scored: Scored) -> Tensor:
    """Each problem's gradient, one backward each; [P, D]."""
    rows = []
    for problem in range(len(scored.advantage)):
        model.zero_grad()
        scored.part(problem, problem + 1).losses(model).sum().backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return torch.stack(rows)


def by_problem(rows: Tensor, scored: Scored) -> Tensor:
    """Rows of rollouts [P * G, k], added by problem; [P, k]."""
    return rows.view(len(scored.advantage), -1, rows.shape[-1]).sum(1)


def ours(model: nn.Module, dim: int) -> dict[str, Contestant]:
    """The two ways of this package."""
    sketcher = Sketcher(model, dim=dim)

    def capture(scored: Scored) -> Tensor:
        with sketcher.capture(scored.index, keep_grad=False) as captured:
            scored.losses(model).sum().backward()
        return captured.sketches

    def one_by_one(scored: Scored) -> Tensor:
        rows = []
        for problem in range(len(scored.advantage)):
            model.zero_grad()
            scored.part(problem, problem + 1).losses(model).sum().backward()
            rows.append(sketcher.from_grads())
        return torch.stack(rows)

    return {"gradalign capture": capture, "gradalign from_grads": one_by_one}


def trak(model: nn.Module, dim: int) -> dict[str, Contestant]:
    """TRAK's projector for the CPU."""
    from trak.projectors import BasicProjector, ProjectionType

    count = sum(p.numel() for p in model.parameters())

    def project(scored: Scored) -> Tensor:
        # Made anew: it draws its matrix block by block from the state of its generator, and again for the next call.
        projector = BasicProjector(count, dim, 0, ProjectionType.rademacher, torch.device("cpu"), block_size=512)
        return projector.project(flat_gradients(model, scored), model_id=0)

    return {"TRAK BasicProjector": project}


def dattri(model: nn.Module, dim: int) -> dict[str, Contestant]:
    """dattri's projectors that run on a CPU (its SJLT and GraSS need CUDA), and its LoGra hooks."""
    from dattri.func.projection import random_project

    count = sum(p.numel() for p in model.parameters())

    def projector(kind: str) -> Contestant:
        def project(scored: Scored) -> Tensor:
            rows = flat_gradients(model, scored)
            return random_project(rows, len(rows), dim, 32, proj_type=kind)(rows)

        return project

    assert count > dim
    contestants = {f"dattri {kind}": projector(kind) for kind in ("normal", "random_mask")}
    return contestants | {"dattri LoGra": logra(model, dim)}


def logra(model: nn.Module, dim: int) -> Contestant:
    """dattri's LoGra: each linear layer to a square, all layers together to about `dim`."""
    from dattri.algorithm.block_projected_if.core.compressor import setup_model_compressors
    from dattri.algorithm.block_projected_if.core.hook import HookManager

    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    side = math.isqrt(dim // len(layers))
    common = {"device": "cpu", "proj_max_batch_size": 64}
    compressors: Any = None

    def project(scored: Scored) -> Tensor:
        nonlocal compressors
        if compressors is None:
            compressors = setup_model_compressors(
                model,
                layers,
                sparsifier_kwargs={**common, "proj_dim": side, "proj_type": "normal"},
                projector_kwargs={**common, "proj_dim": -1, "proj_type": "identity"},
                sample_inputs={"input_ids": scored.rollouts.prompt_ids},
                device="cpu",
            )
        manager = HookManager(model, layers)
        manager.set_compressors(compressors)
        try:
            scored.losses(model).sum().backward()
            return by_problem(torch.cat([g.flatten(1) for g in manager.get_compressed_grads()], 1), scored)
        finally:
            manager.remove_hooks()

    return project


def bergson(model: nn.Module, dim: int) -> dict[str, Contestant]:
    """bergson's in-memory collector: its global projection, and its two-sided one of each module."""
    from bergson import GradientProcessor, InMemoryCollector
    from bergson.config.config import IndexConfig
    from datasets import Dataset

    layers = sum(isinstance(module, nn.Linear) for module in model.modules())
    sides = {"global": dim, "per_module": math.isqrt(dim // layers)}
    processors = {
        target: GradientProcessor(projection_dim=side, projection_target=target, include_bias=True)
        for target, side in sides.items()
    }

    def collect(target: str) -> Contestant:
        def project(scored: Scored) -> Tensor:
            rows = len(scored.index)
            collector = InMemoryCollector(
                model=model,
                data=Dataset.from_dict({"length": [1] * rows}),
                cfg=IndexConfig(run_path="unused"),
                processor=processors[target],
            )
            with collector.with_batch(None):
                losses = scored.losses(model)
                losses.sum().backward()
            collector.process_batch(list(range(rows)), losses=torch.zeros(rows))
            collector.teardown()
            return by_problem(torch.cat([g.flatten(1) for g in collector.gradients.values()], 1), scored)

        return project

    return {f"bergson {target}": collect(target) for target in sides}


def contestants(model: nn.Module, dim: int) -> dict[str, Contestant]:
    """All that can be imported; the others are named."""
    found: dict[str, Contestant] = {}
    for maker in (ours, trak, dattri, bergson):
        try:
            found |= maker(model, dim)
        except ImportError as error:
            print(f"{maker.__name__}: not run, {error}")
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--regime", default="imbalance")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stage = Stage(options.regime, updates=options.updates, pool=options.problems)
    exact = stage.exact()
    signal = torch.isfinite(exact)
    count = sum(p.numel() for p in stage.model.parameters())
    print(
        f"\n{options.regime}, {count:,} parameters, k = {options.dim}, {len(exact)} problems ({int(signal.sum())} with a"
    )
    print(
        f"signal) x {stage.pool.rollouts.group_size} rollouts, torch {torch.__version__}, {options.threads} threads\n"
    )
    # The validation problems as one more problem: their losses are weighted by tokens, as the pooled gradient is.
    trusted = Scored(stage.validation.rollouts, stage.validation.advantage * stage.validation.rollouts.tokens[:, None])
    runs = contestants(stage.model, options.dim)
    seconds, fidelity, widths = dict.fromkeys(runs, math.inf), {}, {}
    for round_ in range(options.repeats):
        for name, run in list(runs.items()):
            try:
                start = time.perf_counter()
                rows = run(stage.pool)
                if round_ or options.repeats == 1:  # the first round compiles, and makes projections that are kept
                    seconds[name] = min(seconds[name], time.perf_counter() - start)
                if name not in fidelity:
                    fidelity[name] = spearman(cosines(rows, run(trusted).sum(0))[signal], exact[signal])
                    widths[name] = rows.shape[1]
            except Exception as error:
                print(f"{name}: failed, {type(error).__name__}: {error}")
                del runs[name]
        print(f"round {round_ + 1} of {options.repeats}", flush=True)
    print(f"{'':<24}{'k':>7}{'ms a problem':>14}{'Spearman':>11}")
    for name in runs:
        print(f"{name:<24}{widths[name]:>7}{1000 * seconds[name] / len(exact):>14.2f}{fidelity[name]:>11.3f}")


if __name__ == "__main__":
    main()
