"""Axes by subscript, as in an einsum equation: the bookkeeping of contractions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tlfx.propagate.maps import IMAGE, NONE
from tlfx.propagate.values import Value
from tlfx.runtime import BatchAxis, Equation
from tlfx.runtime.equation import QUERY

__all__ = ["ContractionAxes", "SubscriptedIds", "Subscripts", "arrange", "equation", "split_subscripts", "symbols_of"]

Subscripts = tuple[str, ...]


def split_subscripts(subscripts: Iterable[str], batch: str) -> Subscripts:
    """Subscripts of a value whose batch axis is split into (outer, inner)."""
    return tuple(part for c in subscripts for part in ((f"{c}<", f"{c}>") if c == batch else (c,)))


@dataclass(frozen=True)
class SubscriptedIds:
    """The label ids of one sample with a subscript for each axis, and the subscript and place of the batch."""

    ids: Tensor
    subscripts: Subscripts
    batch: str
    where: BatchAxis

    @classmethod
    def of(cls, x: Value, subscripts: Sequence[str]) -> SubscriptedIds:
        """The ids of a content value with these subscripts."""
        batch = subscripts[x.batch_axis.axis]
        return cls(x.ids, split_subscripts(subscripts, batch), batch, x.batch_axis)

    def varying(self, subscripts: Iterable[str]) -> list[str]:
        """Those of ``subscripts`` along which the ids vary."""
        return [c for c in subscripts if c in self.subscripts and self.ids.shape[self.subscripts.index(c)] > 1]

    def pick(self, subscripts: Sequence[str]) -> Tensor:
        """The ids with only the axes of ``subscripts``, in that order; all others must be constant."""
        return arrange(self.ids, self.subscripts, subscripts)

    def split(self, subscripts: Sequence[str]) -> Subscripts:
        """The subscripts of another value of the contraction for one sample."""
        return split_subscripts(subscripts, self.batch)

    def where_in(self, subscripts: Sequence[str]) -> BatchAxis:
        """The place of the batch in a value with these subscripts, which it has."""
        return BatchAxis(tuple(subscripts).index(self.batch), self.where.outer, self.where.inner)

    def size_of(self, subscript: str) -> int:
        """Length of an axis for one sample, also where the ids are constant along the batch's own axes."""
        parts = dict(zip(split_subscripts([self.batch], self.batch), self.where[1:], strict=True))
        return parts.get(subscript) or self.ids.shape[self.subscripts.index(subscript)]


@dataclass(frozen=True)
class ContractionAxes:
    """The axes of a contraction of content with a weight, each classified once by its part in it.

    All are subscripts for one sample, the batch axis being split into (outer, inner).
    """

    content: SubscriptedIds
    weight: Subscripts
    out: Subscripts

    @classmethod
    def of(cls, content: SubscriptedIds, of_weight: Sequence[str], out: Sequence[str]) -> ContractionAxes:
        """The axes by the subscripts of the weight and of the output as they are in the graph."""
        return cls(content, content.split(of_weight), content.split(out))

    @cached_property
    def varying(self) -> list[str]:
        """Axes of the content along which labels vary."""
        return self.content.varying(self.content.subscripts)

    @cached_property
    def contracted(self) -> list[str]:
        """Axes of the content that the output lacks."""
        return [c for c in self.content.subscripts if c not in self.out]

    @cached_property
    def tokens(self) -> list[str]:
        """Contracted axes along which labels vary (the keys of attention); a sum over the others keeps labels."""
        return [c for c in self.contracted if c in self.varying]

    @cached_property
    def queries(self) -> list[str]:
        """Axes of the output that only the weight has."""
        return [c for c in self.out if c not in self.content.subscripts and c in self.weight]

    @cached_property
    def heads(self) -> list[str]:
        """Axes of weight, content and output along which labels are the same, but weights may differ."""
        return [c for c in self.weight if c in self.content.subscripts and c in self.out and c not in self.varying]

    @cached_property
    def rows(self) -> tuple[list[str], Tensor]:
        """The axes of the output along which labels vary, and a table of ids: a row for each place along them, a column
        for each place along the contracted axes."""
        kept = self.content.varying(self.out)
        ids = self.content.pick([*kept, *self.tokens])
        return kept, ids.reshape(ids.shape[: len(kept)].numel(), -1)

    @cached_property
    def windows_overlap(self) -> bool:
        """Whether tokens are contracted for several places of the output, as sliding windows do that overlap."""
        _, table = self.rows
        row = torch.arange(len(table))[:, None].expand(table.shape)
        tokens = (table != NONE) & (table != IMAGE)
        pairs = (table[tokens] * len(table) + row[tokens]).unique()  # one number for each: unique(dim=1) is slow
        # fewer tokens than pairs: some token is in several rows
        return len((pairs // len(table)).unique()) < len(pairs)

    @cached_property
    def kept(self) -> list[str]:
        """Axes of the output along which its labels may vary."""
        return [c for c in self.out if c in self.varying or c in self.queries]


def arrange(ids: Tensor, subscripts: Sequence[str], out: Sequence[str]) -> Tensor:
    """Axes permuted to ``out``: new subscripts get size 1; ids must be constant along the axes that are left out."""
    kept = [c for c in subscripts if c in out]
    for axis in reversed(range(len(subscripts))):
        if subscripts[axis] not in out:
            ids = ids.select(axis, 0)
    ids = ids.permute([kept.index(c) for c in out if c in kept])
    return ids[tuple(slice(None) if c in kept else None for c in out)]


def symbols_of(subscripts: Iterable[str], queries: Sequence[str]) -> dict[str, str]:
    """A letter for each distinct subscript, as einsum wants them; a single query axis has the letter of queries."""
    symbols = {queries[0]: QUERY} if len(queries) == 1 else {}
    # in this order, equations of attention read "nhqm"; B and K are left for the batch and the channels of labels
    unused = iter("mnhabcdefgijklopqrstuvwxyzACDEFGHIJLMNOPQRSTUVWXYZ".replace(QUERY, ""))
    for c in subscripts:
        if c not in symbols:
            symbols[c] = next(unused)
    return symbols


def equation(weight: Sequence[str], labels: Sequence[str], out: Sequence[str], queries: Sequence[str]) -> Equation:
    """The equation for :func:`tlfx.runtime.mix` of a weight and labels with these subscripts."""
    symbols = symbols_of((*labels, *weight, *out), queries)
    return Equation(*("".join(symbols[c] for c in subscripts) for subscripts in (weight, labels, out)))
