"""Propagation: what every operator of a captured graph does to the labels of its values."""

from __future__ import annotations

from tlfx.propagate.options import Options
from tlfx.propagate.propagator import Propagation, propagate
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext

__all__ = ["OpContext", "Options", "Propagation", "Value", "propagate"]
