"""Indexing, sorting and scattering: constant indices move the map, others move labels at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.propagate.verbs.indexed import is_mask
from tlfx.rules import rule

aten = torch.ops.aten


@rule(aten.index)
def index(op: OpContext, x: Value, indices: Sequence[Value | None]) -> Value:
    """x[indices]."""
    # x[index] on the batch, as training code with stochastic depth chooses its samples
    if len(indices) == 1 and indices[0] is not None and op.chooses_samples(x, 0, indices[0]):
        return op.choose_samples(x, indices[0])
    return op.take(x, aten.index.Tensor, list(indices), axes=indexed_axes(indices))


@rule(aten.index_select)
def index_select(op: OpContext, x: Value, dim: int, chosen: Value) -> Value:
    """Whole slices along an axis."""
    if op.chooses_samples(x, dim, chosen):
        return op.choose_samples(x, chosen)
    return op.take(x, op.target, dim, chosen, axes=[dim])


@rule(aten.gather)
def gather(op: OpContext, x: Value, dim: int, chosen: Value, **options: Any) -> Value:
    """x (batch, n, channels), chosen (batch, k, channels)."""
    return op.take(x, op.target, dim, chosen, axes=[dim], aligned=True)


@rule(aten.take_along_dim)
def take_along_dim(op: OpContext, x: Value, chosen: Value, dim: int | None = None) -> Value:
    """Gather with broadcast indices; without an axis, from the flattened value."""
    axes = range(len(x.shape)) if dim is None else [dim]
    return op.take(x, op.target, chosen, dim, axes=axes, aligned=True)


@rule(aten.take)
def take(op: OpContext, x: Value, chosen: Value) -> Value:
    """Elements of x by their index in the flattened value."""
    return op.take(x, op.target, chosen, axes=range(len(x.shape)))


@rule(aten.topk)
def topk(op: OpContext, x: Value, k: int, dim: int = -1, *settings: Any) -> list[Value]:
    """The largest values, each with the label of the element it is, and their indices."""
    return op.take_own(x, dim)


@rule(aten.sort)
def sort(op: OpContext, x: Value, dim: int = -1, descending: bool = False, *, stable: Any = None) -> list[Value]:
    """Values in order, each with the label of the element it is, and their indices."""
    return op.take_own(x, dim)


@rule(aten.argsort)
def argsort(op: OpContext, x: Value, dim: int = -1, descending: bool = False, *, stable: Any = None) -> Value:
    """The indices alone."""
    return op.decide(x, dim)


@rule(aten.masked_fill)
def masked_fill(op: OpContext, x: Value, mask: Value, value: Any) -> Value:
    """Point-wise; elements under a constant mask become a number without content, and zeros that the image decides make
    a product with the mask."""
    if op.is_known(mask):
        return op.erase(x, op.concrete(mask))
    return op.masked(x, mask, hides=True) if op.number(value) == 0 else op.pointwise(x)


@rule(aten.where)
def where(op: OpContext, condition: Value, a: Any = None, b: Any = None) -> Value:
    """An element-wise choice: by a constant condition data movement, by any other the average of differing labels, or a
    product with the condition if zero is the other choice."""
    # where(condition, 1, 0): only the condition depends on the image
    if all(not isinstance(v, Value) or v.is_constant for v in (a, b)):
        return op.pointwise(condition)
    a, b = (v if isinstance(v, Value) else op.constant((), op.number(v)) for v in (a, b))
    if op.is_known(condition):
        return op.either(a, b, op.concrete(condition))
    if op.number(a) == 0:
        return op.masked(b, condition, hides=True)
    return op.masked(a, condition) if op.number(b) == 0 else op.either(a, b)


@rule(aten.embedding)
def embedding(op: OpContext, table: Value, indices: Value, *settings: Any) -> Value:
    """A learned vector looked up by a value: the label of the index; rows of content: by decisions at run time."""
    if table.is_content:
        return op.take(table, aten.embedding.default, indices, axes=[0])
    if not indices.is_content:
        return op.weight()
    return op.remap(indices, lambda m: m[..., None].expand(op.shape))


@rule(aten.one_hot)
def one_hot(op: OpContext, x: Value, classes: int = -1) -> Value:
    """A decision."""
    return op.weight()


@rule(aten.index_put)
def index_put(
    op: OpContext, x: Value, indices: Sequence[Value | None], source: Value, accumulate: bool = False
) -> Value:
    """x[indices] = source, or += source."""
    axes = indexed_axes(indices)
    return op.put(
        x, source, aten.index_put.default, [list(indices)], [accumulate], axes=axes, adds=accumulate, linear=True
    )


@rule(aten.put)
def put(op: OpContext, x: Value, chosen: Value, source: Value, accumulate: bool = False) -> Value:
    """Elements of the flattened x overwritten, or added to."""
    axes = range(len(x.shape))
    return op.put(x, source, aten.put.default, [chosen], [accumulate], axes=axes, adds=accumulate, linear=True)


@rule(aten.index_copy)
def index_copy(op: OpContext, x: Value, dim: int, chosen: Value, source: Value) -> Value:
    """Whole slices of x overwritten."""
    return op.put(x, source, aten.index_copy.default, [dim, chosen], axes=[dim])


@rule(aten.index_add)
def index_add(op: OpContext, x: Value, dim: int, chosen: Value, source: Value, *, alpha: Any = 1) -> Value:
    """Whole slices added to those of x."""
    if op.number(alpha) == 0:
        return op.pointwise(x)
    if op.holds_samples(source):
        return op.add_samples(x, dim, chosen, source, alpha)
    return op.put(x, source, aten.index_add.default, [dim, chosen], axes=[dim], adds=True, linear=True)


@rule(aten.index_reduce)
def index_reduce(
    op: OpContext, x: Value, dim: int, chosen: Value, source: Value, reduce: str, *, include_self: bool = True
) -> Value:
    """Whole slices of x reduced with those of the source; all tokens at one place count alike, but for a mean of
    products with a factor."""
    # "mean" for every reduction: a maximum or a product of labels is not a mixture of them
    kind = {"adds": True, "include_self": include_self, "linear": reduce == "mean"}
    return op.put(x, source, aten.index_reduce.default, [dim, chosen], ["mean"], axes=[dim], **kind)


@rule(aten.scatter.src)
def scatter(op: OpContext, x: Value, dim: int, chosen: Value, source: Value) -> Value:
    """x (batch, n, channels) overwritten at chosen (batch, k, channels)."""
    return op.put(x, source, aten.scatter.src, [dim, chosen], axes=[dim], aligned=True)


@rule(aten.scatter_add, aten.scatter.reduce)
def scatter_add(op: OpContext, x: Value, dim: int, chosen: Value, source: Value, *, reduce: str = "add") -> Value:
    """x (batch, n, channels) plus source at chosen (batch, k, channels): token merging."""
    return op.put(
        x, source, aten.scatter_add.default, [dim, chosen], axes=[dim], aligned=True, adds=True, linear=reduce == "add"
    )


@rule(aten.scatter_reduce)
def scatter_reduce(
    op: OpContext, x: Value, dim: int, chosen: Value, source: Value, reduce: str, *, include_self: bool = True
) -> Value:
    """The same by any reduction; all tokens at one place count alike, but for a sum or mean of products with a
    factor."""
    # "sum" for any other reduction, for the same reason: labels are divided by their mass afterwards
    of_labels = "mean" if reduce == "mean" else "sum"
    kind = {"aligned": True, "adds": True, "include_self": include_self, "linear": reduce in ("sum", "mean")}
    return op.put(x, source, aten.scatter_reduce.two, [dim, chosen], [of_labels], axes=[dim], **kind)


@rule(aten.scatter.value, aten.index_fill)
def fill_at(op: OpContext, x: Value, dim: int, chosen: Value, value: Any) -> Value:
    """Point-wise; elements at constant indices become a number without content."""
    if not op.is_known(chosen):
        return op.pointwise(x)
    # index_fill has another overload for a value that is a tensor, which does not take the number 1
    filled = op.target if op.target is aten.scatter.value else aten.index_fill.int_Scalar
    return op.erase(x, filled(torch.zeros(op.shape), dim, op.concrete(chosen), 1) > 0)


@rule(aten.scatter.value_reduce)
def scale_at(op: OpContext, x: Value, dim: int, chosen: Value, value: Any, *, reduce: str) -> Value:
    """Point-wise: a number is added to some elements, or multiplies them."""
    return op.pointwise(x)


@rule(aten.slice_scatter, aten.select_scatter, aten.diagonal_scatter)
def overlay(op: OpContext, x: Value, source: Value, *settings: Any, **options: Any) -> Value:
    """A part of x replaced."""
    return op.put(x, source, op.target, [], settings, axes=[], **options)


@rule(aten.masked_scatter)
def masked_scatter(op: OpContext, x: Value, mask: Value, source: Value) -> Value:
    """Elements of the source, in order, at the places of a constant mask."""
    # raises for a mask that is not known: which elements of the source are taken depends on it
    op.concrete(mask)
    return op.put(x, source, op.target, [mask], axes=[])


def indexed_axes(indices: Sequence[Value | None]) -> list[int]:
    """The axes that are indexed: one for each index tensor, and as many as it has for a mask."""
    axes: list[int] = []
    axis = 0
    for i in indices:
        count = len(i.shape) if i is not None and is_mask(i) else 1
        axes += range(axis, axis + count) if i is not None else ()
        axis += count
    return axes
