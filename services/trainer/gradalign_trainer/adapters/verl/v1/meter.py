"""Products of a batch's rollouts with the validation gradient, out of verl's own engine. All ranks call it together.

The gradient is the policy's at ratio 1, `-sum_i sum_t A_it grad log pi(y_it)` with verl's own advantages: the part of its
loss that the rewards speak through. KL penalty, entropy bonus and clipping are left out. Which model the engine holds, how
it is sharded, packed and put on devices, stays verl's business.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import no_padding_2_padding

from gradalign.errors import DirectionError, GradAlignError
from gradalign.forward import Direction, MicroBatch
from gradalign_trainer.adapters.athand import by_logprobs_at_hand
from gradalign_trainer.adapters.ranks import agree, gathered

__all__ = ["CANDIDATES", "SHARES", "VALIDATED", "EngineMeter", "Products", "one_a_row"]

VALIDATED, CANDIDATES = "gradalign_validated", "gradalign_candidates"
"""Columns, float32, one a row: what a token's advantage is multiplied by in its problem's loss; 0 where not measured."""

SHARES = "gradalign_shares"
logger = logging.getLogger(__name__)
_NEEDED = ("input_ids", "position_ids", "loss_mask", "prompts", "responses", "response_mask", "advantages")
_MODEL_INPUTS = ("multi_modal_inputs",)


@dataclass(frozen=True, slots=True)
class Products:
    """What a rank measured of its rows.

    Attributes:
        values: float64 [B], on the CPU; 0 for rows that were not measured, or could not be.
        length: of the validation gradient that was taken from this batch; None where none was.
        held: whether the engine holds a validation gradient now.
        figures: of the last self-check, for logs.
        fault: why something could not be measured; empty where nothing failed.
    """

    values: Tensor
    length: float | None
    held: bool
    figures: Mapping[str, float]
    fault: str


class EngineMeter:
    """Measures in one worker.

    Args:
        worker: verl's `TrainingWorker` of the actor.
        offload: keep the validation gradient, and the copy of the weights while they are moved, on the CPU.

    Raises:
        GradAlignError: the engine cannot say where its shards lie, or splits rows over ranks.
    """

    def __init__(self, worker: Any, *, offload: bool = False) -> None:
        self._engine, self._config = worker.engine, worker.engine_config
        _check(self._engine)
        self._padding = bool(worker.model_config.get("use_remove_padding", False))
        # A small difference drowns in the rounding of 16 bits.
        narrow = getattr(self._engine, "_autocast_dtype", torch.float32) != torch.float32
        self._target, self._offload = 0.1 if narrow else 0.02, offload
        self._direction: Direction | None = None

    def measure(self, data: Any) -> Products:
        """Take the validation gradient of rows with a share in `VALIDATED`, if any, then the products of both kinds of rows.

        Weights, `.grad` and random numbers are as they were behind it, so that the next update is what it would have been.

        Args:
            data: a `TensorDict` of this rank's rows as `update_actor` is given them, with the two columns.

        Raises:
            GradAlignError: a column did not arrive.
        """
        missing = [name for name in (*_NEEDED, VALIDATED, CANDIDATES) if name not in data.keys()]  # noqa: SIM118
        if missing:
            raise GradAlignError(
                f"the columns {', '.join(missing)} of the batch did not arrive in the worker; expected them of the agent "
                "loop and of _compute_advantage. Does a trainer or an agent loop of your own write others?"
            )
        found = torch.zeros(len(data), dtype=torch.float64)
        length: float | None = None
        fault = ""
        with self._engine.eval_mode():
            try:
                length = self._validated(data, found)
                if self._direction is not None:
                    self._measured(data, found)
            except (DirectionError, RuntimeError) as error:  # of the second kind are a kernel's, and memory that is out
                fault = f"{type(error).__name__}: {error}"
        check = self._direction.checked if self._direction else None
        figures = {} if check is None else {"quotient": check.quotient}
        if check is not None and check.fidelity is not None:
            figures["fidelity"] = check.fidelity
        return Products(found, length, self._direction is not None, figures, fault)

    def _validated(self, data: Any, found: Tensor) -> float | None:
        """Take the validation gradient; its length. Without a signal on any rank the one before stays."""
        rows = self._rows(data, VALIDATED)
        if rows is None:
            return None
        direction, self._direction = self._direction, None  # none is held where this fails
        direction = direction or Direction(self._engine.module, target=self._target, offload=self._offload)
        with self._engine.train_mode(disable_auto_offload=True), _same_random_numbers():
            failed: Exception | None = None
            try:
                self._run_backward(rows)
            except RuntimeError as error:
                failed = error
            agree(failed)
            length = direction.take()
        rows.put(self._sparing(rows, lambda given: direction.check_of(self._logprobs, [given]).products), found)
        self._direction = direction
        return length

    def _measured(self, data: Any, found: Tensor) -> None:
        rows = self._rows(data, CANDIDATES)
        if rows is None:
            return
        direction = self._direction
        assert direction is not None
        rows.put(self._sparing(rows, lambda given: direction.products_of(self._logprobs, [given])), found)

    def _sparing(self, rows: _Rows, take: Callable[[MicroBatch], Sequence[Tensor]]) -> Tensor:
        with self._engine.eval_mode(disable_auto_offload=True):
            return by_logprobs_at_hand(take, rows.micro_batch, "verl's old_log_probs")[0]

    def _run_backward(self, rows: _Rows) -> None:
        ranks = self._engine.get_data_parallel_size()

        def loss(model_output: Mapping[str, Any], data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
            del dp_group
            shares = data.select(SHARES).to_padded_tensor()[SHARES]
            # FSDP averages gradients over the ranks.
            return -(no_padding_2_padding(model_output["log_probs"], data) * shares).sum() * ranks, {}

        self._engine.optimizer_zero_grad()
        self._engine.forward_backward_batch(self._set(rows.data, "micro_batch_size_per_gpu"), loss)

    def _logprobs(self, data: Any) -> Tensor:
        """Log-probs of response tokens, [n, T]: verl's own pass."""
        output = self._engine.forward_backward_batch(
            self._set(data, "infer_micro_batch_size_per_gpu"), None, forward_only=True
        )
        found: Tensor = no_padding_2_padding(output["model_output"]["log_probs"], data)
        return found

    def _rows(self, data: Any, column: str) -> _Rows | None:
        """The rows that have a signal, filled up so that all ranks run as many; None where none on any rank has."""
        padded = data.select("response_mask", "advantages").to_padded_tensor()
        shares = padded["advantages"].float() * padded["response_mask"] * one_a_row(data[column])[:, None].float()
        own = shares.ne(0).any(1).nonzero()[:, 0].tolist()
        everyone = gathered((len(own), bool(torch.isfinite(shares).all())))
        if not all(finite for _, finite in everyone):  # on all ranks, or the others would wait
            raise DirectionError("an advantage is NaN or inf; a standard deviation of 0 is a usual cause.")
        most = max(count for count, _ in everyone)
        if not most:
            return None
        size = 1 if self._config.use_dynamic_bsz else math.lcm(*(int(self._size(name) or 1) for name in _SIZES))
        count = -(-most // size) * size
        others = [row for row in range(len(data)) if row not in set(own)] or [0]
        fill = [others[place % len(others)] for place in range(count - len(own))]
        return _Rows.of(data, shares, own, fill)

    def _size(self, name: str) -> int | None:
        return getattr(self._config, name, None)

    def _set(self, data: Any, size: str) -> Any:
        """The rows with what verl's workers tell their engine, as in `infer_batch` and `train_batch`."""
        longest = size.replace("micro_batch_size", "max_token_len")
        tu.assign_non_tensor(
            data,
            use_remove_padding=self._padding,
            use_dynamic_bsz=self._config.use_dynamic_bsz,
            max_token_len_per_gpu=self._size(longest),
            micro_batch_size_per_gpu=self._size(size),
            use_fused_kernels=self._config.use_fused_kernels,
            calculate_entropy=False,
        )
        return data


_SIZES = ("micro_batch_size_per_gpu", "infer_micro_batch_size_per_gpu")


@dataclass(frozen=True)
class _Rows:
    """Rows that go through the model.

    Attributes:
        data: of them: the columns that the engine reads, with `SHARES` jagged as the responses.
        own: their places in the batch, of the first `len(own)`; the others fill up.
        shares: float32 [n, T]; 0 in rows that fill up.
        mask: [n, T], the response tokens that count.
        logprobs_at: float32 [n, T] at the weights as they are, where verl has them; or None.
    """

    data: Any
    own: list[int]
    shares: Tensor
    mask: Tensor
    logprobs_at: Tensor | None

    @classmethod
    def of(cls, data: Any, shares: Tensor, own: list[int], fill: list[int]) -> _Rows:
        """Of a batch with these shares: rows with a signal, and others that fill up."""
        places = [*own, *fill]
        kept_names = (*_NEEDED, *_MODEL_INPUTS, "old_log_probs", "temperature")
        names = [name for name in kept_names if name in data.keys()]  # noqa: SIM118
        rows = tu.index_select_tensor_dict(data.select(*names), places)
        lengths = rows["responses"].offsets().diff().tolist()
        width = max(lengths)
        kept = shares[places][:, :width].clone()
        kept[len(own) :] = 0
        rows[SHARES] = torch.nested.as_nested_tensor(
            [row[:length] for row, length in zip(kept, lengths, strict=True)], layout=torch.jagged
        )
        padded = rows.select(*[name for name in ("response_mask", "old_log_probs") if name in names]).to_padded_tensor()
        return cls(rows, own, kept, padded["response_mask"], padded.get("old_log_probs", None))

    @property
    def micro_batch(self) -> MicroBatch:
        """As `Direction` takes them."""
        return MicroBatch(self.data, self.shares, self.mask, self.logprobs_at)

    def put(self, products: Tensor, found: Tensor) -> None:
        """Add products of these rows, float64 [n], to those of the batch."""
        found[self.own] += products[: len(self.own)].cpu()


def one_a_row(column: Tensor) -> Tensor:
    """A column with one number a row, [B]; TransferQueue gives it back jagged, or as [B, 1]."""
    return (column.values() if column.is_nested else column).reshape(-1)


def _check(engine: Any) -> None:
    if int(getattr(engine, "ulysses_sequence_parallel_size", 1)) > 1:
        raise GradAlignError(
            "Ulysses sequence parallelism gives the same rows to several ranks, whose products would count twice; set "
            "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=1."
        )
    if not isinstance(getattr(engine, "module", None), FSDPModule):
        raise GradAlignError(
            f"the engine is a {type(engine).__name__} that is not sharded by FSDP2, and cannot say where its shards lie; "
            "set actor_rollout_ref.actor.strategy=fsdp2."
        )
    if getattr(engine, "scaler", None) is not None:
        raise GradAlignError(
            "float16 scales gradients by a factor that changes; set mixed_precision.param_dtype to bf16 or fp32."
        )


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Behind the block, passes draw for dropout what the block drew."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield
