"""What each of torch's operations does to the rows of a batch: one rule for each name, in the tables below.

A rule gets a `Call` and gives the tag of its result, or a list of tags for a result of several tensors. An operation
that stands in no table may have mixed rows: its result is `Lost`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch.nn import functional

from gradalign.sketch.capture.rows.contractions import CONTRACTIONS
from gradalign.sketch.capture.rows.elements import (
    along,
    along_last,
    batch_normed,
    constant,
    element_losses,
    in_place,
    padded,
    pointwise,
    reduced,
    renormed,
    row_losses,
    shifted,
    within_rows,
)
from gradalign.sketch.capture.rows.followed import Call
from gradalign.sketch.capture.rows.indexing import (
    copied,
    gathered,
    index_added,
    index_selected,
    indexed,
    looked_up,
    masked,
    picked_out,
    scattered,
    set_at,
)
from gradalign.sketch.capture.rows.layouts import cut, interleaved, joined, repeated, reshaped, stacked, viewed

__all__ = ["RULES", "Rule", "rule_of"]

Rule = Callable[[Call], Any]

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
    (pointwise, _POINTWISE),
    (constant, _CONSTANT),
    (in_place, "one_hot bucketize view_as_complex view_as_real zero_"),
    (within_rows, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d max_pool1d max_pool2d "
     "max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
     "group_norm instance_norm "
     "interpolate upsample pixel_shuffle pixel_unshuffle local_response_norm channel_shuffle dropout1d dropout2d dropout3d"),
    (along(1, -1, "dim"), _ALONG_LAST),
    (along(1, None, "dim"), "cumsum cumprod cummax cummin logcumsumexp"),
    (along(1, -1, "dim", "axis"), "sort argsort msort"),
    (along(1, -1, "dim"), "glu multinomial"),
    (along(2, -1, "dim"), "topk diff"),
    (along(2, 1, "dim"), "normalize"),
    (along(2, -1, "dim"), "fft ifft rfft irfft hfft ihfft fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft"),
    (along_last(1, "normalized_shape"), "layer_norm rms_norm native_layer_norm"),
    (reduced(1, "dim", "axis"), "sum nansum mean nanmean std var amax amin max min any all argmax argmin logsumexp prod "
     "median nanmedian mode count_nonzero std_mean var_mean squeeze_sum"),
    (reduced(2, "dim"), "norm kthvalue vector_norm linalg_vector_norm"),
    (renormed, "renorm"),
    (shifted(1, "dims"), "flip fliplr flipud"),
    (shifted(2, "dims"), "roll rot90"),
    (cut(2, 0, "dim"), "chunk split tensor_split split_with_sizes unsafe_chunk unsafe_split"),
    (viewed, _VIEWS),
    (reshaped, "view reshape flatten unflatten ravel view_as reshape_as"),
    (repeated, "repeat"),
    (interleaved, "repeat_interleave"),
    (index_selected, "index_select"),
    (indexed, "__getitem__"),
    (masked, "masked_select"),
    (joined, "cat concat concatenate"),
    (stacked, "stack"),
    (padded, "pad constant_pad_nd"),
    (gathered, "gather take_along_dim scatter scatter_add scatter_reduce"),
    (index_added, "index_add index_copy"),
    (set_at, "__setitem__ index_put masked_scatter"),
    (copied, "copy_"),
    (picked_out, "where"),
    (scattered, "nonzero argwhere"),
    (looked_up, "embedding"),
    (batch_normed, "batch_norm"),
    (row_losses, "cross_entropy nll_loss"),
    (element_losses, "mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy "
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
RULES[torch.Tensor.data.__set__] = copied  # type: ignore[attr-defined]


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
