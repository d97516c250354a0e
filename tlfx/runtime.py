"""Label arithmetic at run time: the functions that an aligned graph calls beside the model's own operators.

Labels are float32 tensors (batch, rows, channels), rows summing to 1 over the classes that their channels stand for.
Every function is a convex combination of rows, works outside autograd and autocast, and leaves its inputs alone.
Arguments named ``rows`` are labels in a shape: (batch, *shape, channels).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

__all__ = [
    "attend_by",
    "attention",
    "average",
    "context",
    "convolve",
    "convolve_at",
    "filtered",
    "gather",
    "mix",
    "moved",
    "ordered",
    "output",
    "pixels",
    "put",
    "resample",
    "resample_at",
    "scan",
    "settle",
    "share",
    "uniform",
]

P = ParamSpec("P")
Split = tuple[int, int, int]
"""Where the batch lies in a value: (axis, outer, inner), the axis being of length outer · batch · inner."""

_TINY = 1e-20
_PART = {"cpu": 2**20}
_LARGE_PART = 2**26
"""Bytes of attention weights at a time, by type of device: what a cache holds, or what costs a GPU no extra launch."""


def label_arithmetic(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a function outside autograd and autocast (eq. 12)."""

    @functools.wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.no_grad(), torch.autocast(_device_type(args), enabled=False):
            return function(*args, **kwargs)

    return outside


def _device_type(args: Sequence[Any]) -> str:
    return next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")


@label_arithmetic
def pixels(mask: Tensor, images: Tensor) -> Tensor:
    """Start (eq. 5): one row for each pixel, from a mask (batch or 1, channels, *size) of shares."""
    missing = images.dim() - mask.dim()
    mask = mask.float().reshape(*mask.shape[:2], *[1] * missing, *mask.shape[2:])
    return mask.expand(images.shape[0], -1, *images.shape[2:]).flatten(2).transpose(1, 2)


@label_arithmetic
def share(mask: Tensor, images: Tensor) -> Tensor:
    """The image-level share λ, one row: the label of tokens without image content (eq. 5)."""
    return pixels(mask, images).mean(1, keepdim=True)


@label_arithmetic
def gather(labels: Sequence[Tensor], index: Tensor | None = None, shape: Sequence[int] | None = None) -> Tensor:
    """Rows of one or several labels, all or those at ``index``, in a shape."""
    label = labels[0] if len(labels) == 1 else torch.cat(tuple(labels), 1)
    if index is not None:
        return label[:, index]
    return label if shape is None else label.unflatten(1, tuple(shape))


@label_arithmetic
def average(one: Tensor, other: Tensor) -> Tensor:
    """Residual connection, Y ← Norm(Y + g(Y)) (eq. 11), and products of two full values."""
    return (one + other) / 2


@label_arithmetic
def uniform(rows: Tensor, counts: Tensor | None = None) -> Tensor:
    """Aggregation, Y ← Norm(Σ Yᵢ): rows (batch, out, in, channels) averaged over ``in``, weighted by how often each
    occurs (``counts``, of shape (in,) or (out, in))."""
    if counts is None:
        return rows.mean(2)
    weights = counts / counts.sum(-1, keepdim=True)
    return (rows * weights[..., None]).sum(2)


def split_batch(value: Tensor, split: Split | None) -> Tensor:
    """Bring the batch of a value to the front; ``split`` is (axis, outer, inner), None for a value without batch."""
    if split is None:
        return value[None]
    axis, outer, inner = split
    if outer == inner == 1:
        return value.movedim(axis, 0)
    parts: Tensor = value.unflatten(axis, (outer, -1, inner))
    return parts.movedim(axis + 1, 0)


def merge_batch(rows: Tensor, split: Split) -> Tensor:
    """The inverse: the batch of labels (batch, *shape, channels) where the value has it; channels stay last."""
    axis = split[0]
    merged: Tensor = rows.movedim(0, axis + 1)
    return merged.flatten(axis, axis + 2)


def narrow(values: Any, once: Sequence[int]) -> Any:
    """Values, or values in containers, with their tensors at the first place along the axes ``once``."""

    def first(value: Any) -> Any:
        for axis in once if isinstance(value, Tensor) else ():
            value = value.narrow(axis, 0, 1)
        return value

    return tree_map(first, values) if once else values


@label_arithmetic
def mix(
    weight: Tensor,
    rows: Tensor,
    equation: str,
    split: Split | None = None,
    queries: Sequence[int] | None = None,
    stochastic: bool = False,
    mass: bool = False,
) -> Tensor:
    """Spatial mixing, Y ← Norm(W)·Y (eq. 9), with |W| unless its rows already sum to 1 (``stochastic``).

    ``equation`` reads as in einsum, without the batch: ``"hqm,m->q"`` mixes rows m into rows q and averages the
    weights over h. The letter q stands for the queries, which ``queries`` can restrict. Rows with ``mass`` come from
    :func:`context`.
    """
    weight = split_batch(weight, split)
    if queries is not None:
        weight = _select(weight, equation.index("q") + 1, queries)
    if stochastic:
        mixed = _contract(weight.float(), rows, equation, average=True)
    else:
        mixed = _by_mass(_contract(_magnitude(weight), rows if mass else _with_mass(rows), equation))
    return mixed.reshape(len(mixed), -1, mixed.shape[-1])


@label_arithmetic
def context(weight: Tensor, rows: Tensor, equation: str, split: Split | None = None) -> Tensor:
    """First contraction of a linear attention q(kᵀv): |k|·Y, with its mass |k|·1 as a last channel."""
    mixed = _contract(_magnitude(split_batch(weight, split)), _with_mass(rows), equation)
    return mixed.reshape(len(mixed), -1, mixed.shape[-1])


@label_arithmetic
def settle(rows: Tensor) -> Tensor:
    """Labels of a context by itself: rows (batch, out, heads, channels + mass), summed over heads and normalised."""
    return _by_mass(rows.sum(2))


def _select(tensor: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    """Places along an axis, as a view where they follow one another."""
    if places[-1] - places[0] == len(places) - 1:
        return tensor.narrow(axis, places[0], len(places))
    return tensor.index_select(axis, torch.tensor(places, device=tensor.device))


def _magnitude(weight: Tensor) -> Tensor:
    """|W|, and uniform where a whole row of W is zero, so that rows always sum to 1."""
    return weight.float().abs() + _TINY


def _with_mass(rows: Tensor) -> Tensor:
    return torch.cat((rows, rows.new_ones(()).expand(*rows.shape[:-1], 1)), -1)


def _by_mass(rows: Tensor) -> Tensor:
    return rows[..., :-1] / rows[..., -1:]


def _contract(weight: Tensor, rows: Tensor, equation: str, average: bool = False) -> Tensor:
    """Einsum of weight and rows, summed (or averaged) over the letters of the weight that occur nowhere else.

    Those letters, the heads, are contracted last: as one batched product the sum costs no pass over the weights.
    """
    operands, out = equation.split("->")
    of_weight, of_rows = operands.split(",")
    heads = "".join(c for c in of_weight if c not in of_rows + out)
    total = torch.einsum(f"B{of_weight},B{of_rows}K->B{heads}{out}K", weight, rows)
    if not heads:
        return total
    axes = tuple(range(1, 1 + len(heads)))
    return total.mean(axes) if average else total.sum(axes)


@label_arithmetic
def attention(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    equation: str,
    split: Split | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    queries: Sequence[int] | None = None,
) -> Tensor:
    """Spatial mixing by scaled dot-product attention (eq. 7, 9), averaged over heads, weights before dropout."""
    query, key = query.float(), key.float()
    bias = _attention_bias(query, key, mask, causal)
    if queries is not None:
        query = _select(query, -2, queries)
        bias = bias if bias is None or bias.shape[-2] == 1 else _select(bias, -2, queries)
    key = _repeat_groups(key, query).transpose(-2, -1)
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    if split == (0, 1, 1) and query.dim() == key.dim() == 4:
        return torch.cat(list(_attention_in_parts(query, key, bias, rows, equation)))
    scores = query @ key
    weight = torch.softmax(scores if bias is None else scores + bias, -1)
    return _contract(split_batch(weight, split), rows, equation, average=True).flatten(1, -2)


def _attention_in_parts(
    query: Tensor, key: Tensor, bias: Tensor | None, rows: Tensor, equation: str
) -> Iterator[Tensor]:
    """Some samples at a time, in one pair of buffers that stays in the cache: weights for all never exist."""
    _, heads, count, _ = query.shape
    keys = key.shape[-1]
    step = max(1, _PART.get(query.device.type, _LARGE_PART) // (4 * heads * count * keys))
    scores, weight = query.new_empty(2, min(step, len(query)) * heads, count, keys).unbind()
    for start in range(0, len(query), step):
        q, k = query[start : start + step], key[start : start + step].expand(-1, heads, -1, -1)
        some = len(q) * heads
        torch.bmm(q.flatten(0, 1), k.flatten(0, 1), out=scores[:some])
        if bias is not None:
            scores[:some].unflatten(0, (-1, heads)).add_(bias[start : start + step] if _is_batched(bias) else bias)
        torch.softmax(scores[:some], -1, out=weight[:some])
        split = weight[:some].unflatten(0, (-1, heads))
        yield _contract(split, rows[start : start + step], equation, average=True).flatten(1, -2)


def _is_batched(bias: Tensor) -> bool:
    return bias.dim() == 4 and bias.shape[0] > 1


@label_arithmetic
def attend_by(
    operator: Callable[..., Any], query: Tensor, key: Tensor, rows: Tensor, *settings: Any, split: Split
) -> Tensor:
    """Spatial mixing by an attention whose weights the operator alone knows: the operator itself run on labels in place
    of the values (batch, heads, tokens, channels), averaged over heads."""
    labels = merge_batch(rows, split).unsqueeze(1).expand(-1, key.shape[1], -1, -1)
    out = operator(query.float(), key.float(), labels, *settings)[0]
    return split_batch(out.mean(1), split).flatten(1, -2)


def _attention_bias(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    if causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.float()
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf"))


def _repeat_groups(key: Tensor, query: Tensor) -> Tensor:
    """Keys of grouped-query attention, repeated for the queries of each group."""
    if key.dim() < 3 or key.shape[-3] in (1, query.shape[-3]):
        return key
    return key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)


@label_arithmetic
def convolve(
    operator: Callable[..., Tensor],
    rows: Tensor,
    kernel: Tensor,
    *args: Any,
    valid: Tensor | None = None,
) -> Tensor:
    """Spatial mixing by a convolution: |K| averaged over channels, normalised over valid positions.

    Rows have the shape (batch, lead, *size, channels); ``valid`` (lead, *size) tells the positions with content.
    """
    weight = _magnitude(kernel).mean((0, 1), keepdim=True)
    return _over_ones(lambda maps: operator(maps, weight, None, *args), rows, valid)


@label_arithmetic
def resample(
    operator: Callable[..., Tensor], rows: Tensor, *args: Any, channel: bool = True, valid: Tensor | None = None
) -> Tensor:
    """Resampling and pooling: the operator itself run on the label map, over itself run on ones."""
    return _over_ones(lambda maps: operator(maps, *args), rows, valid, channel)


@label_arithmetic
def filtered(
    rows: Tensor,
    operator: Callable[..., Tensor],
    filters: Sequence[Tensor],
    shape: Sequence[int],
    lengths: Sequence[int],
    axes: Sequence[int],
    valid: Tensor | None = None,
) -> Tensor:
    """Spatial mixing by a filter of frequencies, which is a circular convolution: |K| averaged over channels, K being
    what the inverse transform ``operator`` makes of the product of ``filters``, broadcast to ``shape``."""
    spectrum = torch.ones((), dtype=torch.complex128, device=rows.device)
    for factor in filters:
        spectrum = spectrum * factor
    sizes, dims = (list(lengths), list(axes)) if len(axes) > 1 else (lengths[0], axes[0])
    kernel = operator(spectrum.expand(*shape), sizes, dims).abs() + _TINY
    kernel = kernel.mean([a for a in range(len(shape)) if a not in axes])
    kernel = torch.fft.fftn(kernel.permute([sorted(axes).index(a) for a in axes]))
    places = list(range(-len(axes), 0))

    def run(maps: Tensor) -> Tensor:
        convolved: Tensor = torch.fft.ifftn(torch.fft.fftn(maps, lengths, places) * kernel, dim=places)
        return convolved.real

    return _over_ones(run, rows.double(), valid).float()


@label_arithmetic
def resample_at(operator: Callable[..., Tensor], rows: Tensor, places: Tensor, *args: Any) -> Tensor:
    """Resampling at run-time places (batch, *out, 2 or 3), over itself run on ones; uniform where it sees nothing."""
    maps, places = rows.movedim(-1, 1), places.float()
    return _over_seen(maps, operator(maps, places, *args), operator(torch.ones_like(maps[:, :1]), places, *args))


@label_arithmetic
def convolve_at(
    operator: Callable[..., Tensor],
    rows: Tensor,
    kernel: Tensor,
    places: Tensor,
    gates: Tensor,
    copies: int,
    *args: Any,
) -> Tensor:
    """Spatial mixing by a convolution at run-time places, |K| averaged over channels and times |gates|, over itself run
    on ones; uniform where it sees nothing. ``copies`` of the labels meet the offsets of as many groups of channels."""
    weight = _magnitude(kernel).mean((0, 1), keepdim=True).expand(1, copies, -1, -1)
    places, gates, bias = places.float(), gates.float().abs(), weight.new_zeros(1)

    def run(maps: Tensor) -> Tensor:
        return operator(maps.expand(-1, copies, -1, -1).contiguous(), weight, places, gates, bias, *args)

    maps = rows.movedim(-1, 1)
    over = torch.cat([run(channel) for channel in maps.split(1, 1)], 1)
    return _over_seen(maps, over, run(torch.ones_like(maps[:, :1])))


def _over_seen(maps: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """Quotient of maps (batch, channels, *size) as labels; the mean of the maps where nothing is seen."""
    mean = maps.flatten(2).mean(2).view(*maps.shape[:2], *[1] * (over.dim() - 2))
    return torch.where(under > _TINY, over / under.clamp_min(_TINY), mean).flatten(2).transpose(1, 2)


def _over_ones(run: Callable[[Tensor], Tensor], rows: Tensor, valid: Tensor | None, channel: bool = True) -> Tensor:
    batch, lead, *size, k = rows.shape
    ones = rows.new_ones(1, *size) if valid is None else valid.to(rows.dtype)
    maps = rows.movedim(-1, 1)
    if valid is not None:
        maps = maps * ones
    maps = maps.flatten(0, 2)
    if channel:
        maps, ones = maps.unsqueeze(1), ones.unsqueeze(1)
    over, under = run(maps), run(ones)
    if channel:
        over, under = over.squeeze(1), under.squeeze(1)
    share: Tensor = over.unflatten(0, (batch, k, lead)) / under.clamp_min(_TINY)
    return share.movedim(1, -1).flatten(1, -2)


@label_arithmetic
def scan(rows: Tensor) -> Tensor:
    """A recurrence: rows (batch, lead, steps, channels), each step uniform over the steps up to it."""
    steps = torch.arange(1, rows.shape[2] + 1, device=rows.device, dtype=rows.dtype)
    return (rows.cumsum(2) / steps[:, None]).flatten(1, 2)


@label_arithmetic
def moved(
    operator: Callable[..., Tensor],
    rows: Tensor,
    *args: Any,
    split: Split,
    split_out: Split | None = None,
    once: Sequence[int] = (),
) -> Tensor:
    """Data-dependent movement: labels move by the same run-time indices as the value.

    ``operator`` takes the labels in the layout of the value, one channel at a time, then ``args``, of which one place
    is enough along the axes ``once``. The batch of what comes out lies at ``split_out``, or where it was.
    """
    args = narrow(args, once)
    out = [operator(channel, *args) for channel in merge_batch(rows, split).unbind(-1)]
    return split_batch(torch.stack(out, -1), split_out or split).flatten(1, -2)


def ordered(rows: Tensor, axis: int, outputs: Sequence[Tensor], **options: Any) -> Tensor:
    """The same along an axis, by indices that an operator found itself: its second output."""
    return moved(torch.gather, rows, axis, outputs[1], **options)


@label_arithmetic
def put(
    operator: Callable[..., Tensor],
    rows: Tensor,
    valid: Tensor | int,
    source: Tensor,
    valid_source: Tensor | int,
    image: Tensor,
    before: Sequence[Any],
    after: Sequence[Any],
    *,
    split: Split,
    once: Sequence[int] = (),
    **options: Any,
) -> Tensor:
    """Data-dependent writing (token merging): the operator, called as (labels, *before, labels, *after), over itself
    run on ones, so that labels that meet are averaged; the image-level label where there is none.

    ``rows`` and ``source`` are labels, of which ``valid`` (one for each row) tells those with content, 1 if all have;
    or values without content, ``valid`` being 0.
    """
    over, under = (
        _masses(x, v, split) if isinstance(v, Tensor) or v else _no_masses(x, image.shape[-1] + 1, once)
        for x, v in ((rows, valid), (source, valid_source))
    )
    before, after = narrow((tuple(before), tuple(after)), once)
    channels = zip(over.unbind(-1), under.unbind(-1), strict=True)
    out = torch.stack([operator(one, *before, other, *after, **options) for one, other in channels], -1)
    mass = out[..., -1:]
    merged = split_batch(torch.cat((out[..., :-1] / mass.clamp_min(_TINY), mass), -1), split).flatten(1, -2)
    return torch.where(merged[..., -1:] > _TINY, merged[..., :-1], image)


def _masses(rows: Tensor, valid: Tensor | int, split: Split) -> Tensor:
    """Labels and their mass in the layout of the value, both zero where there is no content."""
    known = valid[..., None] if isinstance(valid, Tensor) else valid
    return merge_batch(_with_mass(rows) * known, split)


def _no_masses(value: Tensor, channels: int, once: Sequence[int]) -> Tensor:
    zeros = torch.zeros_like(narrow(value, once), dtype=torch.float32)
    return zeros[..., None].expand(*zeros.shape, channels)


@label_arithmetic
def output(rows: Tensor, axis: int, outer: int, inner: int) -> Tensor:
    """Labels of an output, its batch merged back to where the output has it; channels stay last."""
    return merge_batch(rows, (axis, outer, inner))
