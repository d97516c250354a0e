"""Classes for training frameworks: those that call the model pass the mixed target to it; λ gaps are logged."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlfx.integrations import huggingface as huggingface
    from tlfx.integrations import lightning as lightning
    from tlfx.integrations import timm as timm

_SUBMODULES = ("huggingface", "lightning", "timm")

if not TYPE_CHECKING:  # hidden from type checkers, which would accept any name otherwise

    def __getattr__(name: str) -> object:
        """A module of this package, imported at its first use: each needs its framework."""
        if name not in _SUBMODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
