"""One call of a torch operation, as the rules of `gradalign.sketch.capture.rows.rules` look at it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from gradalign.sketch.capture.rows.tags import CONSTANT, Followed, Lost, Tag, agree

__all__ = ["Call", "Tags", "called", "combined", "flat", "operands", "writes"]


class Tags(Protocol):
    """Knows the tags of the tensors of a capture."""

    memo: dict[Any, Any]

    @property
    def packed(self) -> bool:
        """Whether rows hold tokens of several problems."""

    def tag(self, tensor: Tensor) -> Tag:
        """What is known of the rows of a tensor."""

    def tag_before(self, tensor: Tensor) -> Tag:
        """What was known of them before the call that has just written into it."""


def flat(values: Iterable[Any]) -> list[Any]:
    """The values with the lists and tuples among them opened, one level deep."""
    found: list[Any] = []
    for value in values:
        found.extend(value if isinstance(value, (tuple, list)) else (value,))
    return found


class Call:
    """A call and its result.

    Args:
        tags: of the tensors of the capture.
        func: the operation, by `name`.
        args: of the call.
        kwargs: of the call; `out` is no operand.
        result: of the call.
    """

    __slots__ = ("_into", "_tags", "args", "forgiven", "func", "in_place", "kwargs", "memo", "name", "packed", "result")

    def __init__(self, tags: Tags, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self._tags, self.func, self.args, self.kwargs, self.result = tags, func, args, kwargs, result
        self.name, self.memo, self.packed = _name(func), tags.memo, tags.packed
        self.forgiven: set[int] = set()
        self.in_place = writes(func)
        self._into = args[0] if self.in_place else None

    @property
    def out(self) -> Tensor:
        """The result, or the first of several; what is written into, where the call gives nothing."""
        found = self.args[0] if self.result is None else self.result
        out: Tensor = found[0] if isinstance(found, (tuple, list)) else found
        return out

    def tag(self, tensor: Tensor) -> Tag:
        """What is known of the rows of an operand."""
        if id(tensor) in self.forgiven:
            return CONSTANT
        return self._tags.tag_before(tensor) if tensor is self._into else self._tags.tag(tensor)

    def get(self, at: int, *names: str, default: Any = None) -> Any:
        """An argument by its place or one of its names."""
        if len(self.args) > at:
            return self.args[at]
        return next((self.kwargs[n] for n in names if n in self.kwargs), default)

    def dims(self, at: int, default: Any, *names: str) -> list[int]:
        """The axes of the first operand that an argument names, counted from the left; all for None."""
        source = self.args[0] if self.args else self.kwargs["input"]
        given = self.get(at, *names, default=default)
        ndim = max(1, source.ndim)
        if given is None:
            return list(range(ndim))
        return [d % ndim for d in ([given] if isinstance(given, int) else list(given))] or list(range(ndim))

    def key(self, tag: Followed, source: Tensor) -> Any:
        """What the rule's answer depends on, or None where that cannot be told."""
        rest = (*self.args[1:], *sorted(self.kwargs.items()))
        frozen = tuple(_frozen(a) for a in rest)
        if any(f is None for f in frozen):
            return None
        return self.name, id(tag.ids), tag.axes, tag.scores, source.shape, frozen

    def lost(self) -> Lost:
        """The tag of a result whose rows this call may have mixed."""
        return Lost(called(self.func, self.args, self.kwargs))


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        parts = tuple(_frozen(v) for v in value)
        return None if any(p is None for p in parts) else ("list", *parts)
    if isinstance(value, slice):
        return _frozen(("slice", str(value.start), str(value.stop), str(value.step)))
    if isinstance(value, (int, str)):
        return type(value), value
    return repr(value) if value is None or value is Ellipsis else None


def writes(func: Any) -> bool:
    """Whether a call writes into its first argument; others may give that back where they have nothing to do."""
    name: str = getattr(func, "__name__", "").partition(".")[0]
    if name.endswith("__"):
        return name in ("__setitem__", "__set__") or name in _AUGMENTED
    return name.endswith("_")


_AUGMENTED = frozenset(
    f"__i{name}__"
    for name in [
        "add",
        "and",
        "div",
        "floordiv",
        "lshift",
        "mod",
        "mul",
        "or",
        "pow",
        "rshift",
        "sub",
        "truediv",
        "xor",
        "matmul",
    ]
)


def _name(func: Any) -> str:
    name: str = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        name = getattr(func.__self__, "__name__", name)
    name = name.partition(".")[0]
    return name.removesuffix("_") if not name.endswith("__") else name


_WRITTEN = {"__getitem__": "x[key]", "__setitem__": "x[key] = value"}
_DIM_FIRST = frozenset(
    [
        "softmax",
        "log_softmax",
        "softmin",
        "cumsum",
        "cumprod",
        "cummax",
        "cummin",
        "logcumsumexp",
        "sort",
        "argsort",
        "sum",
        "mean",
        "std",
        "var",
        "amax",
        "amin",
        "max",
        "min",
        "any",
        "all",
        "argmax",
        "argmin",
        "logsumexp",
        "prod",
        "median",
        "stack",
        "cat",
        "unbind",
        "nansum",
    ]
)


def called(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A call as a reader would write it, without its tensors: `cumsum(dim=0)`."""
    name = _name(func)
    if getattr(func, "__name__", "") == "__get__":
        return name
    if name in _WRITTEN:
        return _WRITTEN[name]
    given = [a for a in args if not _holds_tensor(a)]
    words = [repr(a) for a in given]
    if (
        name in _DIM_FIRST
        and len(args) > 1
        and isinstance(args[1], (int, tuple, list))
        and not isinstance(args[1], bool)
    ):
        words[0] = f"dim={words[0]}"
    words += [
        f"{k}={v!r}" for k, v in kwargs.items() if not _holds_tensor(v) and not k.startswith("_") and v is not None
    ]
    return f"{name}({', '.join(words)})"


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value))


def operands(call: Call) -> list[Tensor]:
    """The tensors of a call, those in lists included."""
    rest = [v for k, v in call.kwargs.items() if k != "out"] if call.kwargs else ()
    return [a for a in flat((*call.args, *rest)) if isinstance(a, Tensor)]


def combined(call: Call, tags: Iterable[Tag]) -> Tag:
    """The tag of what depends on all of these, axes taken as the same."""
    found: Tag = CONSTANT
    for tag in tags:
        if tag is CONSTANT or tag is found:
            continue
        if isinstance(tag, Lost):
            return tag
        if isinstance(found, Followed) and isinstance(tag, Followed):
            both = agree(found, tag)
            if both is None:
                return call.lost()
            found = both
        else:
            found = tag
    return found
