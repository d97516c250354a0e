"""Products of content with a factor: labels that wait, with the mass |factor|, for a sum over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.propagate.labels import Operand
from tlfx.propagate.maps import IMAGE, NONE, compact, ids_of_sample, map_of_ids
from tlfx.propagate.values import Value
from tlfx.propagate.verbs.bounds import Bounded
from tlfx.runtime import BatchAxis

__all__ = ["Weighing", "fill_any", "mixed_before"]


@dataclass(frozen=True, eq=False)
class _Product:
    """A product ``out`` of the content ``x`` with a factor; axes of its ids count the batch axis twice."""

    out: Value
    x: Value
    factor: Value
    of_x: Sequence[int]
    of_factor: Sequence[int]
    differs: list[bool]
    """Whether the factor has different elements along each axis of the ids."""
    by_query: list[bool]
    """Whether labels differ along an axis because of the factor alone, as along that of queries."""
    inverse: bool
    normalises: bool = False
    """Whether the factor is the sum of another, by channel."""

    @property
    def where(self) -> BatchAxis:
        """The place of the batch in the product."""
        return self.out.batch_axis

    def ids(self, content: Tensor | None) -> Tensor:
        """The ids of a map of ``x``, None for that of the product itself."""
        moved = self.out.map if content is None else _to_axes(content, self.of_x, len(self.out.shape))
        return ids_of_sample(moved, self.out.batch, self.where)

    @cached_property
    def sizes(self) -> torch.Size:
        """The shape of the ids of the content, with the masses that it has already."""
        return self.ids(self.x.pending).shape

    @cached_property
    def labelled(self) -> list[bool]:
        """Whether labels differ along each axis of the ids: masses are averaged over the others, the channels."""
        return [n > 1 or q for n, q in zip(self.sizes, self.by_query, strict=True)]

    @cached_property
    def channels(self) -> list[int]:
        """The axes of the ids of channels, along which the factor differs."""
        return [i for i, (d, n) in enumerate(zip(self.differs, self.labelled, strict=True)) if d and not n]

    @cached_property
    def is_gate(self) -> bool:
        """Whether the factor is the same for all tokens: however it differs by channel, tokens count the same."""
        return not self.normalises and not any(d and n for d, n in zip(self.differs, self.labelled, strict=True))

    @cached_property
    def by_channel(self) -> bool:
        """Whether the factor makes tokens count by channel."""
        return bool(self.channels) and not self.is_gate

    @cached_property
    def by_token(self) -> bool:
        """Whether the factor differs from token to token, or the content has masses already."""
        return self.x.pending is not None or any(n > 1 and d for n, d in zip(self.sizes, self.differs, strict=True))


class Weighing(Bounded):
    """Steps of products with a factor."""

    def _weighted_product(
        self,
        out: Value,
        x: Value,
        factor: Value,
        of_x: Sequence[int] | None = None,
        of_factor: Sequence[int] | None = None,
        *,
        inverse: bool = False,
    ) -> Value:
        """A product ``out`` of the content ``x`` (or a quotient, ``inverse``) with its labels weighted by |factor|.

        The axes of the two are those ``of_x`` and ``of_factor`` of the product, -1 for those that it lacks; by default
        the last. Labels stay without a mass if the factor is the same for all tokens.
        """
        if factor.softmax_of is not None:  # parts of one softmax count by their weights alone
            x = replace(x, mass=None)
        out = replace(out, origin=x.source, factored=x.base, is_product=True, mixed_by=factor.softmax_of or x.mixed_by)
        out = out if factor.is_constant else replace(out, function_of=None)
        # under weights that the image decides, padding with a bias counts as tokens (eq. 5)
        summed = (out, x) if factor.is_constant or not x.biased else (_with_tokens(out), _with_tokens(x))
        product = self._product(*summed, factor, of_x, of_factor, inverse)
        if x.is_sum and not inverse:  # the next weights, unless the factor is the same for all tokens
            of_mixed = replace(product, x=mixed_before(product.x))
            product = of_mixed if of_mixed.by_token else product
        if product.by_channel or x.by_element is not None:
            out = replace(out, by_element=lambda: self._masses(product, by_element=True))
        # a gate: all tokens count alike, unless several such products are summed, as branches of split attention are
        if not product.by_token:
            return replace(out, mass=lambda: self._masses(product))
        return replace(out, pending=self._masses(product), function_of=None)

    def _product(
        self,
        out: Value,
        x: Value,
        factor: Value,
        of_x: Sequence[int] | None,
        of_factor: Sequence[int] | None,
        inverse: bool,
    ) -> _Product:
        rank, where = len(out.shape), out.batch_axis
        of_x, of_factor = (
            range(rank - len(v.shape), rank) if at is None else at for v, at in ((x, of_x), (factor, of_factor))
        )
        differs = [a for a, own in zip(of_factor, self._own_axes(factor), strict=True) if own and a >= 0]
        own = [a for a, own in zip(of_x, self._own_content(x), strict=True) if own and a >= 0]
        labelled = [a for m in factor.maps for a, n in zip(of_factor, m.shape, strict=True) if n > 1 and a >= 0]
        samples = [where.axis] if where.outer == where.inner == 1 else []  # holds nothing but the batch
        queries = [a for a in differs if (a not in own or a in labelled) and a not in samples]
        by_element, by_query = (_by_part(axes, where, rank) for axes in (differs, queries))
        return _Product(out, x, factor, of_x, of_factor, by_element, by_query, inverse)

    def _masses(self, product: _Product, by_element: bool = False) -> Tensor:
        """The map of the labels of a product, with the mass that their factors have on the average of channels; or of
        each channel, ``by_element``."""
        x, out, where = product.x, product.out, product.where
        before = x.pending
        if x.by_element is not None and (by_element or product.by_channel):
            before = x.by_element()
        elif before is None and x.mass is not None:
            before = x.mass()
        ids = product.ids(before)
        of_channel = product.channels if by_element and not product.is_gate else []
        axes = zip(ids.shape, where.split(out.shape), product.by_query, strict=True)
        ids = ids.expand([max(n, size if q or i in of_channel else 1) for i, (n, size, q) in enumerate(axes)])
        sizes = zip(ids.shape, product.labelled, strict=True)
        over = [] if by_element else [i for i, (n, labelled) in enumerate(sizes) if n > 1 and not labelled]
        options: dict[str, Any] = {"where": where, "at": tuple(product.of_factor), **self.signed}
        gate = tuple(product.channels) if product.is_gate else ()
        given = {"massed": before is not None, "inverse": product.inverse, "over": tuple(over), "averaged": gate}
        options |= {name: option for name, option in given.items() if option}
        shape = [1 if i in over else n for i, n in enumerate(ids.shape)]
        args = (Operand(fill_any(ids)), product.factor.read)
        new = self.label(runtime.weigh, *args, shape=shape, same_places=True, kwargs=options)
        known = (ids != NONE).any(over, keepdim=True) if over else ids != NONE
        return map_of_ids(torch.where(known, new, NONE), self.batch, where)

    def _own_axes(self, x: Value) -> list[bool]:
        """For each axis of a value whether it has different elements along it; strides tell for constants."""
        if x.elements is not None and not x.by_place:
            return [n > 1 for n in x.elements.shape]
        example = x.node.meta.get("val")
        strides = example.stride() if isinstance(example, Tensor) and example.dim() == len(x.shape) else x.shape
        return [n > 1 and stride != 0 for n, stride in zip(x.shape, strides, strict=True)]

    def _own_content(self, x: Value) -> list[bool]:
        """The same for the content that the elements hold."""
        return self._own_axes(replace(x, by_place=False))


def _by_part(axes: Sequence[int], where: BatchAxis, rank: int) -> list[bool]:
    """Whether each axis of ids, whose batch axis is split in two, is among axes of a value."""
    inside: list[bool] = [a in axes for a in range(rank)]
    return [*inside[: where.axis], inside[where.axis], inside[where.axis], *inside[where.axis + 1 :]]


def _to_axes(content: Tensor, at: Sequence[int], rank: int) -> Tensor:
    """A map whose axes are those ``at`` of a value of this rank, along which -1 it does not vary."""
    content = content.squeeze([i for i, a in enumerate(at) if a < 0])
    at = [a for a in at if a >= 0]
    order = sorted(range(len(at)), key=at.__getitem__)
    shape = [1] * rank
    for i in order:
        shape[at[i]] = content.shape[i]
    return content.permute(order).reshape(shape)


def _with_tokens(x: Value) -> Value:
    """Content in which a bias made tokens of the elements without content: they have the image-level label (eq. 5)."""
    ids = torch.where(x.ids == NONE, IMAGE, x.ids)
    return replace(x, maps=(compact(map_of_ids(ids, x.batch, x.batch_axis)),))


def mixed_before(x: Value) -> Value:
    """A value for the next weights: a sum of products over tokens as a matrix product would have made it, whose labels
    have no mass."""
    return x.with_maps(*x.maps) if x.is_sum and x.pending is not None else x


def fill_any(ids: Tensor) -> Tensor:
    """Ids in which elements without content have any other id, which does not count."""
    return torch.where(ids == NONE, ids.max(), ids)
