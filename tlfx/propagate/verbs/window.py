"""Sliding windows: convolutions, pooling and resampling, by the operator itself run on labels and on ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.errors import ProvenanceError
from tlfx.operations import Operation
from tlfx.propagate.labels import NodeFunction, Operand
from tlfx.propagate.maps import NONE, compact, ids_of_sample, map_of_ids
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.base import varying
from tlfx.propagate.verbs.einsum import Einsum
from tlfx.propagate.verbs.movement import with_image
from tlfx.propagate.verbs.pending import moved_factors, with_pending_labels
from tlfx.propagate.verbs.weighing import mixed_before
from tlfx.runtime import BatchAxis

__all__ = ["Window"]


class Window(Einsum):
    """Verbs of operators that slide over axes of an image."""

    def convolve(self, x: Value, weight: Value, *args: Any, spatial: int, groups: int = 1) -> Value:
        """A convolution over the last ``spatial`` axes, the operator called as (maps, kernel, None, *args).

        Spatial mixing by |K| averaged over channels and normalised over valid positions, times the factor of a product
        (Y ← Norm(|K|·|w|)·Y); channel mixing if labels do not vary along the axes it slides over.
        """
        if not x.is_content:
            return self.weight()
        # ids (outer, inner, channels, *size): the kernel slides over equal labels
        if weight.is_constant and not varying(x.ids, range(3, x.ids.dim())):
            return self._by_group(x, weight, groups)
        by_group = self._channels(x, groups)
        if not varying(by_group, range(by_group.dim() - spatial, by_group.dim())):
            self.record(Operation.CHANNEL_MIX)
            return self._by_channel(by_group, x)
        self.record(Operation.SPATIAL_MIX)
        x = self._by_value(x)
        return self._slid_by_group(x, groups, spatial, lambda ids: self._by_kernel(ids, weight, *args, spatial=spatial))

    def has_samples_in_groups(self, x: Value, groups: int) -> bool:
        """Whether a convolution of ``x`` has the samples of the batch in its groups, x (1, batch · in, *size), so that
        each sample has its own kernel."""
        # as timm's CondConv2d calls it, (1, batch · channels, height, width): the batch on axis 1, nothing before it
        return x.is_content and x.shape[0] == 1 and x.batch_axis[:2] == (1, 1) and groups % self.batch == 0

    def convolve_samples(
        self, rule: Callable[..., Value], x: Value, weight: Value, *, groups: int, **settings: Any
    ) -> Value:
        """Such a convolution, by the ``rule`` of the convolution of x (batch, in, *size), called as (op, x, weight,
        groups=..., **settings)."""
        count = weight.shape[0] // self.batch
        if weight.is_content and weight.batch_axis != BatchAxis(0, 1, count):
            raise ProvenanceError(f"{self.node.name} convolves a sample of the batch by a kernel of another sample")
        of_samples = NodeFunction(runtime.kernel_weights, weight.node, {"count": count, **self.signed})
        kernel = Value(weight.node, (count, *weight.shape[1:]), self.batch, Role.WEIGHT, read_as=of_samples)
        # (1, batch · in, *size) → (batch, in, *size)
        view = self.remap(x, lambda m: m.squeeze(0).unflatten(0, (self.batch, -1)))
        out = self.step((self.batch, self.shape[1] // self.batch, *self.shape[2:]))
        by_sample = rule(out, view, kernel, groups=groups // self.batch, **settings)
        return self.remap(by_sample, lambda m: m.flatten(0, 1).unsqueeze(0))

    def _by_group(self, x: Value, weight: Value, groups: int) -> Value:
        """A contraction of the channels of each group, x (batch, groups · in, *size) and weight (groups · out, in,
        *kernel), which may be tokens: labels do not vary along the axes that the kernel slides over, if at all."""
        if x.batch_axis.axis != 0:
            raise ProvenanceError(f"{self.node.name} takes its batch on axis {x.batch_axis.axis}, not 0")
        size, kernel = ([f"{kind}{i}" for i in range(len(x.shape) - 2)] for kind in ("size", "kernel"))
        read_as = NodeFunction(runtime.by_group, weight.node, {"groups": groups})
        by_group = Value(
            weight.node,
            (groups, weight.shape[0] // groups, *weight.shape[1:]),
            self.batch,
            read_as=read_as,
        )
        view = self.remap(x, lambda m: m.unflatten(1, (groups, -1)))
        if self._is_held(x) and x.read_as is None:
            view = replace(view, read_as=NodeFunction(runtime.by_group, x.node, {"groups": groups, "axis": 1}))
        out = self.step((self.shape[0], groups, self.shape[1] // groups, *self.shape[2:]))
        of_x, of_w = ("batch", "group", "in", *size), ("group", "out", "in", *kernel)
        mixed = out.multiply(view, of_x, by_group, of_w, ("batch", "group", "out", *size))
        shape = (*out.shape[:3], *mixed.map.shape[3:])
        return self.content(mixed.map.expand(shape).flatten(1, 2)) if mixed.is_content else self.constant()

    def _by_kernel(self, by_group: Tensor, weight: Value, *args: Any, spatial: int) -> Tensor:
        # tells which positions see content, whatever the weights are
        kernel = torch.ones(1, 1, *weight.shape[2:])
        return self._slide(
            runtime.convolve,
            by_group,
            spatial,
            lambda ones: self.target(ones, kernel, None, *args),
            (self.target,),
            (weight.read_as or NodeFunction(runtime.kernel_weights, weight.node, self.signed), *args),
            by_sample=weight.read_as is not None,
        )

    def patchify(self, x: Value, operator: Callable[..., Tensor], weight: Value, *args: Any, groups: int = 1) -> Value:
        """A convolution whose kernel equals its stride, without padding, called as (maps, kernel, None, *args):
        aggregation, uniform over each patch, by the averaging ``operator``; or by |K|, if the policy says so."""
        kernel = list(weight.shape[2:])
        spatial = len(kernel)
        self.record(Operation.AGGREGATION)
        if self.policy.aggregation == "weighted":
            return self._slid_by_group(
                x, groups, spatial, lambda ids: self._by_kernel(ids, weight, *args, spatial=spatial)
            )
        return self._slid_by_group(x, groups, spatial, lambda ids: self._resampled(ids, spatial, operator, kernel))

    def _slid_by_group(self, x: Value, groups: int, spatial: int, slide: Callable[[Tensor], Tensor]) -> Value:
        """Content that ``slide`` computes from ids by group of channels: of a product, from those with a mass."""
        x = mixed_before(x)
        labels = x if x.pending is None else with_pending_labels(x)
        ids = slide(_full(self._channels(labels, groups), x, spatial))
        return self._by_channel(ids if x.pending is None else self._without_mass(ids), x)

    def subsample(self, x: Value, stride: Sequence[int], weight: Value, groups: int = 1) -> Value:
        """A convolution with a kernel of one pixel: every stride-th position, then a contraction of the channels."""
        if any(s > 1 for s in stride):
            step: Any = (Ellipsis, *(slice(None, None, s) for s in stride))
            shape = (*x.shape[: -len(stride)], *self.shape[-len(stride) :])
            x = replace(self.step(shape).remap(x, lambda m: m[step]), node=x.node)
        if x.is_content and groups > 1 and weight.is_constant:
            return self._by_group(x, weight, groups)
        if x.is_content and weight.read_as is not None:  # kernels of samples
            self.record(Operation.CHANNEL_MIX)
            return self._by_channel(self._channels(x, groups), x)
        return self.contract(x, len(x.shape) - 1 - len(stride), weight)

    def pool(self, x: Value, operator: Callable[..., Tensor], *args: Any, spatial: int, linear: bool = False) -> Value:
        """Pooling: uniform over valid positions, by an averaging ``operator`` with the pool's arguments; of a product
        with a factor that a ``linear`` pool averages, by that factor. It is spatial mixing if it keeps the token grid,
        aggregation otherwise."""
        if not x.is_content:
            return self.pointwise_like(x)
        # factors do not weight a maximum
        x = x if linear else replace(x, pending=None)
        same_grid = self.shape[-spatial:] == x.shape[-spatial:]
        operation = Operation.SPATIAL_MIX if same_grid else Operation.AGGREGATION
        out = self._resample(operation, x, spatial, operator, *args)
        if linear and (valued := self._by_value(x)) is not x:
            out = replace(out, maps=self._resample(operation, valued, spatial, operator, *args).maps)
        if linear and out.is_content:

            def pooled(content: Tensor) -> Tensor:
                ids = _full(ids_of_sample(content, self.batch, x.batch_axis), x, spatial)
                return map_of_ids(self._resampled(ids, spatial, operator, *args), self.batch, x.batch_axis)

            out = replace(out, sum_of=x.summand, by_factor=moved_factors(x, pooled, summed=True))
        # the mean of a whole map is a statistic, as squeeze-and-excitation takes one
        is_global = torch.Size(self.shape[-spatial:]).numel() == 1
        return self._as_statistic(out, x) if is_global else out

    def resample(self, x: Value, *args: Any, spatial: int, operator: Callable[..., Tensor] | None = None) -> Value:
        """Resampling of the last ``spatial`` axes: the operator itself on the labels, over itself on ones."""
        if not x.is_content:
            return self.pointwise_like(x)
        operator = operator or self.target
        if "nearest" in str(operator):  # moves elements
            self.record(Operation.SPATIAL_MIX)
            return self.remap(x, lambda full: operator(full, *args))
        return self._resample(Operation.SPATIAL_MIX, x, spatial, operator, *args)

    def resample_by_data(
        self, x: Value, operator: Callable[..., Tensor], where: Value, *args: Any, spatial: int
    ) -> Value:
        """Resampling at places that may depend on the image: operator(maps, places, *args)."""
        return self._at_places(runtime.resample_at, x, spatial, operator, where.node, *args)

    def convolve_by_data(
        self, x: Value, weight: Value, places: Value, modulation: Value, copies: int, *args: Any
    ) -> Value:
        """A convolution over two axes at places that may depend on the image, the operator called as (maps, kernel,
        places, modulation, bias, *args): spatial mixing by |K|, averaged over channels."""
        return self._at_places(
            runtime.convolve_at,
            x,
            2,
            self.target,
            weight.node,
            places.node,
            modulation.node,
            copies,
            *args,
            **self.signed,
        )

    def _at_places(
        self,
        function: Callable[..., Tensor],
        x: Value,
        spatial: int,
        operator: Callable[..., Tensor],
        *args: Any,
        **options: Any,
    ) -> Value:
        if not x.is_content:
            return self.pointwise_like(x)
        where, ids = x.batch_axis, _full(x.ids, x, spatial)
        if where.axis != 0 or ids.shape[2] > 1:
            raise ProvenanceError(f"{self.node.name} samples a value whose channels carry different labels")
        self.record(Operation.SPATIAL_MIX)
        lead = (where.outer, where.inner)  # groups of channels may be merged into the batch, each with its own places
        on_grid = Operand(with_image(ids[:, :, 0]).expand(*lead, *x.shape[-spatial:]))
        options["where"] = where
        new = self.label(
            function, operator, on_grid, *args, shape=(*lead, *self.shape[2:]), kwargs=options, by_sample=True
        )
        return self.from_ids(new.unsqueeze(2), where)

    def overlap_add(self, x: Value, operator: Callable[..., Tensor], kernel: Sequence[int], *args: Any) -> Value:
        """Folding of patches (batch, channels · kernel, patches) to an image; labels are averaged where patches
        overlap."""
        size = int(torch.Size(kernel).numel())
        where = x.batch_axis
        # (outer, inner, channels, kernel, patches)
        by_kernel = x.ids.expand(*x.ids.shape[:2], x.shape[1], x.shape[2]).unflatten(2, (-1, size))
        if not bool((by_kernel == by_kernel[:, :, :1]).all()):
            raise ProvenanceError("a fold of patches whose channels carry different labels is not supported")
        self.record(Operation.SPATIAL_MIX)
        ids = self._resampled(by_kernel[:, :, 0], 2, operator, *args, channel=False)
        return self.from_ids(ids.unsqueeze(2), where)

    def pointwise_like(self, x: Value) -> Value:
        """A sliding window over a weight gives a weight."""
        return self.weight() if x.role is Role.WEIGHT else self.constant()

    def _resample(
        self, operation: Operation, x: Value, spatial: int, operator: Callable[..., Tensor], *args: Any
    ) -> Value:
        if x.batch_axis.axis >= len(x.shape) - spatial:
            raise ProvenanceError(f"{self.node.name} slides over the batch; labels belong to one sample each")
        if not varying(x.ids, range(x.ids.dim() - spatial, x.ids.dim())):
            self.record(Operation.CHANNEL_MIX)
            return self.from_ids(x.ids, x.batch_axis)
        self.record(operation)
        x = mixed_before(x)
        out = self.from_ids(self._resampled(_full(x.ids, x, spatial), spatial, operator, *args), x.batch_axis)
        if x.pending is None:
            return out
        ids = ids_of_sample(x.pending, self.batch, x.batch_axis)
        massed = self._resampled(_full(ids, x, spatial), spatial, operator, *args)
        out = self.from_ids(self._without_mass(massed), x.batch_axis)
        return replace(out, pending=map_of_ids(massed, self.batch, x.batch_axis))

    def _resampled(
        self, ids: Tensor, spatial: int, operator: Callable[..., Tensor], *args: Any, channel: bool = True
    ) -> Tensor:
        def run(ones: Tensor) -> Tensor:
            return operator(ones, *args) if channel else operator(ones.squeeze(1), *args).squeeze(1)

        options = {} if channel else {"channel": False}
        return self._slide(runtime.resample, ids, spatial, run, (operator,), args, options)

    def _slide(
        self,
        function: Callable[..., Tensor],
        ids: Tensor,
        spatial: int,
        run: Callable[[Tensor], Tensor],
        before: tuple[Any, ...],
        after: tuple[Any, ...],
        options: dict[str, Any] | None = None,
        *,
        by_sample: bool = False,
    ) -> Tensor:
        """Ids of new labels on the grid of ``run(ones)``; positions without content in their window have none."""
        lead, size = ids.shape[:-spatial], ids.shape[-spatial:]
        grid = ids.reshape(-1, *size)
        valid = (grid != NONE).float()
        mass = run(valid.unsqueeze(1)).squeeze(1)
        seen, kwargs = mass > 0, dict(options or {})
        if not bool(valid.all()):
            kwargs["valid"] = valid
        # pooling without padding: nothing to divide at run time
        elif function is runtime.resample and bool((mass == 1).all()):
            kwargs["keeps_ones"] = True
        new = self.label(
            function,
            *before,
            Operand(torch.where(grid == NONE, grid.max(), grid)),
            *after,
            shape=seen.shape,
            kwargs=kwargs,
            by_sample=by_sample,
        )
        return torch.where(seen, new, NONE).reshape(*lead, *seen.shape[1:])

    def _channels(self, x: Value, groups: int) -> Tensor:
        """Ids of one sample with the channels of each group averaged: axes (outer, inner, groups or 1, *size)."""
        if x.batch_axis.axis != 0:
            raise ProvenanceError(f"{self.node.name} takes its batch on axis {x.batch_axis.axis}, not 0")
        if x.ids.shape[2] == 1:
            return x.ids
        # (outer, inner, groups, channels of a group, *size)
        by_group = x.ids.unflatten(2, (groups, -1))
        return compact(self.uniform_over(by_group, [3]).squeeze(3))

    def _by_channel(self, ids: Tensor, x: Value) -> Value:
        """Content from ids by channel group: all output channels of a group have its ids."""
        if ids.shape[2] > 1:
            ids = ids.repeat_interleave(self.shape[1] // ids.shape[2], 2)
        return self.from_ids(ids, BatchAxis(0, x.batch_axis.outer, x.batch_axis.inner))


def _full(ids: Tensor, x: Value, spatial: int) -> Tensor:
    """Ids with the axes slid over in full, also where labels are constant along one of them."""
    return ids.expand(*ids.shape[:-spatial], *x.shape[-spatial:])
