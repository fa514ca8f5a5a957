"""What alignment costs a run, computed from the model's shape and the cluster.

Each formula is held to what torch really does on a small model: operations and memory by
tests/unit/forward/test_cost_of_passes.py and tests/unit/capture/test_cost_of_capture.py, what FSDP2 gathers and reduces by
tests/unit/forward/test_cost_between_ranks.py, and requests by tests/unit/wire/test_cost_on_the_wire.py. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

WIDE, NARROW = 4, 2
"""Bytes of a float32 (masters, their gradients, v, sketches) and of a bfloat16 (what is gathered and computed with)."""

BUFFER: Final = 1 << 20
"""Elements of per-problem gradients that capture holds at a time."""


@dataclass(frozen=True)
class Shape:
    """A decoder of gated blocks, as Llama and Qwen2 are.

    Attributes:
        bias: whether the projections to queries, keys and values have one.
        tied: whether the head is the embedding.
    """

    layers: int = 28
    hidden: int = 3584
    intermediate: int = 18944
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    vocabulary: int = 152064
    bias: bool = True
    tied: bool = False

    @property
    def block(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of a layer's matrices: outputs and inputs."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q": (queries, self.hidden), "k": (keys, self.hidden), "v": (keys, self.hidden), "o": (self.hidden, queries),
            "gate": (self.intermediate, self.hidden), "up": (self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }  # fmt: skip

    @property
    def in_layers(self) -> int:
        """Parameters of all layers."""
        matrices = sum(rows * cols for rows, cols in self.block.values())
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim if self.bias else 0
        return self.layers * (matrices + biases + 2 * self.hidden)

    @property
    def in_root(self) -> int:
        """Parameters outside of the layers: embedding, head and the last norm."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden + self.hidden

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.in_layers + self.in_root


@dataclass(frozen=True)
class Job:
    """A run, and what of it is measured in an update.

    Attributes:
        problems, rollouts, tokens: of an update; prompts count as tokens.
        validation: problems whose gradient is taken in every `refresh`th update.
        at_once: rows of a rank in one forward.
        lora_rank: of adapters on all matrices of the layers; 0: all weights are trained.
        recompute: whether activations of layers are computed again in a backward.
        reshard: whether FSDP2 lets go of gathered weights after a forward: of all modules, as accelerate and verl set it;
            of all but the outermost, as torch does by default; or of none.
        dim: of a sketch.
    """

    shape: Shape = Shape()
    gpus: int = 8
    problems: int = 64
    rollouts: int = 8
    tokens: int = 1024
    validation: int = 16
    refresh: int = 4
    at_once: int = 8
    lora_rank: int = 0
    recompute: bool = False
    reshard: Literal["all", "layers", "none"] = "all"
    dim: int = 8192

    @property
    def lora(self) -> int:
        """Parameters of the adapters."""
        return self.shape.layers * self.lora_rank * sum(rows + cols for rows, cols in self.shape.block.values())

    @property
    def trained(self) -> int:
        """Parameters that have a gradient."""
        return self.lora or self.shape.parameters

    @property
    def others(self) -> float:
        """The share of a whole that a rank has to get from the other ranks."""
        return (self.gpus - 1) / self.gpus

    def micro_batches(self, problems: int) -> int:
        """Forwards of a rank for the rollouts of so many problems."""
        return -(-problems * self.rollouts // (self.gpus * self.at_once))

    def validating(self) -> Job:
        """The job of a refresh."""
        return replace(self, problems=self.validation)


# Floating-point operations, as torch.utils.flop_counter counts them: attention over all pairs of tokens.


def matrices_flops(job: Job) -> int:
    """Products of tokens with the matrices of all layers, once."""
    per_token = job.shape.layers * sum(rows * cols for rows, cols in job.shape.block.values())
    return 2 * job.problems * job.rollouts * job.tokens * per_token


def head_flops(job: Job) -> int:
    """Products with the head, once, for all tokens."""
    return 2 * job.problems * job.rollouts * job.tokens * job.shape.vocabulary * job.shape.hidden


def attention_flops(job: Job) -> int:
    """Scores and weighted sums of all layers."""
    width = job.shape.heads * job.shape.head_dim
    return 4 * job.problems * job.rollouts * job.tokens**2 * job.shape.layers * width


def lora_flops(job: Job) -> int:
    """Products with the adapters, once."""
    return 2 * job.problems * job.rollouts * job.tokens * job.lora


def forward_flops(job: Job) -> int:
    """A forward over all rollouts."""
    return matrices_flops(job) + head_flops(job) + attention_flops(job) + lora_flops(job)


def backward_flops(job: Job) -> int:
    """A backward: gradients of activations, and of the weights that are trained; with recomputation as `recompute` says."""
    frozen = matrices_flops(job) + head_flops(job)
    products = frozen if job.lora_rank else 2 * frozen
    return products + 2 * attention_flops(job) + 2 * lora_flops(job) + (again_flops(job) if job.recompute else 0)


def update_flops(job: Job) -> int:
    """The update's own forward and backward."""
    return forward_flops(job) + backward_flops(job)


def again_flops(job: Job) -> int:
    """What non-reentrant checkpointing of each layer computes again: not its last product, whose result nobody needs."""
    rows, cols = job.shape.block["down"]
    last = rows * (job.lora_rank or cols)
    spared = 2 * job.problems * job.rollouts * job.tokens * job.shape.layers * last
    return matrices_flops(job) + attention_flops(job) + lora_flops(job) - spared


def dual_flops(job: Job) -> int:
    """A forward in which activations carry derivatives: a product takes three.

    With a weight that has no derivative two would do, and torch takes two where a bias is added.
    """
    return 3 * forward_flops(job)


def head_alone_flops(job: Job) -> int:
    """A forward, and the gradient of the head's weight."""
    return forward_flops(job) + head_flops(job)


# Bytes between ranks, of one rank.


def gathered(job: Job, *, backward: bool, width: int = NARROW) -> float:
    """Bytes that a rank receives of weights for a forward over all rollouts, or a forward and backward."""
    parts = {"layers": job.shape.in_layers + job.lora, "root": job.shape.in_root}
    released = {"layers": job.reshard != "none", "root": job.reshard == "all"}
    return job.others * width * sum(size * _times(job, released[name], backward) for name, size in parts.items())


def _times(job: Job, released: bool, backward: bool) -> int:
    forwards = job.micro_batches(job.problems)
    if backward:
        return forwards * (2 if released else 1)
    return forwards if released else 1


def reduced_gradients(job: Job) -> float:
    """Bytes that a rank sends of gradients in a backward over all rollouts that reduces after every micro-batch."""
    return job.micro_batches(job.problems) * job.others * WIDE * job.trained


def reduced_sketches(job: Job) -> float:
    """Bytes that a rank sends where capture adds the sketches of all problems up after every micro-batch."""
    return job.micro_batches(job.problems) * 2 * job.others * WIDE * job.problems * job.dim


def reduced_one_by_one(job: Job) -> float:
    """Bytes that a rank sends where all ranks run one problem after the other, and `from_grads` sketches its gradient."""
    each = job.micro_batches(1) * job.others * WIDE * job.trained
    return job.problems * (each + 2 * job.others * WIDE * job.dim)


# Bytes to the scorer.


def wire_bytes(job: Job, rows: Literal["products", "float32", "float16", "int8"], id_length: int = 31) -> int:
    """A /score: of each problem a row, an id, tokens, rollouts and a pass rate; and what it says of the run."""
    row, once = {
        "products": (9 * job.rollouts + 1, 200), "float32": (4 * job.dim, 340), "float16": (2 * job.dim, 340),
        "int8": (job.dim + 9, 340),
    }[rows]  # fmt: skip
    return once + job.problems * (row + id_length + 1 + 3 + 1 + 9)


# Memory of a rank.


def part(job: Job) -> float:
    """Bytes of this rank's part of the trained weights: of v, and of a copy of them while they are moved."""
    return WIDE * job.trained / job.gpus


def shapes_of(job: Job) -> Iterator[tuple[int, int]]:
    """Rows and columns of every trained parameter that is a matrix."""
    for rows, cols in job.shape.block.values():
        pair = [(job.lora_rank, cols), (rows, job.lora_rank)] if job.lora_rank else [(rows, cols)]
        yield from pair * job.shape.layers
    if not job.lora_rank:
        yield from [(job.shape.vocabulary, job.shape.hidden)] * (1 if job.shape.tied else 2)


def hashes(matrices: Sequence[tuple[int, int]]) -> int:
    """Bytes of the hashes of rows and columns: a bucket in 64 bits and a sign in 32 each."""
    return sum(12 * (rows + cols) for rows, cols in matrices)


def sketching(job: Job, matrices: Sequence[tuple[int, int]]) -> int:
    """Bytes that capture takes for a while: sketches of twice their width, a block, and one use's factors in float32."""
    tokens = job.at_once * job.tokens
    rows, cols = max(matrices, key=sum)
    block = min(BUFFER, job.problems * rows * cols)
    return WIDE * (2 * job.problems * job.dim + block + tokens * (rows + cols))
