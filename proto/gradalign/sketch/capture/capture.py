"""Sketches of many problems out of one backward."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradalign.errors import SketchError
from gradalign.sketch.capture.accumulate import Accumulator
from gradalign.sketch.capture.exact import Exact, Place, check_against
from gradalign.sketch.capture.index import checked_index, problem_count
from gradalign.sketch.capture.operators.derived import Derived
from gradalign.sketch.capture.operators.functions import Recorder, Trap
from gradalign.sketch.capture.operators.intercept import Interceptor
from gradalign.sketch.capture.ranks import Ranks
from gradalign.sketch.capture.recorder import UseRecorder
from gradalign.sketch.capture.rows.problems import ProblemRows
from gradalign.sketch.capture.tracked import TrackedParameters, unseen
from gradalign.sketch.hashing.fixedpoint import check_fixed, from_fixed
from gradalign.sketch.kernels.tables import HashTable
from gradalign.sketch.parameters.fsdp2 import Fsdp2
from gradalign.sketch.parameters.shards import whole_tensor
from gradalign.wire.projection import Projection

__all__ = ["Capture"]

_MADE = "_gradalign_derived"
_ACTIVE = threading.local()


class Source(Protocol):
    """What a capture needs of its Sketcher."""

    dtype: torch.dtype
    reproducible: bool

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Global shapes of the sketched parameters by canonical name."""

    @property
    def dim(self) -> int:
        """Number of buckets."""

    @property
    def projection(self) -> Projection:
        """How sketches are made."""

    def sharding(self) -> Fsdp2 | None:
        """What FSDP2 holds of the model; None if it holds nothing."""

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The trainable parameters by canonical name, checked to be those the Sketcher was made for."""

    def buffers(self) -> list[Tensor]:
        """The buffers of the model."""

    def table(self, name: str, device: torch.device) -> HashTable:
        """The hashes of a parameter."""

    def scale(self, place: Place, like: Tensor) -> Tensor | None:
        """The preconditioner's multipliers at a place."""


class Capture:
    """A block in which forward and backward of a batch give the sketch of each of its problems.

    Made by `Sketcher.capture`; see there.
    """

    def __init__(
        self,
        source: Source,
        index: Tensor,
        problems: int | None,
        *,
        keep_grad: bool,
        against: Mapping[str, Tensor] | None,
        onto: Capture | None,
    ) -> None:
        self.keep_grad = keep_grad
        index = checked_index(index, problems)
        self.problems = problem_count(index, problems)
        self.rows = ProblemRows(index, self.problems, source.buffers())
        self.exact: Exact | None = None
        self.in_backward = False
        self._against = against
        check_against(against, source.shapes)
        self._onto = _checked_onto(onto, self.problems, against)
        self._source = source
        self._ranks: Ranks | None = None
        self._tracked = TrackedParameters(keep_grad)
        self._accumulators: dict[torch.device, Accumulator] = {}
        self._open = False
        self._sketches: Tensor | None = None
        self._found: Tensor | None = None
        self._fixed: tuple[Tensor, Tensor] | None = None
        self._mode = Interceptor(self)

    @property
    def sketches(self) -> Tensor:
        """The sketches, [problems, dim], in the Sketcher's dtype; after the block has ended."""
        if self._sketches is None:
            raise SketchError("captured.sketches is there once the with block has ended without an error.")
        return self._sketches

    @property
    def dots(self) -> Tensor:
        """Exact products with the unit vector of `against`, float64 [problems]; the wire's `dots`."""
        return self._exactly()[:, 0]

    @property
    def norms(self) -> Tensor:
        """Exact gradient norms, float64 [problems]; the wire's `norms`."""
        return self._exactly()[:, 1]

    def _exactly(self) -> Tensor:
        if self._against is None:
            raise SketchError(
                "captured.dots and captured.norms need the validation gradient: "
                "sketcher.capture(problem_index, against=sketcher.gradients())."
            )
        if self._found is None:
            raise SketchError(
                "captured.dots and captured.norms are there once the with block has ended without an error."
            )
        return self._found

    def __enter__(self) -> Capture:
        if getattr(_ACTIVE, "capture", None) is not None:
            raise SketchError("a capture is already open in this thread; end its with block first (they do not nest).")
        if self._sketches is not None or self._accumulators:
            raise SketchError("this capture has been used; call sketcher.capture(problem_index) for each batch.")
        named, fsdp2 = self._source.named(), self._source.sharding()
        if fsdp2 is not None:
            self._ranks = Ranks(fsdp2.mesh)
            self._agree(self._ranks)
        if self._against is not None:
            whole = {name: whole_tensor(self._against[name]) for name in sorted(self._against)}
            self.exact = Exact(whole, self._source.shapes)
        self._tracked.open(named, fsdp2)
        self._open, _ACTIVE.capture = True, self
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._stance.__exit__(kind, error, trace)
        _ACTIVE.capture = None
        try:
            if error is None:
                self._tracked.check_met()
                self._sketches = self._finish()
        finally:
            self._open = False
            self._tracked.close()
            self._accumulators.clear()

    def _agree(self, ranks: Ranks) -> None:
        """Before anything is computed, since a rank that stops later leaves the others waiting for its shards."""
        projection = int(hashlib.sha256(repr(self._source.projection).encode()).hexdigest()[:12], 16)
        onto, against = self._onto is not None, self._against is not None
        ranks.agree(problems=self.problems, projection=projection, keep_grad=self.keep_grad, onto=onto, against=against)
        ranks.check_rows(self.rows.index, self.problems, whole=against)

    def _finish(self) -> Tensor:
        if self._ranks is not None and self._ranks.any(bool(self._accumulators)) and not self._accumulators:
            self.accumulator(self._ranks.device)
        if not self._accumulators:
            raise SketchError(
                "no gradient was captured: run both the forward and loss.backward() of the batch inside the with block."
            )
        if self.exact is not None:
            for place, pieces in self.exact.rest().items():
                self.accumulator(pieces[0].right.device).pieces(place, pieces)
        total = self._added()
        if self.exact is not None:
            found = self._over_ranks(_sum([accumulator.found for accumulator in self._accumulators.values()]))
            self._found = torch.stack([found[:, 0] / self.exact.norm, found[:, 1].sqrt()], 1)
        if not torch.isfinite(total.sum()):
            bad = (~torch.isfinite(total)).any(1).nonzero().squeeze(1).tolist()
            raise SketchError(
                f"the gradients of problems {bad[:10]} hold inf or NaN; leave them out of the round and look at their "
                "losses (under fp16, lower the loss scale)."
            )
        return total

    def _added(self) -> Tensor:
        """The sketches of all devices, and of the capture that this one adds to."""
        parts = list(self._accumulators.values())
        if not self._source.reproducible:
            total = self._over_ranks(_sum([part.sketches() for part in parts]))
            return total if self._onto is None else total + self._onto.sketches.to(total.device)
        bulk = self._over_ranks(_sum([part.bulk for part in parts]))
        whole = self._over_ranks(_sum([part.fixed for part in parts if part.fixed is not None]))
        if self._onto is not None and self._onto._fixed is not None:
            before, more = self._onto._fixed
            whole, bulk = whole + before.to(whole.device), bulk + more.to(bulk.device)
        self._fixed = whole, bulk
        check_fixed(bulk[torch.isfinite(bulk)])
        total = from_fixed(whole, self._source.dtype)
        return total.masked_fill(~torch.isfinite(bulk)[:, None], torch.nan)

    def _over_ranks(self, tensor: Tensor) -> Tensor:
        if self._ranks is not None:
            self._ranks.add(tensor)
        return tensor

    # What the interceptor and the recorders ask for.

    def find(self, value: Any) -> Derived | None:
        """How a value was made, if it is a tracked parameter or was derived from one."""
        if not isinstance(value, Tensor):
            return None
        known = self._tracked.find(value)
        if known is not None:
            return known
        block, made, *_ = getattr(value, _MADE, (None, None))
        return made if block is self else None

    def tapped(self, value: Tensor) -> Tensor:
        """The value to compute with in place of a tracked one."""
        if value in self._tracked:
            return self._tracked.tapped(value)
        _, made, real, version = getattr(value, _MADE)
        if real._version != version:
            raise SketchError(
                f"a value made of {made.name} was changed in place through another name of its memory, such as a view; "
                "make a new one, or sketch this model problem by problem with from_grads()."
            )
        return real  # type: ignore[no-any-return]

    def track(self, value: Tensor, derived: Derived) -> Tensor:
        """Remember how a new value was made; the value to hand to the model in its place."""

        def refuse() -> None:
            raise unseen(derived.name)

        shown: Tensor = Trap.apply(value, refuse)  # type: ignore[no-untyped-call]
        setattr(shown, _MADE, (self, derived, value, value._version))
        self.rows.constant(shown)
        return shown

    def rewrite(self, shown: Tensor, derived: Derived) -> None:
        """Remember how a value is made that was changed in place."""
        value = getattr(shown, _MADE)[2]
        setattr(shown, _MADE, (self, derived, value, value._version))

    def recorder(self, value: Tensor) -> Recorder:
        """The recorder of one use of a tracked value."""
        made = self.find(value)
        assert made is not None
        return self._recorder(made, value)

    def _recorder(self, made: Derived, value: Tensor) -> UseRecorder:
        beside = tuple(self._recorder(other, value) for other in made.beside)
        parameter = self._tracked.parameter(made.name).detach()
        recorder = UseRecorder(self, made, parameter, tuple(value.shape), value.dtype, beside)
        if self.exact is not None and not self.in_backward:
            self.exact.expect(recorder.place)
        return recorder

    def accumulator(self, device: torch.device) -> Accumulator:
        """The sketches on one device."""
        if not self._open:
            raise SketchError(
                "backward ran after the capture block had ended; call loss.backward() inside the with block."
            )
        if device not in self._accumulators:
            self._accumulators[device] = Accumulator(
                self.problems,
                self._source.dim,
                dtype=self._source.dtype,
                device=device,
                table=lambda name: self._source.table(name, device),
                exact=self.exact,
                scale=self._source.scale,
                fixed=self._source.reproducible,
            )
        return self._accumulators[device]


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part.to(total.device)
    return total


def _checked_onto(onto: Capture | None, problems: int, against: object) -> Capture | None:
    if onto is None:
        return None
    if against is not None:
        raise SketchError(
            "onto and against do not go together: norms do not add over batches. Capture a problem whole."
        )
    if len(onto.sketches) != problems:
        raise SketchError(
            f"onto holds sketches of {len(onto.sketches)} problems and this batch is of {problems}; give both captures the "
            "same `problems`."
        )
    return onto
