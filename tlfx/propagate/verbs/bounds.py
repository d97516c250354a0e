"""Bounds of indices: the least and the greatest value that each element of an integer value may have.

An index that the image decides is at least 0 and less than the length of its axis. Sums, products, rounded quotients,
remainders and data movement keep bounds. So indices into a flattened batch, such as
``topk(...)[1] + torch.arange(batch)[:, None] * tokens``, are known to stay within their samples.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from tlfx._torch import tree_leaves, tree_map
from tlfx.propagate.maps import compact
from tlfx.propagate.values import Bounds, Value
from tlfx.propagate.verbs.base import Verbs

__all__ = ["Bounded"]

_MOST_BOUNDED = 3
"""Operators with more bounded arguments have no bounds: each doubles the combinations that are tried."""


class Bounded(Verbs):
    """Steps of operators on indices."""

    def _bounded(self, out: Value) -> Value:
        """The output of an operator that is monotone in each argument, with bounds from those of its arguments."""
        example = self.node.meta.get("val")
        if out.is_constant or not isinstance(example, Tensor) or not _is_ordered(example):
            return out
        if self._whole is not None or self.target is not self.node.target:  # a step of an operator, or a module
            return out
        values = [v for v in tree_leaves((self.args, self.kwargs)) if isinstance(v, Value)]
        bounded = [v for v in values if v.bounds is not None]
        if not 0 < len(bounded) <= _MOST_BOUNDED or not all(v.bounds is not None or self.is_fixed(v) for v in values):
            return out
        # a function that is monotone in each argument has its extremes at the corners
        corners = [self._run_at(dict(zip(bounded, ends, strict=True))) for ends in product((0, 1), repeat=len(bounded))]
        return replace(out, bounds=_enclosing(torch.stack(corners)))

    def _bounds_of(self, x: Value) -> Bounds | None:
        """The bounds of a value, which a known index is itself."""
        example = x.node.meta.get("val")
        if not x.is_constant or not isinstance(example, Tensor) or example.dtype != torch.int64 or not self.is_fixed(x):
            return x.bounds
        return self.concrete(x), self.concrete(x)

    def _bounded_remainder(self, out: Value, x: Value, divisor: float | None, least: float) -> Value:
        """The remainder ``out`` by a positive number of a value, which is monotone between two multiples of it; of one
        that may be smaller than ``least``, no bounds are known."""
        out = self._bounded(out)
        if (
            out.bounds is None
            or x.bounds is None
            or divisor is None
            or divisor <= 0
            or bool((x.bounds[0] < least).any())
        ):
            return replace(out, bounds=None)
        lower, upper = (b.div(divisor, rounding_mode="floor") for b in x.bounds)
        # between two multiples of the divisor, a remainder may be any number below it
        wraps = lower != upper
        ends = out.bounds[0].masked_fill(wraps, 0), out.bounds[1].masked_fill(wraps, divisor - 1)
        return replace(out, bounds=ends)

    def _run_at(self, ends: dict[Value, int]) -> Tensor:
        """The operator with its bounded arguments at one of their ends."""

        def at(value: Any) -> Any:
            if not isinstance(value, Value) or value.bounds is None:
                return self.concrete(value)
            return value.bounds[ends[value]].expand(value.shape).clone()  # in-place operators write to it

        args, kwargs = tree_map(at, (tuple(self.args), dict(self.kwargs)))
        out: Tensor = self.target(*args, **kwargs)
        return out


def _is_ordered(example: Tensor) -> bool:
    return not (example.is_complex() or example.dtype == torch.bool)


def _enclosing(corners: Tensor) -> Bounds:
    return compact(corners.amin(0)), compact(corners.amax(0))
