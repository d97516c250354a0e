"""Axes by letter, as in an einsum equation: the bookkeeping under contractions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from tlfx.propagate.values import BatchAxis, Value

__all__ = ["LetteredRows", "arrange", "equation", "split_letter"]

Letters = tuple[str, ...]


def split_letter(letters: Iterable[str], batch: str) -> Letters:
    """Letters of a value whose batch axis is split into (outer, inner)."""
    return tuple(part for c in letters for part in ((f"{c}<", f"{c}>") if c == batch else (c,)))


@dataclass(frozen=True)
class LetteredRows:
    """The rows of one sample with a letter for each axis, and where the batch was."""

    rows: Tensor
    letters: Letters
    batch: str
    where: BatchAxis

    @classmethod
    def of(cls, x: Value, letters: Sequence[str]) -> LetteredRows:
        """Rows of a content value whose axes go by ``letters``."""
        batch = letters[x.batch_axis.axis]
        return cls(x.rows, split_letter(letters, batch), batch, x.batch_axis)

    def varying(self, letters: Iterable[str]) -> list[str]:
        """Those of ``letters`` along which the rows vary."""
        return [c for c in letters if c in self.letters and self.rows.shape[self.letters.index(c)] > 1]

    def pick(self, letters: Sequence[str]) -> Tensor:
        """Rows with just the axes of ``letters``, in that order; all others must be constant."""
        return arrange(self.rows, self.letters, letters)

    def weight_letters(self, letters: Sequence[str]) -> Letters:
        """Letters of a weight once its batch is at the front: where the batch axis holds nothing else, none is left."""
        if self.where.outer == self.where.inner == 1:
            return tuple(c for c in letters if c != self.batch)
        return split_letter(letters, self.batch)

    def split_of(self, letters: Sequence[str]) -> tuple[int, int, int] | None:
        """How to bring the batch of a tensor with these letters to the front."""
        if self.batch not in letters:
            return None
        return (tuple(letters).index(self.batch), self.where.outer, self.where.inner)

    def place_in(self, letters: Sequence[str]) -> BatchAxis:
        """Where the batch lies in a value with these letters."""
        return BatchAxis(tuple(letters).index(self.batch), self.where.outer, self.where.inner)


def arrange(rows: Tensor, letters: Sequence[str], out: Sequence[str]) -> Tensor:
    """Axes permuted to ``out``: new letters get size 1, and letters that are left out must be constant (index 0)."""
    kept = [c for c in letters if c in out]
    for axis in reversed(range(len(letters))):
        if letters[axis] not in out:
            rows = rows.select(axis, 0)
    rows = rows.permute([kept.index(c) for c in out if c in kept])
    return rows[tuple(slice(None) if c in kept else None for c in out)]


def equation(weight: Sequence[str], rows: Sequence[str], out: Sequence[str], queries: Sequence[str]) -> str:
    """An equation for :func:`tlfx.runtime.mix`, in which a single query axis goes by the letter q."""
    names: dict[str, str] = {queries[0]: "q"} if len(queries) == 1 else {}
    free = iter("mnhabcdefgijklopqrstuvwxyzACDEFGHIJLMNOPQRSTUVWXYZ")
    for c in (*rows, *weight, *out):
        if c not in names:
            names[c] = next(x for x in free if x not in names.values())
    return f"{''.join(names[c] for c in weight)},{''.join(names[c] for c in rows)}->{''.join(names[c] for c in out)}"
