"""Data movement: the operator itself runs on the map, so that no rule repeats what an operator does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tlfx.capture.tensor_calls import data_of
from tlfx.errors import RuleError
from tlfx.graph.aliasing import element_offsets, storage_length
from tlfx.propagate.maps import NONE
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten
OUTSIDE = NONE - 1
"""Memory that holds no element of a value."""


@rule(
    aten.reshape,
    aten.flatten,
    aten.unflatten,
    aten.permute,
    aten.transpose,
    aten.swapaxes,
    aten.swapdims,
    aten.moveaxis,
    aten.movedim,
    aten.t,
    aten.numpy_T,
    aten.mT,
    aten.adjoint,
    aten.squeeze,
    aten.unsqueeze,
    aten.expand,
    aten.broadcast_to,
    aten.repeat,
    aten.tile,
    aten.repeat_interleave,
    aten.slice,
    aten.select,
    aten.narrow,
    aten.narrow_copy,
    aten.unfold,
    aten.roll,
    aten.flip,
    aten.rot90,
    aten.pixel_shuffle,
    aten.pixel_unshuffle,
    aten.channel_shuffle,
    aten.diagonal,
    aten.ravel,
    aten.matrix_H,
    aten.atleast_1d,
    aten.atleast_2d,
    aten.atleast_3d,
    aten.fft_fftshift,
    aten.fft_ifftshift,
    aten.fliplr,
    aten.flipud,
    aten.squeeze_copy,
    aten.permute_copy,
    aten.slice_copy,
    aten.select_copy,
    contexts=True,
)
def move(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Each element keeps its label."""
    return op.move()


@rule(
    aten.split,
    aten.split_with_sizes,
    aten.tensor_split,
    aten.chunk,
    aten.unbind,
    aten.unsafe_split,
    aten.unsafe_chunk,
    aten.hsplit,
    aten.vsplit,
    aten.dsplit,
    aten.unsafe_split_with_sizes,
    contexts=True,
)
def move_each(op: OpContext, x: Value, *settings: Any, **options: Any) -> list[Value]:
    """Each element keeps its label, in one of several outputs."""
    return op.move_each()


@rule(aten.view, aten._unsafe_view, aten.view_copy, contexts=True)
def view(op: OpContext, x: Value, size: Any) -> Value:
    """Each element keeps its label; a reshape, since the map may lack the memory layout that a view requires."""
    # view.dtype has a type in the place of the size
    return op.remap(x, lambda m: m.reshape(size)) if isinstance(size, list) else op.same(x)


@rule(aten.as_strided, aten.as_strided_copy)
def as_strided(op: OpContext, x: Value, size: Any, stride: Any, storage_offset: int | None = None) -> Value:
    """The elements at places of the memory of x: a view that reads no other memory."""
    offsets = element_offsets(x.node)
    first = int(offsets.min()) if storage_offset is None else storage_offset

    def read(content: torch.Tensor) -> torch.Tensor:
        memory = torch.full((storage_length(x.node),), OUTSIDE)
        return memory.scatter(0, offsets.flatten(), content.flatten()).as_strided(size, stride, first)

    # x may be a view of a larger tensor, which as_strided reads beyond x
    if bool((read(torch.zeros(x.shape, dtype=torch.int64)) == OUTSIDE).any()):
        raise RuleError("as_strided reads memory outside its input: call it on the whole tensor")
    return op.remap(x, read)


@rule(aten.im2col, aten.diag_embed)
def im2col(op: OpContext, x: Value, *settings: Any) -> Value:
    """Patches as columns, a diagonal in a matrix: the zeros between and around them hold no content."""
    # both fill with 0, an element of maps as well: shifted by one, what is filled becomes NONE
    return op.remap(x, lambda m: op.target(m.double() + 1, *settings).long() - 1)


@rule(aten.view_as, aten.reshape_as, aten.expand_as, contexts=True)
def move_as(op: OpContext, x: Value, like: Value) -> Value:
    """Each element keeps its label, in the shape of another value."""
    if op.target is aten.expand_as.default:
        return op.remap(x, lambda m: m.expand(like.shape))
    return op.remap(x, lambda m: m.reshape(like.shape))


@rule(
    aten.contiguous,
    aten.clone,
    aten.alias,
    aten.detach,
    data_of,
    aten.to,
    aten.type_as,
    aten.lift,
    aten.lift_fresh,
    aten.lift_fresh_copy,
    aten._to_copy,
    aten.real,
    aten.imag,
    aten.conj,
    aten._conj,
    aten.resolve_conj,
    aten.resolve_neg,
    aten.positive,
    aten.detach_copy,
    aten.alias_copy,
    contexts=True,
)
def same(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """The value itself, in another type, device or memory layout."""
    return op.same(x)


@rule(aten.view_as_real)
def view_as_real(op: OpContext, x: Value) -> Value:
    """x (*) → (*, 2): real and imaginary part as channels."""
    return op.remap(x, lambda m: m[..., None].expand(*m.shape, 2))


@rule(aten.view_as_complex)
def view_as_complex(op: OpContext, x: Value) -> Value:
    """x (*, 2) → (*): the label of both parts, averaged where they differ."""
    return op.reduce(x, -1, linear="mean")


@rule(aten.cat, aten.concat, aten.concatenate)
def cat(op: OpContext, values: Sequence[Value], dim: int = 0) -> Value:
    """Concatenated labels; tokens without content get the image-level label (eq. 5)."""
    return op.join(values, dim)


@rule(aten.stack)
def stack(op: OpContext, values: Sequence[Value], dim: int = 0) -> Value:
    """The same along a new axis."""
    return op.stack(values, dim)


@rule(aten.hstack, aten.column_stack, aten.vstack, aten.row_stack, aten.dstack)
def stack_side_by_side(op: OpContext, values: Sequence[Value]) -> Value:
    """Along the second axis, the first or the third, of values that have at least as many."""
    name = op.target.overloadpacket.__name__
    axis = 2 if name == "dstack" else 0 if name in ("vstack", "row_stack") else 1
    # torch reshapes values of fewer axes first, in a different way for each of these operators
    if any(len(v.shape) <= max(axis, 1) for v in values):
        raise RuleError(f"{name} of values of fewer than {max(axis, 1) + 1} axes: give them their axes before")
    return op.join(values, axis)


@rule(aten.broadcast_tensors)
def broadcast(op: OpContext, values: Sequence[Value]) -> list[Value]:
    """Each value in the broadcast shape."""
    return [op.taken_from(v) for v in values]


@rule(aten.pad, aten.constant_pad_nd)
def pad(op: OpContext, x: Value, pad: Sequence[int], mode: Any = "constant", value: Any = None) -> Value:
    """Zeros hold no content; reflected, replicated and circular padding have the labels that they copy."""
    if mode in ("reflect", "replicate", "circular"):
        return op.move()
    # whatever number is filled in
    return op.remap(x, lambda m: torch.nn.functional.pad(m, list(pad), value=NONE))


@rule(
    aten.reflection_pad1d,
    aten.reflection_pad2d,
    aten.reflection_pad3d,
    aten.replication_pad1d,
    aten.replication_pad2d,
    aten.replication_pad3d,
)
def pad_by_copies(op: OpContext, x: Value, pad: Sequence[int]) -> Any:
    """Padding by copies of the border."""
    return op.move()


@rule(aten.tril, aten.triu)
def triangle(op: OpContext, x: Value, diagonal: int = 0) -> Value:
    """Elements outside the triangle hold no content."""
    return op.erase(x, op.target(torch.ones(op.shape), diagonal) == 0)


@rule(aten.copy, contexts=True)
def copy(op: OpContext, x: Value, source: Value, non_blocking: bool = False) -> Value:
    """x takes the content of another value."""
    return op.taken_from(source)
