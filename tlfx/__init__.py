"""Token-label alignment for any PyTorch vision model, by rewriting its torch.fx graph."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlfx import analysis as analysis
    from tlfx import assign as assign
    from tlfx import integrations as integrations
    from tlfx import losses as losses
    from tlfx import mix as mix
    from tlfx import rules as rules
    from tlfx import testing as testing
    from tlfx.aligned import Aligned, align, aligned_code, unalign
    from tlfx.errors import (
        CaptureError,
        InputError,
        ModelError,
        NoContentError,
        ProvenanceError,
        RuleConflictError,
        RuleError,
        TargetError,
        TlfxError,
        UnknownOperatorError,
        WrongRuleError,
    )
    from tlfx.gaps import lambda_gap
    from tlfx.inspection import inspect
    from tlfx.mix.target import MixedTarget
    from tlfx.operations import Operation
    from tlfx.policy import Policy
    from tlfx.recording import record
    from tlfx.report import Report
    from tlfx.rules import use_rules

__all__ = [
    "Aligned",
    "CaptureError",
    "InputError",
    "MixedTarget",
    "ModelError",
    "NoContentError",
    "Operation",
    "Policy",
    "ProvenanceError",
    "Report",
    "RuleConflictError",
    "RuleError",
    "TargetError",
    "TlfxError",
    "UnknownOperatorError",
    "WrongRuleError",
    "align",
    "aligned_code",
    "inspect",
    "lambda_gap",
    "record",
    "unalign",
    "use_rules",
]
__version__ = "0.2.0"

_HOMES = {
    "tlfx.aligned": ("Aligned", "align", "aligned_code", "unalign"),
    "tlfx.mix.target": ("MixedTarget",),
    "tlfx.rules": ("use_rules",),
    "tlfx.policy": ("Policy",),
    "tlfx.recording": ("record",),
    "tlfx.report": ("Report",),
    "tlfx.inspection": ("inspect",),
    "tlfx.gaps": ("lambda_gap",),
    "tlfx.operations": ("Operation",),
}

_SUBMODULES = ("analysis", "assign", "integrations", "losses", "mix", "rules", "testing")
"""Public modules, imported at their first use too."""

if not TYPE_CHECKING:  # so that a misspelt name is still an error to type checkers

    def __getattr__(name: str) -> object:
        """A public name, imported at its first use: the command line shows its help without importing torch."""
        if name in _SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = next((module for module, names in _HOMES.items() if name in names), "tlfx.errors")
        value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
