"""What products of tensors do to the rows of a batch: axes are labelled as in an einsum, and those not in the result mix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gradalign.sketch.capture.rows.followed import Call, combined, operands
from gradalign.sketch.capture.rows.tags import CONSTANT, Followed, Lost, Tag, apart, moved

__all__ = ["CONTRACTIONS"]

_Labels = Sequence[Any]


def _contracted(call: Call, parts: Sequence[tuple[Tensor, _Labels]], out: _Labels) -> Tag:
    """The tag of a product, its operands' axes labelled."""
    places = {label: axis for axis, label in enumerate(out)}
    attends = call.packed and len(parts) > 1 and isinstance(left := call.tag(parts[0][0]), Followed) and left
    tags: list[Tag] = []
    for at, (tensor, labels) in enumerate(parts):
        tag = call.tag(tensor)
        if not isinstance(tag, Followed):
            tags.append(tag)
            continue
        axes = [places.get(label) for label in labels]
        summed = [a for a in tag.axes if axes[a] is None]
        rest = apart(tag, summed) if summed else tag
        if (
            rest is None
            and at
            and attends
            and attends.scores
            and summed == [a for a in tag.axes if a == tensor.ndim - 2]
        ):
            continue  # values that the scores weigh
        if rest is None:
            return call.lost()
        tags.append(moved(rest, axes))
    found = combined(call, tags)
    if isinstance(found, Lost) and attends and _keys(parts, tags, out):
        first = tags[0]
        assert isinstance(first, Followed)
        return Followed(first.ids, first.axes, first.stable, scores=True)
    return found


def _keys(parts: Sequence[tuple[Tensor, _Labels]], tags: Sequence[Tag], out: _Labels) -> bool:
    """Whether two operands of a packed batch meet as queries and keys: rows of one, columns of the other."""
    two = [t for t in tags if isinstance(t, Followed)]
    last = len(out) - 1
    return (
        len(parts) == len(two) == len(tags) == 2
        and last - 1 in two[0].axes
        and last not in two[0].axes
        and last in two[1].axes
        and last - 1 not in two[1].axes
        and two[0].ids.shape == two[1].ids.shape
    )


def _product(call: Call, one: Tensor, other: Tensor) -> Tag:
    """matmul: batches broadcast, the last axis of one against the last but one of the other."""
    batch = max(one.ndim, other.ndim, 2) - 2
    ours = [("batch", i) for i in range(batch)]
    left = [*ours[batch - max(0, one.ndim - 2) :], *(["row"] if one.ndim > 1 else []), "inner"]
    right = [*ours[batch - max(0, other.ndim - 2) :], "inner", *(["column"] if other.ndim > 1 else [])]
    out = [*ours, *(["row"] if one.ndim > 1 else []), *(["column"] if other.ndim > 1 else [])]
    return _contracted(call, [(one, left), (other, right)], out)


def _matmul(call: Call) -> Tag:
    if call.name == "__rmatmul__":
        return _product(call, call.args[1], call.args[0])
    return _product(call, call.get(0, "input", "self"), call.get(1, "other", "mat2", "vec", "tensor"))


def _added(call: Call) -> Tag:
    """A tensor and a product: addmm, baddbmm, addmv."""
    plus, one, other = call.get(0, "input"), call.get(1, "mat1", "batch1", "mat"), call.get(2, "mat2", "batch2", "vec")
    product = _product(call, one, other)
    tag = call.tag(plus)
    tag = tag.shifted(call.out.ndim - plus.ndim) if isinstance(tag, Followed) else tag
    if isinstance(product, Followed) and product.scores and isinstance(tag, Followed):
        return product if product.same(tag) else call.lost()
    return combined(call, [product, tag])


def _linear(call: Call) -> Tag:
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    lead = list(range(x.ndim - 1))
    parts: list[tuple[Tensor, _Labels]] = [(x, [*lead, "in"]), (weight, ["out", "in"] if weight.ndim > 1 else ["in"])]
    out = [*lead, "out"] if weight.ndim > 1 else lead
    if isinstance(bias, Tensor) and bias.ndim == 1:
        parts.append((bias, ["out"]))
    return _contracted(call, parts, out)


def _einsum(call: Call) -> Tag:
    equation, given = call.args[0], call.args[1:]
    if not isinstance(equation, str):
        return call.lost()
    tensors = list(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else list(given)
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_letters(term, t.ndim) for term, t in zip(left.split(","), tensors, strict=True)]
    most = max((t for term in terms for t in [sum(isinstance(x, int) for x in term)]), default=0)
    if arrow:
        out = _letters(right, call.out.ndim)
    else:
        letters = [x for term in terms for x in term if isinstance(x, str)]
        out = [*range(-most, 0), *sorted(x for x in set(letters) if letters.count(x) == 1)]
    if any(len(set(term)) < len(term) for term in terms):
        return combined(call, [call.lost() if isinstance(call.tag(t), Followed) else call.tag(t) for t in tensors])
    return _contracted(call, list(zip(tensors, terms, strict=True)), out)


def _letters(term: str, axes: int) -> list[Any]:
    """The labels of a term; those of an ellipsis are numbers from the right."""
    if "..." not in term:
        return list(term)
    before, _, after = term.partition("...")
    return [*before, *range(-(axes - len(before) - len(after)), 0), *after]


def _dot(call: Call) -> Tag:
    return _contracted(call, [(call.args[0], ["i"]), (call.args[1], ["i"])], [])


def _outer(call: Call) -> Tag:
    return _contracted(call, [(call.args[0], ["i"]), (call.args[1], ["j"])], ["i", "j"])


def _distances(call: Call) -> Tag:
    """cdist: rows of one against rows of the other."""
    one, other = call.args[:2]
    ours = [("batch", i) for i in range(call.out.ndim - 2)]
    left = [*ours[len(ours) - (one.ndim - 2) :], "row", "in"]
    right = [*ours[len(ours) - (other.ndim - 2) :], "column", "in"]
    return _contracted(call, [(one, left), (other, right)], [*ours, "row", "column"])


def _attention(call: Call) -> Tag:
    """scaled_dot_product_attention: the tokens of keys and values mix, batches and heads do not."""
    query, key, value = call.get(0, "query"), call.get(1, "key"), call.get(2, "value")
    mask = call.get(3, "attn_mask")
    first = call.tag(query)
    if call.packed and isinstance(first, Followed):
        tags = [call.tag(t) for t in (key, value)]
        lost = next((t for t in tags if isinstance(t, Lost)), None)
        within = all(t is CONSTANT or (isinstance(t, Followed) and t.ids.shape == first.ids.shape) for t in tags)
        return lost or (first if within and query.ndim - 1 not in first.axes else call.lost())
    ours = [("batch", i) for i in range(query.ndim - 2)]
    parts: list[tuple[Tensor, _Labels]] = [
        (query, [*ours, "to", "in"]),
        (key, [*ours, "from", "in"]),
        (value, [*ours, "from", "out"]),
    ]
    if isinstance(mask, Tensor):
        around = [*ours, "to", "from"]
        parts.append((mask, around[len(around) - mask.ndim :]))
    return _contracted(call, parts, [*ours, "to", "out"])


def _solved(call: Call) -> Tag:
    """Solves, inverses and the like of matrices: all of the last two axes mixes, and batches broadcast."""
    tags: list[Tag] = []
    tensors = operands(call)
    if any(t.ndim < 2 for t in tensors) or len({t.ndim for t in tensors}) > 1:
        return call.lost()  # a solve for vectors
    for tensor in tensors:
        tag = call.tag(tensor)
        rest = apart(tag, (tensor.ndim - 2, tensor.ndim - 1)) if isinstance(tag, Followed) else tag
        tags.append(rest or call.lost())
    return combined(call, tags)


_NAMED: list[tuple[Callable[[Call], Tag], str]] = [
    (_matmul, "matmul mm bmm mv __matmul__ __rmatmul__"),
    (_added, "addmm baddbmm addmv"),
    (_linear, "linear"),
    (_einsum, "einsum"),
    (_dot, "dot vdot"),
    (_outer, "outer ger"),
    (_distances, "cdist"),
    (
        _solved,
        "solve_triangular solve inv inverse cholesky cholesky_inverse cholesky_solve matrix_exp matrix_power pinv",
    ),
    (_attention, "scaled_dot_product_attention"),
]
CONTRACTIONS: dict[str, Callable[[Call], Tag]] = {name: rule for rule, names in _NAMED for name in names.split()}
