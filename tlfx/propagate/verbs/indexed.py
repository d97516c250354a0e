"""Elements read at indices. Fixed indices move maps; indices that depend on the image, on chance, on parameters or on
buffers move labels at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx._torch import tree_leaves, tree_map
from tlfx.errors import ProvenanceError
from tlfx.propagate.labels import Operand
from tlfx.propagate.maps import find_batch_axis, ids_of_sample
from tlfx.propagate.values import Value
from tlfx.propagate.verbs.base import axis_of_ids, varying
from tlfx.propagate.verbs.movement import Movement, with_image
from tlfx.runtime import BatchAxis

__all__ = ["ACROSS", "Indexed", "blocks_of", "is_mask", "nodes_of", "without"]


class Indexed(Movement):
    """Verbs of operators that read at indices."""

    def take(
        self, x: Value, function: Callable[..., Tensor], *args: Any, axes: Sequence[int], aligned: bool = False
    ) -> Value:
        """Elements of ``x`` at indices along ``axes``: ``function(x, *args)``.

        ``aligned`` means that the indices have the axes of ``x`` (gather), so that indices that are expanded along
        channels need not be followed channel by channel.
        """
        if all(self.is_fixed(a) or (is_mask(a) and self.is_known(a)) for a in tree_leaves(args)):
            return self.remap(x, lambda m: function(m, *tree_map(self.concrete, args)))
        return self._taken(x, function, args, axes, aligned, (runtime.gather_labels, function), nodes_of(args))

    def take_own(self, x: Value, axis: int) -> list[Value]:
        """Elements of ``x`` in an order that the operator computes along an axis (sort, topk), and their indices."""
        if not x.is_content and self.is_over_batch(x, [axis]):
            return [self.of_batch(), self.of_batch(self.shapes[1])]
        # stands for the indices, the second output of the operator
        places = Value(self.node, self.shapes[1], self.batch)
        values = self._taken(
            x, torch.gather, (axis, places), [axis], True, (runtime.gather_by_output,), (axis, self.node)
        )
        return [values, self.decide(x, axis)]

    def decide(self, x: Value, axis: int | None, keepdim: bool = True) -> Value:
        """An index along an axis (argmax): over channels it has the label of its token; over tokens it is a decision
        without label."""
        if self.is_over_batch(x, range(len(x.shape)) if axis is None else [axis]):
            return self.of_batch()
        last = (torch.Size(x.shape).numel() if axis is None else x.shape[axis]) - 1
        ends = torch.tensor([0, last]).view(2, *[1] * len(self.shape))
        index = self.weight()
        if axis is not None and x.is_content and x.map.shape[axis] == 1:
            index = self.content(x.map if keepdim else x.map.squeeze(axis))
        return replace(index, bounds=(ends[0], ends[1]))

    def _taken(
        self,
        x: Value,
        function: Callable[..., Tensor],
        args: tuple[Any, ...],
        axes: Sequence[int],
        aligned: bool,
        call: tuple[Callable[..., Tensor], ...],
        nodes: tuple[Any, ...],
    ) -> Value:
        if not x.is_content:
            return self.weight()
        where, axes = x.batch_axis, [a % len(x.shape) for a in axes]
        anywhere = self._anywhere(x, function, args) if where.axis in axes else tree_map(self._at_zero, args)
        moved = function(x.expanded()[0], *anywhere)
        place = self._place_of(moved)
        # labels are equal along the indexed axes, whatever the indices are
        if not varying(x.ids, _indexed_ids(where, axes)):
            return self.content(moved)
        once = self._once([x], axes, args if aligned else ())
        options: dict[str, Any] = {"once": tuple(once)} if once and aligned else {}
        if place != where:
            options["where_out"] = place
        indices = runtime.narrow(anywhere, once) if aligned else anywhere
        shape = function(runtime.narrow(x.expanded()[0], once), *indices).shape
        new = self.label(
            *call,
            Operand(with_image(x.ids.expand(without(where.split(x.shape), where, once)))),
            *nodes,
            shape=place.split(shape),
            kwargs={"where": where, **options},
        )
        out = self.from_ids(new, place)
        if x.pending is None:
            return out
        massed = self._filled_product(x)
        return replace(out, pending=self._taken(massed, function, args, axes, aligned, call, nodes).map)

    def _at_zero(self, arg: Any) -> Any:
        """An argument, or zeros as indices if it is not fixed: enough for shapes and for the order of samples.

        Raises ProvenanceError for a mask that is not known.
        """
        if self.is_fixed(arg) or is_mask(arg):  # how many elements a mask selects is a part of the graph
            return self.concrete(arg)
        return torch.zeros(arg.shape, dtype=torch.int64)

    def _anywhere(self, x: Value, function: Callable[..., Tensor], args: tuple[Any, ...]) -> Any:
        """Arguments, with indices along the axis of the batch at the lower end of their bounds.

        Raises ProvenanceError if they may reach other samples within these.
        """
        least, greatest = (tree_map(partial(self._at_end, end=end), args) for end in (0, 1))
        samples = blocks_of(x.shape, x.batch_axis)
        try:
            # samples follow one another: if both ends of an index are in one of them, all between are
            stays = torch.equal(function(samples, *least), function(samples, *greatest))
        except (IndexError, RuntimeError):  # bounds that are too wide
            stays = False
        if not stays:
            raise ProvenanceError(ACROSS.format(self.node.name))
        return least

    def _at_end(self, arg: Any, end: int) -> Any:
        bounded = isinstance(arg, Value) and arg.bounds is not None
        return arg.bounds[end].expand(arg.shape) if bounded else self._at_zero(arg)

    def _place_of(self, moved: Tensor) -> BatchAxis:
        """The place of the batch in a moved map. Raises ProvenanceError if samples change places."""
        try:
            place = find_batch_axis(moved, self.batch)
            ids_of_sample(moved, self.batch, place)
        except ProvenanceError as error:
            raise ProvenanceError(ACROSS.format(self.node.name)) from error
        return place

    def _once(self, moved: Sequence[Value], axes: Sequence[int], indices: Any) -> list[int]:
        """Axes that are not indexed and along which neither labels nor indices vary: one place is computed for all."""
        contents = [v for v in moved if v.is_content]
        known = contents[0]
        indexed = [known.batch_axis.axis, *(a % len(known.shape) for a in axes)]
        values = [v for v in tree_leaves(indices) if isinstance(v, Value)]
        return [
            a
            for a in range(len(known.shape))
            if a not in indexed
            and all(v.map.shape[a] == 1 for v in contents)
            and all(_repeats(v, a) for v in values)
            and known.shape[a] > 1
        ]


ACROSS = (
    "{} moves image content between the samples of a batch, or by indices that may; labels belong to one sample each. "
    "Align the part of the model before it instead."
)


def blocks_of(shape: Sequence[int], where: BatchAxis) -> Tensor:
    """The block of the batch axis, of the elements of one sample, that each element of a value belongs to."""
    blocks = torch.arange(shape[where.axis]) // where.inner
    return blocks.view([-1 if a == where.axis else 1 for a in range(len(shape))]).expand(tuple(shape))


def is_mask(arg: Any) -> bool:
    """Whether an index is a mask, which has an axis for each that it indexes."""
    example = arg.node.meta.get("val") if isinstance(arg, Value) else None
    return isinstance(example, Tensor) and example.dtype == torch.bool


def _indexed_ids(where: BatchAxis, axes: Sequence[int]) -> list[int]:
    """The axes of the ids of a value that is indexed along ``axes``: two for the axis of the batch."""
    ids = [axis_of_ids(where, a) for a in axes]
    return [*ids, where.axis] if where.axis in axes else ids


def nodes_of(args: Any) -> Any:
    """Arguments with nodes instead of values."""
    return tree_map(lambda v: v.node if isinstance(v, Value) else v, args)


def without(split: list[int], where: BatchAxis, once: Sequence[int]) -> list[int]:
    """A shape, its batch axis split, with size 1 along ``once``."""
    return [1 if a in [axis_of_ids(where, o) for o in once] else size for a, size in enumerate(split)]


def _repeats(index: Value, axis: int) -> bool:
    """Whether indices are constant along an axis, by their strides."""
    example = index.node.meta["val"]
    return index.shape[axis] == 1 or (isinstance(example, Tensor) and example.stride(axis) == 0)
