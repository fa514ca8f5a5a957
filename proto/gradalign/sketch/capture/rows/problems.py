"""Which problem each row of an activation belongs to, inside a capture."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, peek_interpreter_stack

from gradalign.errors import SketchError
from gradalign.sketch.capture.rows.followed import Call, called, flat, operands
from gradalign.sketch.capture.rows.memory import RowTags
from gradalign.sketch.capture.rows.rules import rule_of
from gradalign.sketch.capture.rows.tags import CONSTANT, FREE, Followed, Lost, Tag, spread_out

__all__ = ["Groups", "ProblemRows"]


@dataclass(frozen=True)
class Groups:
    """Rows gathered by problem.

    Attributes:
        order: LongTensor that sorts the rows by problem, or None where they lie so already.
        bounds: rows `bounds[p]` to `bounds[p + 1]` of the sorted rows are problem p's; rows behind the last bound
            belong to no problem.
        ids: LongTensor, problem of each row as the rows lie; the number of problems stands for none.
        size: number of rows of every problem where all have the same number and no row is left over, else None.
    """

    order: Tensor | None
    bounds: list[int]
    ids: Tensor
    size: int | None

    @property
    def complete(self) -> bool:
        """Whether every row belongs to a problem."""
        return self.bounds[-1] == len(self.ids)

    @classmethod
    def of(cls, ids: Tensor, problems: int) -> Groups:
        """Group rows by their ids, LongTensor [n] in [-1, problems)."""
        ids = torch.where(ids < 0, problems, ids)
        counts = torch.bincount(ids, minlength=problems + 1).tolist()
        order = None if bool((ids[1:] >= ids[:-1]).all()) else torch.argsort(ids, stable=True)
        bounds = [0]
        for count in counts[:problems]:
            bounds.append(bounds[-1] + count)
        even = counts[0] if len(set(counts[:problems])) == 1 and not counts[problems] else None
        return cls(order, bounds, ids, even)

    @classmethod
    def even(cls, problems: int, each: int, device: torch.device) -> Groups:
        """As many rows of every problem, one problem behind the other."""
        bounds = [each * problem for problem in range(problems + 1)]
        return cls(None, bounds, torch.arange(problems, device=device).repeat_interleave(each), each)

    def sort(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] gathered by problem; the same tensor where they lie so already."""
        return rows if self.order is None else rows.index_select(0, self.order)

    def sum(self, values: Tensor) -> Tensor:
        """Sums of the rows [n, ...] over each problem; [problems, ...]."""
        problems = len(self.bounds) - 1
        if self.size is not None and self.order is None:
            folded: Tensor = values.unflatten(0, (problems, self.size))
            return folded.sum(1)
        total = values.new_zeros(problems + 1, *values.shape[1:])
        total.index_add_(0, self.ids, values)
        return total[:problems]


class ProblemRows(RowTags):
    """Follows the rows of a batch through the operations of a model.

    What the block did not make is read by its shape (`RowTags`); what it made is what its rule in `rows.rules` says.

    Args:
        index: LongTensor [B] (problem of each row) or [B, T] (of each token); -1 for none.
        problems: number of problems.
        constants: tensors that hold no rows whatever their shapes: the buffers of the model.
    """

    def __init__(self, index: Tensor, problems: int, constants: Collection[Tensor] = ()) -> None:
        self._problems = problems
        self._groups: dict[Any, tuple[Followed, Groups]] = {}
        self._reordered = self._used = ""
        self.spreads = False  # whether rows at shared positions were laid out once for each row of the batch
        super().__init__(index, constants)

    def _place(self, index: Tensor) -> None:
        super()._place(index)
        self._groups.clear()

    # What a use asks for.

    def shares(self, index: Tensor) -> bool:
        """Whether look-up indices are positions that all rows of the batch share, [T] or [1, T]."""
        lengths = [self._index.shape[1]] if self.packed else self._lengths
        if not index.ndim or index.shape[:-1] not in ((), (1,)) or index.shape[-1] not in lengths:
            return False
        if self.is_input(index) and index.ndim == 1 and self.leads(index.shape):
            raise SketchError(
                f"capture cannot tell whether look-up indices of shape {tuple(index.shape)} are one a row or one a "
                "position, since the batch has as many rows as positions; give the indices as [B, T], or another number "
                "of rows."
            )
        return self.tag(index) is CONSTANT

    def spread(self, index: Tensor) -> Tensor:
        """Positions that all rows share, [T] or [1, T], once for each row: [B, T]."""
        self.spreads |= index.ndim == 1
        return self._put(index.expand(len(self._index), index.shape[-1]), self._base)

    def of_batch(self, features: Tensor) -> Tensor:
        """A view of features that all rows share, [...], with the batch's rows in front: [B, ...]."""
        self.spreads = True
        return self._put(features.expand(len(self._index), *features.shape), self._base)

    def groups(self, activation: Tensor, features: int, what: str) -> Groups:
        """The groups of the rows of `activation`, all axes but the last `features` taken as rows.

        Raises:
            SketchError: it cannot be told which problem a row belongs to; `what` names the parameter in the message.
        """
        self._used = what
        tag = self.tag(activation)
        shape = activation.shape[: activation.ndim - features]
        if (
            tag is CONSTANT
            and self.leads(shape)
            and not self.is_input(activation)
            and len(self._index) not in self._lengths
        ):
            tag = self._of_shape(activation)  # such as the first state of a recurrence
            self._put(activation, tag)
        if not isinstance(tag, Followed):
            raise self._refusal(
                activation, what, f"after {tag.why}" if isinstance(tag, Lost) else "of a tensor made of none"
            )
        if tag.axes and tag.axes[-1] >= len(shape):
            raise self._refusal(activation, what, "of several problems in one row")
        key = (id(tag.ids), tag.axes, shape, activation.device)
        if key in self._groups:
            return self._groups[key][1]
        if tag.ids is not self._index and bool((tag.ids == FREE).any()):
            raise self._refusal(activation, what, "of padding, which belongs to none")
        groups = Groups.of(spread_out(tag, shape).flatten(), self._problems)
        if tag.stable:
            self._groups[key] = tag, groups
        return groups

    def _refusal(self, activation: Tensor, what: str, why: str) -> SketchError:
        return SketchError(
            f"{what} is used on an activation of shape {tuple(activation.shape)}, and capture cannot tell which "
            f"problem its rows belong to {why} (problem_index has shape {tuple(self._index.shape)}). Keep rows of the batch "
            "apart and in order until then, give problem_index as [B] for rows that stay whole, or sketch this model "
            "problem by problem with from_grads()."
        )

    def _elsewhere(self, tensor: Tensor, tag: Tag) -> bool:
        """Whether a tensor looks as if it lay in the order of the batch, and does not."""
        if not isinstance(tag, Followed) or tag.same(self._base) or not self.leads(tensor.shape):
            return False
        if tag.axes and tag.axes[-1] >= self._index.ndim:
            return True
        return not torch.equal(spread_out(tag, self._index.shape), self._index)

    def _any_elsewhere(self, call: Call) -> bool:
        return any(self._elsewhere(t, call.tag(t)) for t in operands(call))

    def _mixes(self, call: Call, result: Tensor) -> bool:
        """Whether a known operation mixed rows that take a gradient, and its result looks like rows of the batch still."""
        tensors = operands(call)
        rule = rule_of(call.func)
        if rule is None or not result.requires_grad or not self.leads(result.shape):
            return False
        if any(isinstance(self.tag(t), Lost) or t.ndim > result.ndim for t in tensors if t is not result):
            return False
        call.forgiven = {id(t) for t in tensors if not t.requires_grad}
        return isinstance(self._by(rule, call), Lost)

    def _check_order(self, call: Call) -> None:
        """Refuse a loss of rows that were mixed or reordered: `problem_index` may mean where they lie or came from."""
        for tensor in operands(call):
            tag = self.tag(tensor)
            if tensor.requires_grad and (tag.reordered if isinstance(tag, Lost) else self._elsewhere(tensor, tag)):
                after = tag.why if isinstance(tag, Lost) else self._reordered or "an operation"
                raise SketchError(
                    f"the loss sums up an activation of shape {tuple(tensor.shape)} whose rows no longer lie as the "
                    f"batch's do after {after}, and {self._used or 'a parameter'} was used "
                    "before: capture cannot tell whether problem_index means where a row lies or where it came from. "
                    "Put the rows back in order before the loss, reorder the batch before the with block, or sketch this "
                    "model problem by problem with from_grads()."
                )

    # Following rows through operations.

    def follow(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Tag the result of an operation."""
        kind = type(result)
        if kind is not Tensor and not isinstance(result, (Tensor, tuple, list)):
            if result is not None or func in _READS:
                self._note(func, args)
                return
            if not args or not isinstance(args[0], Tensor) or func not in _WRITES:
                return
        elif kind is torch.Size or (kind in (tuple, list) and not (result and isinstance(result[0], Tensor))):
            self._note(func, args)
            return
        if func in _INPUTS:
            return
        if peek_interpreter_stack() is not None:
            self._note_mapped(args)
        call = Call(self, func, args, kwargs, result)
        tag = self._after(call)
        if isinstance(result, Tensor):
            tag = self._ordered(call, result, tag)
        if result is None or call.in_place or "out" in kwargs:
            self._written(args[0] if result is None else result, tag)
            return
        tags = tag if isinstance(tag, list) else [tag] * (1 if isinstance(result, Tensor) else len(result))
        for out, its in zip([result] if isinstance(result, Tensor) else result, tags, strict=True):
            if isinstance(out, Tensor):
                self._put(out, its)
        if func in _ALIASES:
            setattr(result, self._alias, ref(args[0]))

    def _ordered(self, call: Call, result: Tensor, tag: Tag) -> Tag:
        """The tag, after a look at whether rows lie in another order than they look to lie in."""
        if not result.ndim and result.requires_grad:
            self._check_order(call)
        elif isinstance(tag, Lost):
            elsewhere = not tag.reordered and (self._any_elsewhere(call) or self._mixes(call, result))
            return Lost(tag.why, reordered=True) if elsewhere else tag
        elif self._elsewhere(result, tag) and not self._any_elsewhere(call):
            self._reordered = called(call.func, call.args, call.kwargs)
        return tag

    def _after(self, call: Call) -> Any:
        rule = rule_of(call.func)
        found = self._by(rule, call)
        if not isinstance(found, Lost):
            return found
        # A tensor that takes no gradient carries none to another problem.
        tensors = operands(call)
        forgiven = {id(t) for t in tensors if not t.requires_grad and (self.packed or self.is_input(t))}
        if (
            rule is None
            or not forgiven
            or not any(isinstance(self.tag(t), Followed) for t in tensors if id(t) not in forgiven)
        ):
            return found
        call.forgiven = forgiven
        return self._by(rule, call)

    def _by(self, rule: Any, call: Call) -> Any:
        if rule is None:
            tags = [call.tag(t) for t in operands(call)]
            lost = next((t for t in tags if isinstance(t, Lost)), None)
            return lost or (CONSTANT if all(t is CONSTANT for t in tags) else call.lost())
        try:
            return rule(call)
        except (TypeError, ValueError, IndexError, RuntimeError, AssertionError, AttributeError, KeyError):
            return call.lost()

    def copy(self, source: Tensor, result: Tensor) -> None:
        """Give `result` the tag of `source`: its rows lie in the same way."""
        self._put(result, self.tag(source))

    def constant(self, tensor: Tensor) -> None:
        """Note that a tensor is made of no row: of parameters alone."""
        self._put(tensor, CONSTANT)

    def _note(self, func: Any, args: tuple[Any, ...]) -> None:
        """Values of rows that leave torch may come back in any order."""
        if func in _READS and not self._read_out and args and isinstance(args[0], Tensor):
            tag = self.tag(args[0])
            if isinstance(tag, Followed) and tag.axes:
                self._read_out = called(func, (), {})

    def _note_mapped(self, args: tuple[Any, ...]) -> None:
        """Rows that torch.vmap maps over come back in an order that no operation tells."""
        inside = [a for a in flat(args) if isinstance(a, Tensor)]
        while inside := [get_unwrapped(a) for a in inside if is_functorch_wrapped_tensor(a)]:
            tags = [self.tag(a) for a in inside if a.dtype is not torch.bool]  # a mask is no row to look up
            if any(isinstance(t, Followed) and t.axes for t in tags):
                self._mapped = True


_T = torch.Tensor
_ALIASES = {_T.detach, _T.data.__get__, torch.detach}  # type: ignore[attr-defined]
_READS = {_T.numpy, _T.tolist, _T.__array__}
_WRITES = {_T.__setitem__, _T.data.__set__}  # type: ignore[attr-defined]
_INPUTS = {torch.tensor, torch.as_tensor, torch.asarray, torch.randint, torch.rand, torch.randn}
