"""Elements written or added at indices that are known only as the model runs: token merging, graph networks."""

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
from tlfx.operations import Operation
from tlfx.propagate.labels import Operand
from tlfx.propagate.maps import IMAGE, NONE, map_of_ids
from tlfx.propagate.values import Value
from tlfx.propagate.verbs.indexed import ACROSS, Indexed, blocks_of, nodes_of, without
from tlfx.propagate.verbs.pending import carry_masses
from tlfx.runtime import BatchAxis

__all__ = ["Scattered"]

Write = Callable[..., Tensor]
"""A write, called as (values, *before, source, *after)."""


class Scattered(Indexed):
    """Verbs of operators that write at indices."""

    def put(
        self,
        x: Value,
        source: Value,
        function: Write,
        before: Sequence[Any],
        after: Sequence[Any] = (),
        *,
        axes: Sequence[int],
        aligned: bool = False,
        adds: bool = False,
        linear: bool = False,
        **options: Any,
    ) -> Value:
        """``source`` written into ``x`` at indices along ``axes``, or added to what is there: ``function(x, *before,
        source, *after, **options)``. Labels that meet are averaged, those of products with a factor by the factor if
        the sum is ``linear``; places without any have the image-level label. Known zeros that nothing is written to
        are padding, and channels of tokens of which some channels are written."""
        settings, write = (tuple(before), tuple(after)), partial(function, **options)
        is_constant = self.is_fixed if x.is_content and source.is_content else self.is_known
        if not adds and all(map(is_constant, tree_leaves(settings))):
            return self._put_at_constants(x, source, write, settings)
        if not (x.is_content or source.is_content):
            return self.weight()
        where = self._where_written(x, source, write, settings, axes)
        into_zeros = source.is_content and self.number(x) == 0
        # zeros.scatter(-1, experts, weights), as a mixture of experts has it: channels stay in their token
        if into_zeros and aligned and self._stays_in_tokens(source, axes):
            self.record(Operation.CHANNEL_MIX)
            return replace(carry_masses(self.content(source.map), source, lambda m: m), weighs=source.weighs)
        if adds:
            self.record(Operation.AGGREGATION)
        once = self._once_written(x, source, axes, settings, aligned)
        if once and not aligned:
            options = {"aligned": False, **options}
        products = any(v.is_content and v.pending is not None for v in (x, source))
        if not (linear and products) and not (into_zeros and (linear or not adds)):
            return self.from_ids(self._scattered(x, source, function, settings, where, once, options), where)
        x, source = (replace(v, maps=(self._pending_of(v),)) if v.is_content else v for v in (x, source))
        once = [a for a in once if all(v.map.shape[a] == 1 for v in (x, source) if v.is_content)]
        new = self._scattered(x, source, function, settings, where, once, {**options, "massed": True})
        out = self.from_ids(self._without_mass(new), where)
        return replace(out, pending=map_of_ids(new, self.batch, where), is_sum=adds)

    def _once_written(
        self, x: Value, source: Value, axes: Sequence[int], settings: tuple[Any, Any], aligned: bool
    ) -> list[int]:
        """Axes along which all labels are equal, and which a write treats alike."""
        if aligned:
            return self._once((x, source), axes, settings)
        if len(x.shape) != len(source.shape):
            return []
        last = max((a % len(x.shape) for a in axes), default=-1)  # several indices may add axes
        return [a for a in self._once((x, source), axes, ()) if len(axes) == 1 or a > last]

    def _stays_in_tokens(self, source: Value, axes: Sequence[int]) -> bool:
        """Whether a write along ``axes``, at as many places as the output has along all others, stays in its tokens."""
        written = [a % len(self.shape) for a in axes]
        same = all(n == m for a, (n, m) in enumerate(zip(source.shape, self.shape, strict=True)) if a not in written)
        maps = [m for m in (source.map, source.pending) if m is not None]
        return same and all(m.shape[a] == 1 for m in maps for a in written)

    def _put_at_constants(self, x: Value, source: Value, write: Write, settings: tuple[Any, Any]) -> Value:
        """:meth:`put` where it is known now which element of ``source`` goes where."""
        before, after = tree_map(self.concrete, settings)
        numbers = torch.arange(torch.Size(source.shape).numel()).view(source.shape)
        taken = write(torch.full(x.shape, -1), *before, numbers, *after)
        return replace(self.overwrite(x, source, taken), node=self.node)

    def _scattered(
        self,
        x: Value,
        source: Value,
        function: Write,
        settings: tuple[Any, Any],
        where: BatchAxis,
        once: Sequence[int],
        options: dict[str, Any],
    ) -> Tensor:
        """Ids of the labels of ``x``, its batch at ``where``, into which those of ``source`` are written at run time.

        ``once``: the axes along which all labels are equal, which are computed once.
        """
        if once:
            options = {"once": tuple(once), **options}
        if source.is_content and source.batch_axis != where:
            options = {"where_source": source.batch_axis, **options}
        return self.label(
            runtime.scatter_labels,
            function,
            *self._labels_of(x, once),
            *self._labels_of(source, once),
            Operand(torch.tensor([IMAGE])),
            *nodes_of(settings),
            shape=without(where.split(self.shape), where, once),
            kwargs={"where": where, **options},
        )

    def _where_written(
        self, x: Value, source: Value, write: Write, settings: tuple[Any, Any], axes: Sequence[int]
    ) -> BatchAxis:
        """The place of the batch in the output. Raises ProvenanceError if a sample may be written to another."""
        where = (x if x.is_content else source).batch_axis
        in_sample = where.axis not in [a % len(x.shape) for a in axes]
        if not source.is_content or (in_sample and source.batch_axis == where):
            return where
        if not x.is_content and where.axis < len(x.shape) and x.shape[where.axis] % self.batch == 0:
            # zeros (batch · tokens, channels) that the tokens of all samples are written to
            where = BatchAxis(where.axis, 1, x.shape[where.axis] // self.batch)
        samples = blocks_of(source.shape, source.batch_axis) % self.batch
        ends = (tree_map(partial(self._at_end, end=end), settings) for end in (0, 1))
        try:
            least, greatest = (_blocks_written(write, x, source, where, *settings) for settings in ends)
        except (IndexError, RuntimeError) as error:  # bounds that are too wide
            raise ProvenanceError(ACROSS.format(self.node.name)) from error
        if not (torch.equal(least, greatest) and torch.equal(least % self.batch, samples)):
            raise ProvenanceError(ACROSS.format(self.node.name))
        return where

    def _labels_of(self, x: Value, once: Sequence[int]) -> tuple[Any, Any]:
        """The ids of a value and a mask of those with content, 1 for all; the value itself and 0 if it has no
        content."""
        if not x.is_content:
            return x.node, 0
        ids = x.ids.expand(without(x.batch_axis.split(x.shape), x.batch_axis, once))
        known = ids != NONE
        return Operand(torch.where(known, ids, ids.max())), 1 if bool(known.all()) else known.float()


def _blocks_written(write: Write, x: Value, source: Value, where: BatchAxis, before: Any, after: Any) -> Tensor:
    """The block of the batch axis of ``x`` that each element of ``source`` is written to: what the gradient of a write
    reads there."""
    with torch.enable_grad():
        given = torch.ones(source.shape, dtype=torch.float64, requires_grad=True)
        out = write(torch.zeros(x.shape, dtype=torch.float64), *before, given, *after)
        blocks = blocks_of(x.shape, where).to(out)
        read, count = (torch.autograd.grad(out, given, b, retain_graph=True)[0] for b in (blocks, torch.ones_like(out)))
    # a mean scales all gradients of an element alike, which cancels
    return (read / count).round().long()
