"""The invariants of aligned models, and a record of their violations."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INVARIANTS", "Figures", "Invariant"]


@dataclass(frozen=True)
class Invariant:
    """A statement that holds for every aligned model, and the violation that rounding may cause."""

    name: str
    statement: str
    tolerance: float = 0.0


INVARIANTS = (
    Invariant("logits", "outputs equal those without alignment, bit for bit"),
    Invariant("gradients", "gradients equal those without alignment, bit for bit"),
    Invariant("buffers", "buffers and attributes equal those without alignment, bit for bit"),
    Invariant("independence", "no sample's label depends on another's mask"),
    Invariant("constant", "a constant label comes out constant", 1e-5),
    Invariant("bounds", "labels stay in [0, 1]", 1e-5),
    Invariant("swap", "swapping the two images maps the share to 1 - share", 1e-5),
    Invariant("linearity", "labels are linear in the mask", 1e-5),
    # A permuted batch is summed in another order: attention weights differ by rounding, which accumulates over layers.
    Invariant("permutation", "permuting the batch permutes the labels", 1e-4),
)


@dataclass(frozen=True)
class Figures:
    """The largest violation of each of :data:`INVARIANTS`; the first four must be exactly 0."""

    logits: float
    gradients: float
    buffers: float
    independence: float
    constant: float
    bounds: float
    swap: float
    linearity: float
    permutation: float

    @property
    def passed(self) -> bool:
        """Whether all invariants hold."""
        return all(self.holds(i) for i in INVARIANTS)

    def holds(self, invariant: Invariant) -> bool:
        """Whether an invariant holds within its tolerance."""
        return bool(getattr(self, invariant.name) <= invariant.tolerance)

    def worst_label(self) -> float:
        """The largest violation among the invariants with a tolerance."""
        return float(max(getattr(self, i.name) for i in INVARIANTS if i.tolerance > 0))

    def worst_exact(self) -> float:
        """The largest violation among the invariants that must hold exactly."""
        return float(max(getattr(self, i.name) for i in INVARIANTS if i.tolerance == 0))
