"""Every built-in rule against what its operators truly do, over random shapes and layouts (tlfx.testing.check_rule)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_except
from hypothesis import given
from hypothesis import strategies as st
from rule_harness import several
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torchvision.ops import deform_conv2d  # type: ignore[import-untyped]

from tlfx.rules.registry import REGISTRY
from tlfx.testing import Content, check_rule

aten = torch.ops.aten
Draw = Callable[..., Any]
Case = tuple[Callable[..., Any], Callable[[], Any]]
"""An operator, and what makes its inputs."""

GATE = "a factor broadcast along an axis is a gate, which has no label (DESIGN: Product)"
STATISTIC = "statistics of a norm have no label"
SCORES = "scores are mixing weights W(Z), which have no label"
CHOICE = "what decides a choice, a place or an order has no label"
DENOMINATOR = "a quotient has the label of its numerator, a power that of its base"


def sizes(draw: Draw, subscripts: str) -> list[int]:
    return [2 if axis == "b" else draw(st.integers(2, 4)) for axis in subscripts]


def any_layout(draw: Draw, subscripts: str = "btc") -> tuple[str, list[int]]:
    """The subscripts in any order but for those before a bar, with sizes."""
    first, _, others = subscripts.rpartition("|")
    layout = first + "".join(draw(st.permutations(others)))
    return layout, sizes(draw, layout)


def content(layout: str, size: Sequence[int]) -> Content:
    return Content(torch.randn(*size), layout)


def on(function: Callable[..., Any], subscripts: str = "btc", **settings: Any) -> Callable[[Draw], Case]:
    """A function of one value in any layout; settings that are callable are given the layout and its sizes."""

    def case(draw: Draw) -> Case:
        layout, size = any_layout(draw, subscripts)
        given = {k: v(layout, size) if callable(v) else v for k, v in settings.items()}
        return lambda x: function(x, **given), lambda: content(layout, size)

    return case


def on_both(function: Callable[..., Any], subscripts: str = "btc") -> Callable[[Draw], Case]:
    """A function of two values in the same layout."""

    def case(draw: Draw) -> Case:
        layout, size = any_layout(draw, subscripts)
        return function, lambda: (content(layout, size), content(layout, size))

    return case


def fixed(function: Callable[..., Any], layout: str, *more: Sequence[int], largest: int = 5) -> Callable[[Draw], Case]:
    """A function of a value in one layout, and of tensors of the given shapes."""

    def case(draw: Draw) -> Case:
        size = [2 if a == "b" else draw(st.integers(3, largest)) if a == "t" else 2 for a in layout]
        return function, lambda: (content(layout, size), *(torch.randn(*shape) for shape in more))

    return case


def axis_of(letter: str) -> Callable[[str, Sequence[int]], int]:
    return lambda layout, size: layout.index(letter)


def tokens_axis(function: Callable[..., Any], letter: str = "t", **settings: Any) -> Callable[[Draw], Case]:
    """A function of a value and an axis."""
    return on(function, dim=axis_of(letter), **settings)


def either_axis(function: Callable[..., Any]) -> Callable[[Draw], Case]:
    """A function along the tokens or along the channels."""
    return lambda draw: tokens_axis(function, draw(st.sampled_from("tc")))(draw)


def attention(draw: Draw) -> Case:
    heads, queries, keys, channels = (draw(st.integers(1, 3)) for _ in range(4))
    causal = draw(st.booleans())

    def make() -> tuple[Any, ...]:
        q, k = torch.randn(2, heads, queries, channels), torch.randn(2, heads, keys, channels)
        return q, k, content("bctc", (2, heads, keys, channels))

    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal), make


def flexible(draw: Draw) -> Case:
    mask = create_block_mask(lambda b, h, query, key: query >= key, None, None, 4, 4, device="cpu")

    def make() -> tuple[Any, ...]:
        return torch.randn(2, 2, 4, 16), torch.randn(2, 2, 4, 16), content("bctc", (2, 2, 4, 16))

    return lambda q, k, v: flex_attention(q, k, v, block_mask=mask), make


def averaged(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    return x.scatter_reduce(dim, index, source, "mean")


def unpooled(draw: Draw) -> Case:
    """Of four channels, each takes another place of its window."""
    row, column, channel = torch.arange(2).view(2, 1), torch.arange(2), torch.arange(4).view(4, 1, 1)
    places = ((2 * row + channel // 2) * 4 + 2 * column + channel % 2).expand(2, 4, 2, 2)
    return lambda x, places: F.max_unpool2d(x, places, [2, 2]), lambda: (content("bctt", (2, 4, 2, 2)), places)


def linear(draw: Draw) -> Case:
    layout, size = any_layout(draw)
    return (
        F.linear,
        lambda: (
            (content(layout, size), torch.randn(3, size[-1]))
            if layout[-1] != "b"
            else (
                content("btc", (2, 3, 4)),
                torch.randn(3, 4),
            )
        ),
    )


def matmul(draw: Draw) -> Case:
    layout = draw(st.sampled_from(["btc", "bct", "tbc"]))
    size = sizes(draw, layout)
    return torch.matmul, lambda: (content(layout, size), torch.randn(size[-1], 3))


def einsum(draw: Draw) -> Case:
    layout = "".join(draw(st.permutations("btc")))
    size = sizes(draw, layout)
    gone = draw(st.sampled_from("tc"))
    out = "".join(draw(st.permutations([x for x in "btcn" if x != gone])))
    formula = f"{layout},n{gone}->{out}"
    return lambda x, w: torch.einsum(formula, x, w), lambda: (
        content(layout, size),
        torch.randn(3, size[layout.index(gone)]),
    )


def convolution(draw: Draw) -> Case:
    spatial = draw(st.integers(1, 3))
    function = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    kernel, stride, padding = (draw(st.integers(low, 3 - (spatial > 2))) for low in (1, 1, 0))
    groups = draw(st.sampled_from([1, 2]))
    size = [2, 4, *(draw(st.integers(kernel, 4)) for _ in range(spatial))]
    return lambda x, w: function(x, w, stride=stride, padding=min(padding, kernel - 1), groups=groups), lambda: (
        content("bc" + "t" * spatial, size),
        torch.randn(4, 4 // groups, *[kernel] * spatial),
    )


def transposed_convolution(draw: Draw) -> Case:
    spatial = draw(st.integers(1, 2))
    function = (F.conv_transpose1d, F.conv_transpose2d)[spatial - 1]
    stride = draw(st.integers(1, 2))
    kernel = draw(st.integers(stride, 3))
    return lambda x, w: function(x, w, stride=stride), lambda: (
        content("bc" + "t" * spatial, [2, 2, *[3] * spatial]),
        torch.randn(2, 3, *[kernel] * spatial),
    )


def chosen(draw: Draw, count: int) -> Tensor:
    return torch.tensor(draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3, unique=True)))


def at_indices(function: Callable[..., Any]) -> Callable[[Draw], Case]:
    """function(x, axis of the tokens, known indices)."""

    def case(draw: Draw) -> Case:
        layout, size = any_layout(draw)
        axis = layout.index("t")
        index = chosen(draw, size[axis])
        return lambda x, index: function(x, axis, index), lambda: (content(layout, size), index)

    return case


def along(axis: int, index: Tensor) -> Tensor:
    """Indices on one of three axes."""
    return index.view([-1 if a == axis else 1 for a in range(3)])


def gathered(x: Tensor, axis: int, index: Tensor) -> Tensor:
    full = [len(index) if a == axis else s for a, s in enumerate(x.shape)]
    return x.gather(axis, along(axis, index).expand(full))


def part(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """As many slices as there are indices, from the end."""
    return x.flip(axis).narrow(axis, 0, len(index))


def scattered(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, axis: int, index: Tensor) -> Tensor:
        source = part(x, axis, index)
        return function(x, axis, along(axis, index).expand(source.shape), source)

    return run


def everywhere(x: Tensor, dim: int) -> Tensor:
    """Places of all elements, backwards along an axis."""
    return torch.arange(x.numel()).view(x.shape).flip(dim)


def put(x: Tensor, axis: int, index: Tensor) -> Tensor:
    moved = x.movedim(axis, 0)
    return aten.index_put(moved, [index], part(x, axis, index).movedim(axis, 0))


def recurrent(draw: Draw) -> Case:
    kind = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
    module = kind(3, 2, batch_first=True, bidirectional=draw(st.booleans()))
    return module, lambda: content("btc", (2, 3, 3))


def resized(mode: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        size = (draw(st.integers(2, 6)), draw(st.integers(2, 6)))
        settings = {} if "nearest" in mode else {"align_corners": False, "antialias": draw(st.booleans())}
        return lambda x: F.interpolate(x, size, mode=mode, **settings), lambda: content("bctt", (2, 2, 4, 3))

    return case


def deformed(draw: Draw) -> Case:
    kernel = draw(st.integers(2, 3))

    def make() -> tuple[Any, ...]:
        offset = torch.randn(2, 2 * kernel**2, 4 - kernel + 1, 4 - kernel + 1) * 0.3
        return content("bctt", (2, 2, 4, 4)), offset, torch.randn(3, 2, kernel, kernel)

    return deform_conv2d, make


def normalised(*functions: Callable[..., Any]) -> Callable[[Draw], Case]:
    """A normalisation of (batch, 4, 3), one of several functions."""
    return lambda draw: (draw(st.sampled_from(functions)), lambda: content("bct", (2, 4, 3)))


def images(function: Callable[..., Any], count: int = 2, size: int = 4) -> Callable[[Draw], Case]:
    """A function of images, or of sequences or clips, of a size drawn."""

    def case(draw: Draw) -> Case:
        shape = (2, 2, *(draw(st.integers(size - 1, size + 1)) for _ in range(count)))
        return function, lambda: content("bc" + "t" * count, shape)

    return case


def moved(draw: Draw) -> Case:
    layout, size = any_layout(draw, "bttc")
    axis = draw(st.sampled_from([a for a in range(4) if layout[a] != "b"]))
    order = draw(st.permutations(range(4)))
    shift = draw(st.integers(-3, 3))
    function = draw(
        st.sampled_from(
            [
                lambda x: x.permute(order),
                lambda x: x.roll(shift, axis),
                lambda x: x.flip(axis),
                lambda x: x.unfold(axis, 2, 1),
                lambda x: x.repeat_interleave(2, axis),
                lambda x: x.tile([2 if a == axis else 1 for a in range(4)]),
                lambda x: x.narrow(axis, 1, 1).expand(size),
                lambda x: x.select(axis, 0),
                lambda x: x.reshape(*size[:2], -1),
            ]
        )
    )
    return function, lambda: content(layout, size)


def written_in_place(x: Tensor, dim: int) -> Tensor:
    out = x.clone()
    out.narrow(dim, 0, 1).copy_(x.narrow(dim, 1, 1))
    return out


CASES: dict[str, tuple[Callable[[Draw], Case], str]] = {
    "attention.dropout": (on(F.dropout, p=0.5, training=True), ""),
    "attention.flex_attention": (flexible, ""),
    "attention.scaled_dot_product_attention": (attention, ""),
    "attention.softmax": (either_axis(torch.softmax), SCORES),
    "attention.unnormalised_softmax": (either_axis(torch.log_softmax), SCORES),
    "contraction.addmm": (
        lambda draw: (torch.addmm, lambda: (torch.randn(3), content("bc", (2, 4)), torch.randn(4, 3))),
        "",
    ),
    "contraction.einsum": (einsum, ""),
    "contraction.linear": (linear, ""),
    "contraction.matmul": (matmul, ""),
    "contraction.bilinear": (fixed(F.bilinear, "btc", (2, 3, 2), (4, 2, 2), largest=3), ""),
    "contraction.chain": (fixed(lambda *m: torch.linalg.multi_dot(m), "bc", (2, 3), (3, 4)), ""),
    "contraction.cross": (
        lambda draw: (torch.linalg.cross, lambda: (content("btc", (2, 4, 3)), content("btc", (2, 4, 3)))),
        "",
    ),
    "contraction.inner": (fixed(torch.inner, "btc", (5, 2)), ""),
    "contraction.kron": (fixed(torch.kron, "btc", (1, 1, 2)), ""),
    "contraction.matrix_function": (lambda draw: (torch.matrix_exp, lambda: content("btt", (2, 3, 3))), ""),
    "contraction.outer": (fixed(torch.outer, "b", (3,)), ""),
    "contraction.solve": (
        lambda draw: (lambda x, w: torch.linalg.solve(w, x), lambda: (content("btc", (2, 3, 4)), torch.randn(3, 3))),
        "",
    ),
    "contraction.tensordot": (fixed(lambda x, w: torch.tensordot(x, w, dims=1), "btc", (2, 5)), ""),
    "convolution.conv": (convolution, ""),
    "convolution.conv_transpose": (transposed_convolution, ""),
    "creation.draw": (on(lambda x: torch.normal(x, 0.1)), ""),
    "difference.cumulative_trapezoid": (tokens_axis(torch.cumulative_trapezoid), ""),
    "difference.diff": (tokens_axis(torch.diff), ""),
    "difference.gradient": (tokens_axis(lambda x, dim: torch.gradient(x, dim=dim)), ""),
    "difference.trapezoid": (tokens_axis(torch.trapezoid), ""),
    "indexing.argsort": (either_axis(lambda x, dim: x.argsort(dim)), CHOICE),
    "indexing.embedding": (on(lambda x: F.embedding((x.sigmoid() * 9).long(), torch.arange(20.0).view(10, 2))), ""),
    "indexing.fill_at": (at_indices(lambda x, axis, index: x.index_fill(axis, index, 1.0)), ""),
    "indexing.gather": (at_indices(gathered), ""),
    "indexing.index": (at_indices(lambda x, axis, index: x[(slice(None),) * axis + (index,)]), ""),
    "indexing.index_add": (at_indices(lambda x, axis, index: x.index_add(axis, index, part(x, axis, index))), ""),
    "indexing.index_copy": (at_indices(lambda x, axis, index: x.index_copy(axis, index, part(x, axis, index))), ""),
    "indexing.index_put": (at_indices(put), ""),
    "indexing.index_reduce": (
        at_indices(lambda x, axis, index: x.index_reduce(axis, index, part(x, axis, index), "amax")),
        "",
    ),
    "indexing.index_select": (at_indices(torch.index_select), ""),
    "indexing.masked_fill": (on(lambda x: x.masked_fill(x > 1, 0.0)), ""),
    "indexing.masked_scatter": (
        tokens_axis(lambda x, dim: x.masked_scatter(torch.ones(x.shape[1:], dtype=torch.bool), x.flip(dim))),
        "",
    ),
    "indexing.one_hot": (on(lambda x: F.one_hot((x.sigmoid() * 3).long(), 3)), CHOICE),
    "indexing.overlay": (tokens_axis(lambda x, dim: x.slice_scatter(x.narrow(dim, 1, 1), dim, 0, 1)), ""),
    "indexing.put": (tokens_axis(lambda x, dim: x.put(everywhere(x, dim), x * 2)), ""),
    "indexing.take": (tokens_axis(lambda x, dim: x.take(everywhere(x, dim))), ""),
    "indexing.scale_at": (
        at_indices(
            lambda x, axis, i: x.scatter(axis, along(axis, i).expand(part(x, axis, i).shape), 2.0, reduce="add")
        ),
        "",
    ),
    "indexing.scatter": (at_indices(scattered(torch.scatter)), ""),
    "indexing.scatter_add": (at_indices(scattered(torch.scatter_add)), ""),
    "indexing.scatter_reduce": (
        at_indices(scattered(averaged)),
        "",
    ),
    "indexing.sort": (either_axis(lambda x, dim: x.sort(dim).values), ""),
    "indexing.take_along_dim": (
        at_indices(
            lambda x, axis, i: torch.take_along_dim(x, i.view([-1 if a == axis else 1 for a in range(3)]), axis)
        ),
        "",
    ),
    "indexing.topk": (either_axis(lambda x, dim: x.topk(2, dim).values), ""),
    "indexing.where": (on(lambda x: torch.where(x > 0, x, 0.1 * x)), ""),
    "loss.class_loss": (
        lambda draw: (
            lambda x: F.cross_entropy(x, torch.arange(3).expand(2, 3), reduction="none"),
            lambda: content("bct", (2, 4, 3)),
        ),
        "",
    ),
    "loss.loss": (fixed(lambda x, goal: F.mse_loss(x, goal, reduction="none"), "btc", (1, 1, 2)), ""),
    "movement.as_strided": (on(lambda x: x.contiguous().as_strided((len(x), 3), (x[0].numel(), 1)), "b|tc"), ""),
    "movement.broadcast": (tokens_axis(lambda x, dim: torch.broadcast_tensors(x, x.flip(dim))), ""),
    "movement.cat": (tokens_axis(lambda x, dim: torch.cat((x, x.flip(dim)), dim)), ""),
    "movement.copy": (tokens_axis(written_in_place), ""),
    "movement.im2col": (images(lambda x: F.unfold(x, 2, padding=1), size=3), ""),
    "movement.move": (moved, ""),
    "movement.move_as": (on(lambda x: x.view_as(torch.empty(x.shape)), "btc"), ""),
    "movement.move_each": (either_axis(lambda x, dim: x.split(1, dim)), ""),
    "movement.pad": (on(lambda x: F.pad(x, (1, 2)), "b|ttc"), ""),
    "movement.pad_by_copies": (images(lambda x: F.pad(x, (1, 1, 2, 0), mode="reflect")), ""),
    "movement.same": (on(lambda x: x.clone().contiguous()), ""),
    "movement.stack": (either_axis(lambda x, dim: torch.stack((x, x.flip(dim)), dim)), ""),
    "movement.stack_side_by_side": (on(lambda x: torch.hstack((x, x)), "b|tc"), ""),
    "movement.triangle": (on(torch.tril, "b|ttc"), ""),
    "movement.view": (on(lambda x: x.contiguous().view(x.shape[0], -1)), ""),
    "movement.view_as_complex": (on(lambda x: torch.view_as_complex(torch.stack((x, x * 2), -1))), ""),
    "movement.view_as_real": (on(lambda x: torch.view_as_real(torch.view_as_complex(torch.stack((x, x), -1)))), ""),
    "normalisation.layer_norm": (normalised(lambda x: F.layer_norm(x, (3,)), lambda x: F.rms_norm(x, (3,))), STATISTIC),
    "normalisation.native_layer_norm": (
        normalised(lambda x: aten.native_layer_norm(x, [3], None, None, 1e-5)),
        STATISTIC,
    ),
    "normalisation.group_norm": (normalised(nn.GroupNorm(2, 4)), STATISTIC),
    "normalisation.instance_norm": (normalised(nn.InstanceNorm1d(4)), STATISTIC),
    "normalisation.renorm": (normalised(lambda x: x.renorm(2, 0, 1.0)), STATISTIC),
    "normalisation.native_group_norm": (
        normalised(lambda x: aten.native_group_norm(x, None, None, 2, 4, 3, 2, 1e-5)),
        STATISTIC,
    ),
    "normalisation.batch_norm": (normalised(nn.BatchNorm1d(4)), STATISTIC),
    "normalisation.native_batch_norm": (
        normalised(lambda x: aten.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0]),
        STATISTIC,
    ),
    "pointwise.activation": (
        lambda draw: on(draw(st.sampled_from([torch.relu, F.gelu, torch.exp, torch.abs, torch.sigmoid])))(draw),
        "",
    ),
    "pointwise.add": (on_both(torch.add), ""),
    "pointwise.logarithm": (on(lambda x: x.abs().log()), ""),
    "pointwise.negative": (on(torch.neg), ""),
    "pointwise.quotient": (on_both(torch.floor_divide), DENOMINATOR),
    "pointwise.remainder": (on_both(torch.fmod), DENOMINATOR),
    "pointwise.rsub": (on_both(torch.rsub), ""),
    "pointwise.sub": (on_both(torch.sub), ""),
    "pointwise.step": (on(lambda x: (4 * x).floor().clamp(-8, 8)), ""),
    "pointwise.addcdiv": (on_both(lambda a, b: torch.addcdiv(a, b, torch.ones(1) * 2)), ""),
    "pointwise.addcmul": (on_both(lambda a, b: torch.addcmul(a, b, torch.ones(1) * 2)), ""),
    "pointwise.compare": (on_both(torch.gt), ""),
    "pointwise.complex_of": (on_both(torch.complex), ""),
    "pointwise.div": (on_both(torch.div), DENOMINATOR),
    "pointwise.extreme": (on_both(torch.maximum), ""),
    "pointwise.getitem": (lambda draw: (lambda x: x.unbind(1)[1], lambda: content("btc", (2, 3, 2))), ""),
    "pointwise.glu": (lambda draw: (F.glu, lambda: content("btc", (2, 3, 4))), ""),
    "pointwise.lerp": (on_both(lambda a, b: torch.lerp(a, b, 0.3)), ""),
    "pointwise.mul": (
        lambda draw: draw(
            st.sampled_from([on_both(torch.mul), on_both(lambda a, b: a * b.mean(-1, keepdim=True), "b|tc")])
        )(draw),
        GATE,
    ),
    "pointwise.polygamma": (on(lambda x: torch.special.polygamma(1, x.abs() + 1)), ""),
    "pointwise.searchsorted": (on(lambda x: torch.searchsorted(torch.tensor([-0.5, 0.0, 0.5]), x)), ""),
    "pointwise.power": (on_both(lambda a, b: (a.abs() + 1) ** b), DENOMINATOR),
    "pooling.adaptive_avg_pool": (images(lambda x: F.adaptive_avg_pool2d(x, 2)), ""),
    "pooling.adaptive_max_pool": (images(lambda x: F.adaptive_max_pool2d(x, 2)), ""),
    "pooling.avg_pool": (images(lambda x: F.avg_pool2d(x, 2, 1, 1)), ""),
    "pooling.max_pool": (images(lambda x: F.max_pool2d(x, 2, 1)), ""),
    "pooling.max_pool_with_indices": (images(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), ""),
    "recurrence.cumulative": (tokens_axis(torch.cumprod), ""),
    "recurrence.cumulative_sum": (tokens_axis(torch.cumsum), ""),
    "recurrence.cumulative_extreme": (tokens_axis(lambda x, dim: x.cummax(dim).values), ""),
    "recurrence.fourier": (tokens_axis(torch.fft.fft), ""),
    "recurrence.fourier_of_several": (images(torch.fft.fft2), ""),
    "recurrence.hermitian_fourier": (tokens_axis(torch.fft.ihfft), ""),
    "recurrence.inverse_fourier": (tokens_axis(torch.fft.ifft), ""),
    "recurrence.inverse_fourier_of_several": (images(lambda x: torch.fft.ifftn(x, dim=(2, 3))), ""),
    "recurrence.cell": (lambda draw: (nn.GRUCell(3, 4), lambda: content("bc", (2, 3))), ""),
    "recurrence.recurrent": (recurrent, ""),
    "reduction.both_extremes": (tokens_axis(lambda x, dim: torch.aminmax(x, dim=dim)), ""),
    "reduction.count": (tokens_axis(torch.count_nonzero), CHOICE),
    "reduction.decide": (either_axis(torch.argmax), CHOICE),
    "reduction.deviation": (either_axis(torch.var), ""),
    "reduction.deviation_and_mean": (tokens_axis(torch.var_mean), ""),
    "reduction.extreme": (either_axis(lambda x, dim: x.max(dim).values), ""),
    "reduction.kthvalue": (tokens_axis(lambda x, dim: x.kthvalue(1, dim).values), ""),
    "reduction.matrix_norm": (lambda draw: (torch.linalg.matrix_norm, lambda: content("btt", (2, 3, 3))), ""),
    "reduction.median": (tokens_axis(lambda x, dim: x.median(dim).values), ""),
    "reduction.mode": (tokens_axis(lambda x, dim: x.mode(dim).values), ""),
    "reduction.norm": (either_axis(lambda x, dim: torch.linalg.vector_norm(x, dim=dim)), ""),
    "reduction.quantile": (tokens_axis(lambda x, dim: torch.quantile(x, 0.3, dim)), ""),
    "reduction.mean": (either_axis(torch.mean), ""),
    "reduction.logsumexp": (either_axis(torch.logsumexp), ""),
    "reduction.reduce": (either_axis(torch.amax), ""),
    "reduction.total": (either_axis(torch.sum), ""),
    "resampling.affine_grid": (
        lambda draw: (lambda x: F.affine_grid(x, [2, 1, 3, 3]), lambda: content("bcc", (2, 2, 3))),
        CHOICE,
    ),
    "resampling.col2im": (lambda draw: (lambda x: F.fold(x, (3, 3), 2), lambda: content("bct", (2, 8, 4))), ""),
    "resampling.deform_conv2d": (deformed, ""),
    "resampling.grid_sampler": (
        lambda draw: (
            lambda x, g: F.grid_sample(x, g.tanh() * 0.8, align_corners=False),
            lambda: (content("bctt", (2, 2, 3, 3)), torch.randn(2, 2, 2, 2)),
        ),
        "",
    ),
    "resampling.max_unpool": (unpooled, ""),
    "resampling.upsample": (lambda draw: resized(draw(st.sampled_from(["nearest", "bilinear"])))(draw), ""),
    "resampling.upsample_bicubic": (resized("bicubic"), "bicubic weights are taken as bilinear, which reach less far"),
    "similarity.cdist": (fixed(torch.cdist, "btc", (5, 2)), ""),
    "similarity.cosine_similarity": (on_both(lambda a, b: F.cosine_similarity(a, b, 2), "bt|c"), ""),
    "similarity.isin": (on(lambda x: torch.isin(x.round(), torch.tensor([0.0, 1.0])).float()), CHOICE),
    "similarity.pairwise_distance": (on_both(F.pairwise_distance, "bt|c"), ""),
    "similarity.vecdot": (on_both(torch.linalg.vecdot, "bt|c"), ""),
}
"""For each rule a case, and why its labels may leave out what the output depends on."""

CHANNELS = {"recurrence.recurrent": [-1], "resampling.max_unpool": [1]}
"""Axes of outputs along which channels of a token see different things."""

WITHOUT_CONTENT = {
    "creation.store_state": "keeps state and returns nothing",
    "creation.hook": "registers a hook and returns nothing",
    "creation.fill": "makes constants",
    "creation.full": "makes constants",
    "creation.noise": "makes constants",
    "creation.ones": "makes constants",
    "creation.overwrite": "makes constants",
    "creation.sym_numel": "gives a size",
    "creation.sym_size": "gives a size",
    "creation.zero": "makes constants",
    "creation.zeros": "makes constants",
    "reduction.number": "gives numbers of the whole batch",
    "reduction.places": "gives indices",
}

ALIKE = {
    "attention.flex_attention",
    *(f"contraction.{name}" for name in ("addmm", "bilinear", "inner", "kron", "outer", "tensordot")),
    *(f"difference.{name}" for name in ("cumulative_trapezoid", "gradient")),
    *(f"indexing.{name}" for name in ("fill_at", "index_add", "index_copy", "index_reduce", "index_select", "one_hot")),
    *(f"indexing.{name}" for name in ("scatter_reduce", "take", "take_along_dim", "sort")),
    *(f"movement.{name}" for name in ("as_strided", "broadcast", "move_as", "same", "stack", "stack_side_by_side")),
    *(f"movement.{name}" for name in ("im2col", "view")),
    *(f"normalisation.native_{name}_norm" for name in ("layer", "group", "batch")),
    *(f"pointwise.{name}" for name in ("rsub", "sub", "addcdiv", "extreme", "compare", "lerp", "remainder")),
    *(f"pooling.{name}" for name in ("adaptive_max_pool", "max_pool_with_indices")),
    *(f"recurrence.{name}" for name in ("cumulative", "hermitian_fourier", "inverse_fourier", "cell")),
    *(f"recurrence.{name}" for name in ("fourier_of_several", "inverse_fourier_of_several")),
    *(f"reduction.{name}" for name in ("both_extremes", "deviation_and_mean", "median", "mode", "norm")),
    *("resampling.upsample_bicubic", "similarity.pairwise_distance", "similarity.vecdot"),
}
"""Rules that resemble others in the table and have separate tests; ``make slow`` tests them here too."""


def test_every_rule_has_a_case() -> None:
    names = {r.origin.removeprefix("tlfx_rules.") for r in REGISTRY if r.origin.startswith("tlfx_rules.")}
    assert names == set(CASES) | set(WITHOUT_CONTENT)
    assert set(CASES) > ALIKE


@pytest.mark.parametrize("name", slow_except(CASES.keys() - ALIKE, CASES))
def test_a_rule_says_what_its_operator_does(name: str) -> None:
    case, less = CASES[name]

    @several(2)
    @given(st.data())
    def examples(data: st.DataObject) -> None:
        operator, make_inputs = case(data.draw)
        check_rule(operator, make_inputs, less=less, channels=CHANNELS.get(name, []))

    examples()
