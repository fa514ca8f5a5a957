"""Products of every rollout's gradient with the validation gradient, out of forward passes alone.

With v the validation gradient, u = v / |v| and c_i(theta) = -A_i sum_t log pi_theta(y_it) / Z, rollout i's share of its
problem's loss, the product of its gradient with u is the directional derivative d/dh c_i(theta + h u). The weights move
by h u, the trainer's own log-prob function runs without grad, and the weights go back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from gradalign.errors import DirectionError
from gradalign.forward.check import Band, Check, best_check, brief_check, vector_products
from gradalign.forward.choice import MethodChoice
from gradalign.forward.norms import HeadTap
from gradalign.forward.parameters.shards import LocalParameters, Shard, engine_shards, model_shards, widest_mesh
from gradalign.forward.parameters.vector import Vector, check_preconditioner, take_vector, vector_of_state, vector_state
from gradalign.forward.parameters.weights import check_masters, resharder
from gradalign.forward.passes.batches import LogProbs, MicroBatch, checked
from gradalign.forward.passes.methods import NARROW, Method, Methods
from gradalign.forward.passes.replay import Passes
from gradalign.forward.passes.step import Step
from gradalign.sketch.preconditioner import Preconditioner

__all__ = ["Direction"]


class Direction:
    """The validation gradient as a direction to take products with; see the module's docstring.

    Args:
        model: whose trainable parameters (plain tensors, or DTensors of FSDP2 and tensor parallelism) have `.grad` after
            the validation backward.
        parameters: the local shards of an engine that keeps its own, in place of a model: `LocalParameter`s, or an object
            with `iter_local_parameters()`.
        method: `one-sided` costs one pass beside given log-probs, `central` two; `forward-ad` one pass of three times the
            work and no rounding of differences; `float32` is central with every operation in float32. `auto` takes the
            cheapest that `check()` found to hold, and without a check goes by dtype.
        target: root mean square change of a counted token's log-prob that a step should make, in nats.
        band: where the self-check's quotient may lie.
        preconditioner: products in Adam's geometry, `<g, P v>`; as the Sketcher's. In the symmetric form over
            |sqrt(P) v|, in the validation form over |P v|.
        masters: float32 values by canonical name of weights that are their roundings; the step is added to those.
        synchronize: called after the shards have moved and after they are back, for an engine that makes working copies
            of them. FSDP2 needs none.
        group: process group. With `parameters`, the ranks that hold parts; with a model of plain tensors under data
            parallelism, the ranks that have rows of their own, which `check` adds over. DTensors bring their mesh.
        offload: keep v, and the copy of the weights while they are moved, on the CPU.
        verify_every: given log-probs are compared with a pass of their own after the first `take`, and after every so many.

    Attributes:
        checked: what the last `check` found; None before.
        method: as given.

    Raises:
        DirectionError: neither or both of model and parameters are given, nothing is trainable, or an argument is wrong.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        parameters: LocalParameters | None = None,
        method: Method | Literal["auto"] = "auto",
        target: float = 0.02,
        band: Band | None = None,
        preconditioner: Preconditioner | None = None,
        masters: Mapping[str, Tensor] | None = None,
        synchronize: Callable[[], None] | None = None,
        group: Any = None,
        offload: bool = False,
        verify_every: int = 1,
    ) -> None:
        if (model is None) == (parameters is None):
            raise DirectionError("give either a model or parameters=, an engine's local shards.")
        if not 0 < target <= 1:
            raise DirectionError(f"target is {target}; expected nats a token above 0, .02 to .1 as a rule.")
        self._model, self._group, self._offload = model, group, offload
        listed: Any = parameters
        self._parameters = listed if hasattr(listed, "iter_local_parameters") else list(listed or ())
        self.method, self._target, self._preconditioner = method, target, preconditioner
        self._choice = MethodChoice(method, whole=model is not None, verify_every=verify_every)
        self._band, self._masters = band or Band(), dict(masters or {})
        self._reshard, self._derive = resharder(model), synchronize or (lambda: None)
        self._vector: Vector | None = None
        self._step: Step | None = None
        self.checked: Check | None = None
        shards = self._shards()
        if not shards:
            raise DirectionError("nothing to move: no parameter requires a gradient, or the engine lists no shard.")
        check_preconditioner(preconditioner, shards)
        check_masters(self._masters, shards)

    def take(self, *, copy: bool = False, decay: float = 0.0) -> float:
        """Take v out of `.grad`, after the validation backward and before anything else touches it.

        The gradients' memory becomes v's and `.grad` is None afterwards. All ranks that share shards call this together.

        Args:
            copy: leave `.grad` as it is, at the price of a copy.
            decay: in [0, 1); v becomes the gradient plus `decay` times the v before, where there is one.

        Returns:
            |v|, or |sqrt(P) v| or |P v| with a preconditioner: the wire's `lengths`.

        Raises:
            DirectionError: there is no gradient, it is zero, or not finite; an older v is gone, too. Or `decay` is out of
                its range, or goes with a preconditioner, whose geometry changes; the older v stays.
        """
        if not 0 <= decay < 1:
            raise DirectionError(f"decay is {decay}; expected a share of the v before, from 0 to below 1.")
        if decay and self._preconditioner is not None:
            raise DirectionError("decay keeps a share of v, and with a preconditioner only P v is kept; give one.")
        shards = self._shards()
        earlier = self._taken()[0] if decay and self._vector else None
        self._vector = self.checked = None
        group = self._group if self._model is None else None
        self._vector = take_vector(
            shards, self._preconditioner, group, keep=copy, offload=self._offload, earlier=earlier, decay=decay
        )
        self._choice.begin(narrow=any(s.weight.dtype in NARROW for s in shards))
        if self._step is None:
            self._step = Step(self._target, 1e-4 * (self._vector.weights_norm or 1.0), self._sharers(shards))
        return self._vector.length

    @property
    def length(self) -> float:
        """What `take` gave."""
        return self._taken()[0].length

    @property
    def carried(self) -> float:
        """What an earlier v that decays into this one adds to the length: the wire's `carried`; 0 without a decay."""
        return self._taken()[0].carried

    def state_dict(self) -> dict[str, Any]:
        """Of v as this rank holds it and of the step, for a checkpoint; empty before `take`. Tensors are not copied."""
        if self._vector is None or self._step is None:
            return {}
        return {
            **vector_state(self._vector, self._shards()),
            "step": self._step.size,
            "fineness": self._step.fineness,
            "methods": self._choice.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; products are the same bits then.

        Raises:
            DirectionError: the state is of other shards; v is as it was.
        """
        if not state:
            return
        shards = self._shards()
        self._vector, self.checked = vector_of_state(state, shards, offload=self._offload), None
        self._step = Step(self._target, state["step"], self._sharers(shards), state["fineness"])
        self._choice.restore(state["methods"])

    @property
    def quotient(self) -> float | None:
        """The sum of the products of the validation rows over |v|, as the last `check` found it; None before."""
        return self.checked.quotient if self.checked else None

    @property
    def stale(self) -> bool:
        """Whether the weights have been written to since `take`; products are then with the gradient of older weights."""
        vector, shards = self._taken()
        return vector.stale(shards)

    def products(
        self,
        logprobs: LogProbs,
        batch: Any,
        weights: Tensor,
        mask: Tensor,
        *,
        logprobs_at: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """The product of each rollout's gradient with u.

        Args:
            logprobs: the trainer's own function, from `batch` to log-probs [B, T]; runs without grad.
            batch: whatever it takes.
            weights: float [B], A_i / Z of each row; or [B, T] for packed rows.
            mask: bool or 0/1 [B, T]; the completion tokens that count.
            logprobs_at: float [B, T], what `logprobs(batch)` gives at the weights as they are; then one pass is enough.
            index: LongTensor [B] or [B, T], the rollout or problem of each row or token, -1 for none.

        Returns:
            float64 [B], or [largest index + 1].

        Raises:
            DirectionError: nothing was taken, the parameters are others now, a shape is wrong, or a value not finite. The
                weights are as they were.
        """
        return self.products_of(logprobs, [MicroBatch(batch, weights, mask, logprobs_at, index)])[0]

    def products_of(self, logprobs: LogProbs, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """As `products`, of several micro-batches for one move of the weights."""
        vector, shards = self._taken()
        given = [checked(batch) for batch in micro_batches]
        passes = self._passes(logprobs, given, shards, watch=self._choice.watches())
        slopes = self._choice.slopes(passes, self._methods(vector, shards)) if given else []
        return vector_products(given, slopes, vector)

    def products_and_norms(
        self,
        logprobs: LogProbs,
        batch: Any,
        weights: Tensor,
        mask: Tensor,
        labels: Tensor,
        *,
        logprobs_at: Tensor | None = None,
        index: Tensor | None = None,
        norms_index: Tensor | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Products, and from the same passes the norms of the head's gradient.

        Args:
            labels: LongTensor [B, T], the tokens that `logprobs` gives the log-probs of.
            norms_index: as `index`, for the norms alone: of problems where the products are of rollouts. By default `index`.
            temperature: that `logprobs` divides logits by.

        Returns:
            Two of float64 [B], or [largest index + 1]. A norm is that of `sum A_i/Z (onehot - softmax) h^T`.

        Raises:
            DirectionError: as `products`; or the model's head cannot be seen, or gives other log-probs.
        """
        given = MicroBatch(batch, weights, mask, logprobs_at, index)
        owners = index if norms_index is None else norms_index
        tap = HeadTap(self._model, replace(given, index=owners), labels, temperature)
        return self.products_of(tap.tapping(logprobs), [given])[0], tap.norms()

    def head_norms(
        self,
        logprobs: LogProbs,
        batch: Any,
        weights: Tensor,
        mask: Tensor,
        labels: Tensor,
        *,
        index: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """The norms of `products_and_norms` alone, from one pass at the weights as they are; needs no `take`."""
        tap = HeadTap(self._model, MicroBatch(batch, weights, mask, None, index), labels, temperature)
        self._passes(tap.tapping(logprobs), [tap.given], self._shards())()
        return tap.norms()

    def check(
        self,
        logprobs: LogProbs,
        batch: Any,
        weights: Tensor,
        mask: Tensor,
        *,
        logprobs_at: Tensor | None = None,
        index: Tensor | None = None,
        brief: bool = False,
    ) -> Check:
        """Take the products of the validation batch itself, which must add up to |v|.

        Costs three passes, more where the first method or step does not hold. All ranks that share shards or rows call
        this together. With method="auto" the cheapest that holds is used from now on, until the next `take`.

        Arguments are as in `products`, of the rows whose loss v is the gradient of: all of them, over the ranks; and:

        Args:
            brief: look at the quotient alone, by the method and the step that the last check found, at the price of the
                products. Where it is off by more than 5%, or nothing was checked before, the check is a whole one.

        Raises:
            DirectionError: the sum is far off; the weights have changed since `take`; or as `products`.
        """
        return self.check_of(logprobs, [MicroBatch(batch, weights, mask, logprobs_at, index)], brief=brief)

    def check_of(self, logprobs: LogProbs, micro_batches: Sequence[MicroBatch], *, brief: bool = False) -> Check:
        """As `check`, of several micro-batches that v is the gradient of the sum of."""
        vector, shards = self._taken()
        if vector.stale(shards):
            raise DirectionError(
                "v is from before the parameters changed, so its products cannot add up to |v|; check right after take(), "
                "before the optimizer's step."
            )
        given = [checked(batch) for batch in micro_batches]
        passes, methods = self._passes(logprobs, given, shards), self._methods(vector, shards)
        rows = self._spread(shards)
        found: Check | None = None
        settled = self._choice.brief(given) if brief else None
        if settled is not None:
            found = brief_check(settled, passes, methods, vector, rows=rows, verify=self._choice.verifies)
        if found is None:
            found = best_check(self._choice.candidates(given), passes, methods, vector, rows=rows, band=self._band)
            self._band.judge(found)
        self.checked = found
        self._choice.settle(found.method)
        return found

    def _taken(self) -> tuple[Vector, list[Shard]]:
        if self._vector is None:
            raise DirectionError("no direction was taken: run the validation batch's backward, then call take().")
        shards = self._shards()
        self._vector.check_places(shards)
        return self._vector, shards

    def _synchronize(self) -> None:
        self._reshard()
        self._derive()

    def _shards(self) -> list[Shard]:
        # What FSDP2 left whole after a forward lists no shard.
        self._reshard()
        found = model_shards(self._model) if self._model is not None else engine_shards(self._parameters)
        return list(found)

    def _passes(
        self, logprobs: LogProbs, given: Sequence[MicroBatch], shards: Sequence[Shard], *, watch: bool = False
    ) -> Passes:
        return Passes(logprobs, given, self._model, {s.weight.device for s in shards}, watch=watch)

    def _methods(self, vector: Vector, shards: Sequence[Shard]) -> Methods:
        assert self._step is not None
        return Methods(
            self._model, shards, vector, self._step,
            masters=self._masters, synchronize=self._synchronize, offload=self._offload,
        )  # fmt: skip

    def _sharers(self, shards: Sequence[Shard]) -> Any:
        return widest_mesh(shards) or (self._group if self._model is None else None)

    def _spread(self, shards: Sequence[Shard]) -> Any:
        """The ranks that have rows of their own."""
        return self._sharers(shards) if self._group is None else self._group
