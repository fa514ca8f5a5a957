"""What sketches cost: ratios measured side by side in one process, each the best of interleaved repetitions.

    python tests/bench/bench_sketch.py [--threads N] [--repeats N] [--only factors from_grads tiny large memory]

Rows: `from_grads()` against `torch.add` over the same gradients; capture against a plain forward and backward of the same
batch, with `.grad` kept, on the demo's tiny model and on one of 25 million parameters; and one backward a problem.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from gradalign.sketch import Sketcher
from gradalign.sketch.capture import accumulate
from gradalign.sketch.capture.rows.problems import Groups
from gradalign.sketch.hashing import factors
from gradalign.sketch.kernels.tables import HashTable


def best(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest of `repeats` rounds; each round runs every contestant once."""
    seconds = dict.fromkeys(runs, float("inf"))
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:  # the first round warms caches and compiles
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def report(title: str, seconds: dict[str, float], over: str) -> None:
    """One table: milliseconds, and ratios to the contestant `over`."""
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:<34}{1000 * value:10.1f} ms   {value / seconds[over]:6.2f}x")


def model_of(**sizes: int) -> Qwen2ForCausalLM:
    """A Qwen2 of some sizes, random weights."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, use_cache=False, **sizes))


def loss_of(model: nn.Module, ids: Tensor, advantages: Tensor) -> Tensor:
    """The GRPO loss at ratio 1: advantages [B] times the log-probabilities of all tokens."""
    logits = model(input_ids=ids).logits[:, :-1]
    log_probs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return -(advantages[:, None] * log_probs).sum() / ids.numel()


def bench_from_grads(repeats: int) -> None:
    """Seven matrices of a layer of a 0.5B model, 15 million elements."""
    model = model_of(
        vocab_size=32, hidden_size=896, intermediate_size=4864, num_hidden_layers=1, num_attention_heads=14,
        num_key_value_heads=2,
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    spare = [torch.zeros_like(p) for p in model.parameters()]
    sketcher = Sketcher(model)

    def add() -> None:
        for parameter, other in zip(model.parameters(), spare, strict=True):
            torch.add(parameter.grad, other, out=other)

    validation, fixed = sketcher.gradients(), Sketcher(model, reproducible=True)
    runs: dict[str, Callable[[], object]] = {
        "torch.add": add,
        "from_grads()": sketcher.from_grads,
        "from_grads(against=...)": lambda: sketcher.from_grads(against=validation),
        "from_grads(), reproducible": fixed.from_grads,
    }
    seconds = best(runs, repeats)
    report(f"from_grads(), {sketcher.coverage.numel:,} elements, dim 8192", seconds, "torch.add")


def contestants(model: nn.Module, ids: Tensor, index: Tensor, *, one_by_one: bool) -> dict[str, Callable[[], object]]:
    """Plain, capture, and one backward a problem, over one batch."""
    sketcher = Sketcher(model)
    advantages = torch.randn(len(ids), generator=torch.Generator().manual_seed(1))

    def plain() -> None:
        model.zero_grad()
        loss_of(model, ids, advantages).backward()

    plain()
    validation = sketcher.gradients()

    def capture(keep_grad: bool = True, against: dict[str, Tensor] | None = None) -> None:
        model.zero_grad()
        with sketcher.capture(index, keep_grad=keep_grad, against=against):
            loss_of(model, ids, advantages).backward()

    def each() -> None:
        for problem in index.unique().tolist():
            model.zero_grad()
            mine = index == problem
            loss_of(model, ids[mine], advantages[mine]).backward()
            sketcher.from_grads()

    runs: dict[str, Callable[[], object]] = {
        "plain forward + backward": plain,
        "capture, .grad kept": capture,
        "capture, exact dots and norms": lambda: capture(against=validation),
        "capture, .grad left alone": lambda: capture(keep_grad=False),
    }
    return runs | ({"one backward a problem": each} if one_by_one else {})


def bench_tiny(repeats: int) -> None:
    """The demo's model, 128 groups of 8 rollouts of 12 tokens."""
    model = model_of(
        vocab_size=20, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    ids = torch.randint(0, 20, (1024, 12))
    runs = contestants(model, ids, torch.arange(128).repeat_interleave(8), one_by_one=True)
    report("tiny model, 128 problems x 8 rollouts x 12 tokens", best(runs, repeats), "plain forward + backward")


def bench_large(repeats: int) -> None:
    """25 million parameters, 2,048 and 512 tokens a problem."""
    model = large_model()
    count = sum(p.numel() for p in model.parameters()) / 1e6
    for problems, rollouts in ((2, 8), (4, 2)):
        ids = torch.randint(0, 512, (problems * rollouts, 256))
        runs = contestants(model, ids, torch.arange(problems).repeat_interleave(rollouts), one_by_one=rollouts == 2)
        title = f"{count:.0f}M parameters, {problems} problems x {rollouts * 256} tokens"
        report(title, best(runs, repeats), "plain forward + backward")


def layer_of(rows: int, cols: int, terms: int) -> Callable[[bool], None]:
    """The sketches of 4 problems' outer products in one layer, `.grad` kept, by the factors or not."""
    problems, dim, cpu = 4, 8192, torch.device("cpu")
    left, right = torch.randn(problems * terms, rows), torch.randn(problems * terms, cols)
    table = HashTable.of("w", (rows, cols), dim=dim, seed=0, device=cpu, dtype=torch.float32)
    groups = Groups.of(torch.arange(problems).repeat_interleave(terms), problems)

    def run(by_factors: bool) -> None:
        accumulate.cheaper = lambda *_: by_factors
        target = accumulate.Accumulator(problems, dim, dtype=torch.float32, device=cpu, table=lambda _: table)
        target.outer(("w", 0, rows), left, right, groups, total=True)

    rule = factors.cheaper(table, groups.bounds)
    print(f"\n{rows} x {cols}, {terms} tokens a problem; the rule: {'by the factors' if rule else 'formed and read'}")
    return run


def bench_factors(repeats: int) -> None:
    """One layer, 4 problems: each problem's product formed and read, or the transforms of its factors multiplied."""
    for rows, cols in ((896, 896), (4864, 896), (2048, 2048), (32000, 896)):
        for terms in (4, 16, 64, 256):
            run = layer_of(rows, cols, terms)
            runs = {"formed and read": lambda run=run: run(False), "by the factors": lambda run=run: run(True)}
            seconds = best(runs, repeats)
            for name, value in seconds.items():
                print(f"  {name:<34}{1000 * value:10.1f} ms   {value / seconds['formed and read']:6.2f}x")
    accumulate.cheaper = factors.cheaper


def large_model() -> Qwen2ForCausalLM:
    """25 million parameters."""
    return model_of(
        vocab_size=512, hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=8,
    )  # fmt: skip


def peak(contestant: str) -> None:
    """Print the most memory, in MiB, that some steps of one contestant take; run in a process of its own."""
    model = large_model()
    ids, index = torch.randint(0, 512, (8, 256)), torch.arange(4).repeat_interleave(2)
    runs = contestants(model, ids, index, one_by_one=False)
    Sketcher(model).from_grads()  # whoever runs, numba's compiler is loaded
    for _ in range(3):
        runs[contestant]()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def bench_memory(_repeats: int) -> None:
    """Peak memory of a process that does nothing else; the largest layer's gradient is 4 MiB, the sketches 128 KiB."""
    print("\n25M parameters, 4 problems x 512 tokens: peak memory")
    # Memory that is freed goes back at once, so that the peak is of what was in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000"}
    for name in ("plain forward + backward", "capture, .grad kept", "capture, .grad left alone"):
        command = [sys.executable, __file__, "--peak", name]
        found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
        print(f"  {name:<34}{found:>10} MiB")


BENCHES = {
    "factors": bench_factors,
    "from_grads": bench_from_grads,
    "tiny": bench_tiny,
    "large": bench_large,
    "memory": bench_memory,
}


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak)
        return
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, best of {options.repeats}")
    for name in options.only:
        BENCHES[name](options.repeats)


if __name__ == "__main__":
    main()
