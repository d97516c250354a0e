"""Outer products, of two values that are broadcast along different axes: contractions once they are summed."""

from __future__ import annotations

from collections.abc import Sequence

from tlfx.propagate.values import Factor, Role, Value
from tlfx.propagate.verbs.contraction import Contraction
from tlfx.propagate.verbs.subscripts import Subscripts

__all__ = ["Outer"]


class Outer(Contraction):
    """Sums of outer products: over their tokens, and of several that have one token each."""

    def reduce(
        self, x: Value, axes: Sequence[int] | int | None = None, keepdim: bool = False, linear: str = ""
    ) -> Value:
        """As :meth:`Reduction.reduce`; an outer product that is summed is a contraction, such as a context kᵀv."""
        if linear and x.factors is not None:
            summed = self._summed_factors(x, x.factors, axes, keepdim)
            if summed is not None:
                return summed
        return super().reduce(x, axes, keepdim, linear)

    def _summed_factors(
        self, x: Value, factors: tuple[Factor, Factor], axes: Sequence[int] | int | None, keepdim: bool
    ) -> Value | None:
        """The contraction that an outer product summed over tokens is, if both factors have these."""
        rank = len(x.shape)
        gone = [a % rank for a in ([axes] if isinstance(axes, int) else axes or range(rank))]
        lengths = [dict(zip(at, v.shape, strict=True)) for v, at in factors]
        # a sum over an axis that one factor lacks is a sum of the other factor alone
        if any(x.shape[a] > 1 and 1 in (n.get(a, 1) for n in lengths) for a in gone):
            return None
        # labels are equal along what is summed: channels
        if all(m.shape[a] == 1 for m in x.maps for a in gone):
            return None
        (a, of_a), (b, of_b) = ((v[0], _subscripts_of(v, name)) for v, name in zip(factors, "ab", strict=True))
        left = [i for i in range(rank) if i not in gone]
        summed = self.step([x.shape[i] for i in left]).multiply(a, of_a, b, of_b, [f"axis{i}" for i in left])
        if summed.role not in (Role.CONTENT, Role.CONTEXT):
            return None
        maps = summed.maps
        for i in sorted(gone) if keepdim else ():
            maps = tuple(m.unsqueeze(i) for m in maps)
        return self.content(*maps, role=summed.role)

    def _residual(self, a: Value, b: Value, scales: Sequence[float] | None) -> Value:
        if Role.CONTEXT in (a.role, b.role) or (a.factors is not None and b.factors is not None):
            a, b = (self._as_context(v) for v in (a, b))
        if a.role is b.role is Role.CONTEXT and a.shape == b.shape:
            return self._sum_of_contexts(a, b, scales)
        return super()._residual(a, b, scales)

    def _as_context(self, x: Value) -> Value:
        """The outer product kvᵀ of one token as a context; any other value as it is."""
        if x.role is not Role.CONTENT or x.factors is None or x.ids.numel() > 1:
            return x
        terms = [(v, _subscripts_of(x.factors[i], "ab"[i])) for i, (v, _) in enumerate(x.factors)]
        context = self.step(x.shape)._context(*terms[0], *terms[1], tuple(f"axis{i}" for i in range(len(x.shape))))
        return self.content(*context.maps, role=Role.CONTEXT, shape=x.shape)


def _subscripts_of(factor: Factor, name: str) -> Subscripts:
    """Subscripts of a factor of a product: those of the product's axes, and its own for axes of length 1."""
    x, axes = factor
    each = enumerate(zip(axes, x.shape, strict=True))
    return tuple(f"axis{axis}" if n > 1 and axis >= 0 else f"{name}{i}" for i, (axis, n) in each)
