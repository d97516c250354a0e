"""The invariants of :mod:`tlfx.analysis.invariants`, by the names that tests use."""

from tlfx.analysis.invariants import INVARIANTS, Figures, measure, rectangles, share, target

__all__ = ["INVARIANTS", "Figures", "measure", "rectangles", "share", "target"]
