"""Measurements of models and their labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlfx.analysis.agreement import Agreement
    from tlfx.analysis.fidelity_table import Fidelity
    from tlfx.analysis.label_fidelity import fidelity

__all__ = ["Agreement", "Fidelity", "fidelity"]

_HOMES = {"Agreement": "agreement", "Fidelity": "fidelity_table", "fidelity": "label_fidelity"}

if not TYPE_CHECKING:  # hidden from type checkers, which would accept any name otherwise

    def __getattr__(name: str) -> object:
        """A public name, imported at its first use, so that importing tlfx.analysis stays fast."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
