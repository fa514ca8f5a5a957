"""What each of torch's operations does to the rows of a batch: one rule for each name, in the tables below.

A rule gets a `Call` and gives the tag of its result, or a list of tags for a result of several tensors. An operation
that stands in no table may have mixed rows: its result is `Lost`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from gradalign.sketch.capture.rows.contractions import CONTRACTIONS
from gradalign.sketch.capture.rows.followed import Call, combined, flat, operands
from gradalign.sketch.capture.rows.tags import CONSTANT, FREE, Followed, Lost, Tag, apart, moved, spread_out, together

__all__ = ["RULES", "Rule", "rule_of"]

Rule = Callable[[Call], Any]


def _pointwise(call: Call) -> Tag:
    """Each element of the result depends on those of the operands that broadcasting puts beside it."""
    axes = call.out.ndim
    return combined(call, [_beside(call, t, axes) for t in operands(call)])


def _beside(call: Call, tensor: Tensor, axes: int) -> Tag:
    tag = call.tag(tensor)
    return tag.shifted(axes - tensor.ndim) if isinstance(tag, Followed) and tensor.ndim != axes else tag


def _constant(call: Call) -> Tag:  # noqa: ARG001 - all rules share one signature
    """A new tensor, of no row."""
    return CONSTANT


def _in_place(call: Call) -> Tag:
    """Axes of the result are those of the first operand, counted from the left, as far as rows are concerned."""
    return call.tag(call.args[0])


def _within_rows(call: Call) -> Tag:
    """Windows, channels and the like: the first axis stays, all others may mix."""
    tags: list[Tag] = [call.tag(t) for t in operands(call)]
    first = next((t for t in tags if isinstance(t, Followed)), CONSTANT)
    tag = combined(call, [*(t for t in tags if not isinstance(t, Followed)), first])
    if not isinstance(tag, Followed):
        return tag
    others = [t for t in tags if isinstance(t, Followed) and not t.same(tag)]
    left = apart(tag, [a for a in tag.axes if a > 0])
    return call.lost() if left is None or others or call.out.ndim != call.args[0].ndim else left


def _along(at: int, default: Any, *names: str) -> Rule:
    """All elements along some axes are mixed, and keep their places."""

    def rule(call: Call) -> Tag:
        tag = combined(call, [call.tag(t) for t in operands(call)])
        if not isinstance(tag, Followed):
            return tag
        return apart(tag, call.dims(at, default, *names)) or call.lost()

    return rule


def _last(at: int, name: str) -> Rule:
    """The last axes are mixed, as many as the argument has numbers."""

    def rule(call: Call) -> Tag:
        given = call.get(at, name)
        tag = call.tag(call.args[0] if call.args else call.kwargs["input"])
        count = len(given) if isinstance(given, (tuple, list)) else 1
        if not isinstance(tag, Followed):
            return tag
        return apart(tag, range(call.out.ndim - count, call.out.ndim)) or call.lost()

    return rule


def _reduced(at: int, *names: str) -> Rule:
    """Some axes, or all, are mixed and dropped or left with one element."""

    def rule(call: Call) -> Tag:
        if any(isinstance(a, Tensor) for a in call.args[1:]):
            return _pointwise(call)
        source = call.args[0] if call.args else call.kwargs["input"]
        tag = call.tag(source)
        if not isinstance(tag, Followed):
            return tag
        dims = call.dims(at, None, *names)
        left = apart(tag, dims)
        if left is None:
            return call.lost()
        if call.out.ndim == source.ndim:
            return left
        return moved(left, [None if a in dims else a - sum(d < a for d in dims) for a in range(source.ndim)])

    return rule


def _shifted(at: int, *names: str) -> Rule:
    """Elements change places along some axes, or along all of them read as one."""

    def rule(call: Call) -> Tag:
        tag = call.tag(call.args[0])
        if isinstance(tag, Followed) and set(tag.axes) & set(call.dims(at, None, *names)):
            return call.lost()
        return tag

    return rule


def _renormed(call: Call) -> Tag:
    """All but one axis are mixed."""
    tag, dim = call.tag(call.args[0]), call.get(2, "dim") % call.out.ndim
    return (apart(tag, [a for a in tag.axes if a != dim]) or call.lost()) if isinstance(tag, Followed) else tag


def _cut(at: int, default: int | None, *names: str) -> Rule:
    """Pieces along an axis."""

    def rule(call: Call) -> Tag:
        tag = call.tag(call.args[0])
        return call.lost() if isinstance(tag, Followed) and set(tag.axes) & set(call.dims(at, default, *names)) else tag

    return rule


def _viewed(call: Call) -> Any:
    """The same operation on the ids, which are a view that takes no memory; so strides say where the rows went."""
    source, tag = call.args[0], call.tag(call.args[0])
    if not isinstance(tag, Followed) or not tag.axes:
        return tag
    key = call.key(tag, source)
    known = call.memo.get(key) if key else None
    if known is not None:
        return known[1]
    result = call.func(spread_out(tag, source.shape), *call.args[1:], **call.kwargs)
    many = isinstance(result, (tuple, list))
    tags = [together(r, range(r.ndim), tag, view=True) for r in (result if many else [result])]
    found = tags if many else tags[0]
    if key and tag.stable:
        call.memo[key] = tag, found
    return found


def _reshaped(call: Call) -> Tag:
    """Axes are folded or unfolded; only the blocks of axes that the rows lie in are written out."""
    source, tag = call.args[0], call.tag(call.args[0])
    out = call.out
    if not isinstance(tag, Followed) or not tag.axes:
        return tag
    leading = tag.axes[-1] + 1
    if source.shape[:leading] == out.shape[:leading]:
        return tag
    key = (call.name, id(tag.ids), tag.axes, tag.scores, source.shape, out.shape)
    if key in call.memo:
        known: Tag = call.memo[key][1]
        return known
    if not source.numel() or source.numel() != out.numel():
        return call.lost()
    before, after, axes = [], [], []
    for mine, its in _blocks(source.shape, out.shape):
        if set(mine) & set(tag.axes):
            before += mine
            after += [out.shape[a] for a in its]
            axes += its
    found = together(spread_out(tag, source.shape, before).reshape(after), axes, tag)
    if tag.stable:
        call.memo[key] = tag, found
    return found


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """The smallest runs of axes of two shapes that hold as many elements."""
    i = j = 0
    while i < len(before) or j < len(after):
        mine, its = list(range(i, min(i + 1, len(before)))), list(range(j, min(j + 1, len(after))))
        i, j = i + len(mine), j + len(its)
        while (mine_size := prod(before[a] for a in mine)) != (its_size := prod(after[a] for a in its)):
            if mine_size < its_size:
                mine.append(i)
                i += 1
            else:
                its.append(j)
                j += 1
        yield mine, its


def _repeated(call: Call) -> Tag:
    """Tensor.repeat: all of it, several times along each axis."""
    tag, times = call.tag(call.args[0]), flat(call.args[1:])
    if not isinstance(tag, Followed):
        return tag
    tag = tag.shifted(len(times) - call.args[0].ndim)
    again = [times[a] for a in tag.axes]
    return tag if set(again) <= {1} else Followed(tag.ids.repeat(*again), tag.axes, scores=tag.scores)


def _interleaved(call: Call) -> Tag:
    tag, dim = call.tag(call.args[0]), call.get(2, "dim")
    if not isinstance(tag, Followed) or dim is None:
        return call.lost() if isinstance(tag, Followed) else tag
    dim %= call.args[0].ndim
    if dim not in tag.axes:
        return tag
    return Followed(tag.ids.repeat_interleave(call.get(1, "repeats"), tag.axes.index(dim)), tag.axes)


def _index_selected(call: Call) -> Tag:
    tag, dim, index = call.tag(call.args[0]), call.get(1, "dim"), call.get(2, "index")
    if not isinstance(tag, Followed) or dim % call.args[0].ndim not in tag.axes:
        return tag
    return Followed(tag.ids.index_select(tag.axes.index(dim % call.args[0].ndim), index.flatten()), tag.axes)


def _indexed(call: Call) -> Tag:
    """`x[key]`: the ids at the same key."""
    source, key = call.args
    tag = call.tag(source)
    if not isinstance(tag, Followed):
        return tag
    keys = key if isinstance(key, tuple) else (key,)
    if all(isinstance(k, (slice, int, type(None), type(Ellipsis))) for k in keys):
        return _viewed(call)  # type: ignore[no-any-return]
    keys = tuple(k for k in _explicit(keys, source.ndim))
    used = sum(_taken(k) for k in keys)
    leading = max(used, tag.axes[-1] + 1 if tag.axes else 0)
    ids = spread_out(tag, source.shape[:leading])[keys]
    return together(ids, range(ids.ndim), Followed(tag.ids, tag.axes))


def _explicit(keys: Sequence[Any], axes: int) -> Iterable[Any]:
    """The keys with slices in place of an ellipsis."""
    for key in keys:
        if key is Ellipsis:
            yield from [slice(None)] * (axes - sum(_taken(k) for k in keys))
        else:
            yield key


def _taken(key: Any) -> int:
    """How many axes of the source a key stands for."""
    if key is None or key is Ellipsis or isinstance(key, bool):
        return 0
    return key.ndim if isinstance(key, Tensor) and key.dtype in (torch.bool, torch.uint8) else 1


def _masked(call: Call) -> Tag:
    """masked_select: the elements at a mask."""
    source, mask = call.args[0], call.get(1, "mask")
    tag = call.tag(source)
    if not isinstance(tag, Followed):
        return tag
    ids = torch.masked_select(spread_out(tag, source.shape), mask)
    return together(ids, range(ids.ndim), Followed(tag.ids, tag.axes))


def _joined(call: Call) -> Tag:
    return _concatenated(call, list(call.get(0, "tensors")), call.get(1, "dim", default=0), new=False)


def _stacked(call: Call) -> Tag:
    return _concatenated(call, list(call.get(0, "tensors")), call.get(1, "dim", default=0), new=True)


def _concatenated(call: Call, tensors: list[Tensor], dim: int, *, new: bool) -> Tag:
    tensors = [t for t in tensors if t.numel()] if not new else tensors  # a cache that holds nothing yet
    dim %= call.out.ndim
    tags = [call.tag(t) for t in tensors]
    lost = next((t for t in tags if isinstance(t, Lost)), None)
    known = [t for t in tags if isinstance(t, Followed)]
    if lost or not known:
        return lost or CONSTANT
    if new:
        known = [moved(t, [a + (a >= dim) for a in range(call.out.ndim - 1)]) for t in known]
    if all(t.same(known[0]) for t in known[1:]) and dim not in known[0].axes and (len(known) == len(tags) or not new):
        return known[0]
    axes = sorted({dim, *(a for t in known for a in t.axes)})
    pieces, found = [], iter(known)
    for tensor, tag in zip(tensors, tags, strict=True):
        shape = list(tensor.shape)
        shape[dim:dim] = [1] if new else []
        if isinstance(tag, Followed):
            pieces.append(spread_out(next(found), shape, axes))
        else:
            pieces.append(torch.full([shape[a] for a in axes], FREE, device=tensor.device))
    return together(torch.cat(pieces, axes.index(dim)), axes, Followed(known[0].ids, known[0].axes))


def _padded(call: Call) -> Tag:
    tag, pads = call.tag(call.args[0]), list(call.get(1, "pad"))
    if not isinstance(tag, Followed):
        return tag
    last = call.args[0].ndim - 1
    touched = [last - i // 2 for i, amount in enumerate(pads) if amount]
    return call.lost() if set(touched) & set(tag.axes) else tag


def _gathered(call: Call) -> Tag:
    """Elements picked along one axis, by an index that lies as the source does along the others."""
    dim = call.get(1, "dim") % max(1, call.out.ndim)
    tags = [call.tag(t) for t in operands(call)]
    for tag in tags:
        if isinstance(tag, Followed) and dim in tag.axes:
            return call.lost()
    return combined(call, tags)


def _index_added(call: Call) -> Tag:
    """Rows of a source written or added to the rows of a destination at an index."""
    into, dim, index, source = call.args[0], call.get(1, "dim"), call.get(2, "index"), call.get(3, "source", "tensor")
    mine, its = call.tag(into), call.tag(source)
    if isinstance(mine, Lost) or isinstance(its, Lost):
        return mine if isinstance(mine, Lost) else its
    if not isinstance(its, Followed):
        return mine
    dim %= into.ndim
    axes = sorted({dim, *its.axes, *(mine.axes if isinstance(mine, Followed) else ())})
    before = _written_out(mine, into, axes)
    new = spread_out(its, source.shape, axes)
    at = axes.index(dim)
    after = before.clone().index_copy_(at, index, new.contiguous())
    kept = bool(((before == FREE) | (before == after)).all()) or "copy" in call.name
    if not kept or not torch.equal(after.index_select(at, index), new):
        return call.lost()
    if isinstance(mine, Followed) and torch.equal(before, after):
        return mine
    return together(after, axes, Followed(its.ids, its.axes))


def _written_out(tag: Tag, tensor: Tensor, axes: Sequence[int]) -> Tensor:
    if isinstance(tag, Followed):
        return spread_out(tag, tensor.shape, axes)
    return torch.full([tensor.shape[a] for a in axes], FREE, device=tensor.device)


def _set(call: Call) -> Tag:
    """`x[key] = value`, and its likes: the ids of the value are written into those of the destination."""
    into, key, value = call.args[0], call.get(1, "indices", "mask"), call.get(2, "values", "source")
    mine, its = call.tag(into), call.tag(value) if isinstance(value, Tensor) else CONSTANT
    if isinstance(mine, Lost) or isinstance(its, Lost):
        return mine if isinstance(mine, Lost) else its
    if not isinstance(its, Followed):
        return mine
    before = _written_out(mine, into, range(into.ndim))
    new, after = spread_out(its, value.shape), before.clone()
    if call.name == "masked_scatter":
        return together(after.masked_scatter_(key, new), range(into.ndim), Followed(its.ids, its.axes))
    key = tuple(key) if isinstance(key, (tuple, list)) and "index_put" in call.name else key
    after[key] = new
    adds = call.get(3, "accumulate", default=False)
    if not bool((after[key] == new).all()) or (adds and not bool(((before == FREE) | (before == after)).all())):
        return call.lost()
    return together(
        after, range(into.ndim), its if isinstance(mine, Followed) and mine.same(its) else Followed(its.ids, its.axes)
    )


def _copied(call: Call) -> Tag:
    """All of a destination is written over."""
    into, source = call.args[0], call.get(1, "src", "other")
    tag = _beside(call, source, into.ndim) if isinstance(source, Tensor) else CONSTANT
    return call.tag(into) if tag is CONSTANT else tag


def _picked_out(call: Call) -> Any:
    """`where`: of one argument the places of what is true, which lie in no order of rows."""
    return _pointwise(call) if len(operands(call)) + len(call.args) > 2 else _scattered(call)


def _scattered(call: Call) -> Tag:
    tag = call.tag(call.args[0])
    return call.lost() if isinstance(tag, Followed) and tag.axes else tag


def _looked_up(call: Call) -> Tag:
    """Rows of a table that all problems share."""
    index, table = call.get(0, "input"), call.get(1, "weight")
    return call.lost() if isinstance(call.tag(table), Followed) else call.tag(index)


def _batch_normed(call: Call) -> Tag:
    tag = call.tag(call.args[0])
    if not isinstance(tag, Followed) or not (
        call.get(5, "training", default=False) or call.get(1, "running_mean") is None
    ):
        return tag
    return apart(tag, [a for a in range(call.out.ndim) if a != 1]) or call.lost()


def _row_losses(call: Call) -> Tag:
    """Losses of classes: one an element where they are not summed up."""
    tag = combined(call, [call.tag(call.args[0])])
    if not isinstance(tag, Followed) or call.out.ndim == 0 or call.args[0].ndim < 2:
        return call.lost() if isinstance(tag, Followed) else tag
    left = apart(tag, [1])
    return (
        call.lost()
        if left is None
        else moved(left, [None if a == 1 else a - (a > 1) for a in range(call.args[0].ndim)])
    )


def _element_losses(call: Call) -> Tag:
    if call.out.ndim == 0:
        return combined(
            call, [call.lost() if isinstance(call.tag(t), Followed) else call.tag(t) for t in operands(call)]
        )
    return _pointwise(call)


_POINTWISE = """
    abs absolute acos acosh add addcdiv addcmul angle arccos arcsin arctan arctan2 asin asinh atan atan2 atanh
    bernoulli bfloat16 bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bool
    byte ceil celu clamp clamp_max clamp_min clip clone complex conj conj_physical contiguous copysign cos cosh cpu
    cuda data deg2rad detach div divide double dropout alpha_dropout feature_alpha_dropout dequantize digamma elu
    eq equal erf erfc erfinv exp exp2 expit expm1 fill float float_power floor floor_divide fmax fmin fmod frac ge
    gelu greater greater_equal gt half hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 imag int
    isclose isfinite isinf isnan isneginf isposinf isreal ldexp leaky_relu lerp less less_equal lgamma log log10
    log1p log2 log_ndtr log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit
    logsigmoid long le lt masked_fill maximum minimum mish mul multiply nan_to_num ne neg negative nextafter
    not_equal ndtr polar polygamma positive pow rad2deg real reciprocal relu relu6 remainder requires_grad
    resolve_conj resolve_neg round rrelu rsqrt rsub selu sgn short sigmoid sign signbit silu sin sinc sinh softplus
    softshrink softsign sqrt square sub subtract tan tanh tanhshrink threshold to tril triu true_divide trunc type
    type_as xlogy xlog1py zero normal uniform exponential geometric log_normal random cauchy __abs__ __add__
    __and__ __div__ __eq__ __floordiv__ __ge__ __gt__ __iadd__ __iand__ __idiv__ __ifloordiv__ __ilshift__ __imod__
    __imul__ __invert__ __ior__ __ipow__ __irshift__ __isub__ __itruediv__ __ixor__ __le__ __lshift__ __lt__
    __mod__ __mul__ __ne__ __neg__ __or__ __pos__ __pow__ __radd__ __rand__ __rdiv__ __rfloordiv__ __rlshift__
    __rmod__ __rmul__ __ror__ __rpow__ __rrshift__ __rshift__ __rsub__ __rtruediv__ __rxor__ __sub__ __truediv__
    __xor__
"""
_CONSTANT = """
    arange bartlett_window blackman_window empty empty_like empty_strided eye full full_like hamming_window
    hann_window kaiser_window linspace logspace new_empty new_empty_strided new_full new_ones new_tensor new_zeros
    ones ones_like rand rand_like randint randint_like randn randn_like randperm range scalar_tensor tril_indices
    triu_indices zeros zeros_like
"""
_ALONG_LAST = "softmax log_softmax softmin gumbel_softmax"
_VIEWS = """
    transpose swapaxes swapdims permute movedim moveaxis t T mT H mH adjoint unsqueeze squeeze expand expand_as broadcast_to
    select narrow unbind as_strided unfold diagonal select_copy
"""
_NAMED: list[tuple[Rule, str]] = [
    (_pointwise, _POINTWISE),
    (_constant, _CONSTANT),
    (_in_place, "one_hot bucketize view_as_complex view_as_real zero_"),
    (_within_rows, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d max_pool1d max_pool2d "
     "max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
     "group_norm instance_norm "
     "interpolate upsample pixel_shuffle pixel_unshuffle local_response_norm channel_shuffle dropout1d dropout2d dropout3d"),
    (_along(1, -1, "dim"), _ALONG_LAST),
    (_along(1, None, "dim"), "cumsum cumprod cummax cummin logcumsumexp"),
    (_along(1, -1, "dim", "axis"), "sort argsort msort"),
    (_along(1, -1, "dim"), "glu multinomial"),
    (_along(2, -1, "dim"), "topk diff"),
    (_along(2, 1, "dim"), "normalize"),
    (_along(2, -1, "dim"), "fft ifft rfft irfft hfft ihfft fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft"),
    (_last(1, "normalized_shape"), "layer_norm rms_norm native_layer_norm"),
    (_reduced(1, "dim", "axis"), "sum nansum mean nanmean std var amax amin max min any all argmax argmin logsumexp prod "
     "median nanmedian mode count_nonzero std_mean var_mean squeeze_sum"),
    (_reduced(2, "dim"), "norm kthvalue vector_norm linalg_vector_norm"),
    (_renormed, "renorm"),
    (_shifted(1, "dims"), "flip fliplr flipud"),
    (_shifted(2, "dims"), "roll rot90"),
    (_cut(2, 0, "dim"), "chunk split tensor_split split_with_sizes unsafe_chunk unsafe_split"),
    (_viewed, _VIEWS),
    (_reshaped, "view reshape flatten unflatten ravel view_as reshape_as"),
    (_repeated, "repeat"),
    (_interleaved, "repeat_interleave"),
    (_index_selected, "index_select"),
    (_indexed, "__getitem__"),
    (_masked, "masked_select"),
    (_joined, "cat concat concatenate"),
    (_stacked, "stack"),
    (_padded, "pad constant_pad_nd"),
    (_gathered, "gather take_along_dim scatter scatter_add scatter_reduce"),
    (_index_added, "index_add index_copy"),
    (_set, "__setitem__ index_put masked_scatter"),
    (_copied, "copy_"),
    (_picked_out, "where"),
    (_scattered, "nonzero argwhere"),
    (_looked_up, "embedding"),
    (_batch_normed, "batch_norm"),
    (_row_losses, "cross_entropy nll_loss"),
    (_element_losses, "mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy "
     "binary_cross_entropy_with_logits"),
]  # fmt: skip
_BY_NAME: dict[str, Rule] = {name: rule for rule, names in _NAMED for name in names.split()} | CONTRACTIONS
_OWNERS = (
    torch.Tensor, torch, functional, torch.special, torch.linalg, torch.fft, torch._C._nn,
)  # fmt: skip


def _found() -> Iterable[tuple[Any, Rule]]:
    for name, rule in _BY_NAME.items():
        for owner in _OWNERS:
            for made in (getattr(owner, name, None), getattr(owner, name + "_", None)):
                if made is not None and callable(made):
                    yield made, rule
                elif made is not None and hasattr(made, "__get__"):
                    yield made.__get__, rule


RULES: dict[Any, Rule] = dict(_found())
RULES[torch.Tensor.data.__set__] = _copied  # type: ignore[attr-defined]


class _Overload(Protocol):
    namespace: str
    __name__: str


def rule_of(func: Any) -> Rule | None:
    """The rule of one of torch's operations, or None for one that is not known."""
    rule = RULES.get(func)
    if rule is None and isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        space, _, name = str(func).partition(".")
        rule = _BY_NAME.get(name.split(".")[0].removesuffix("_")) if space == "aten" else None
    return rule
