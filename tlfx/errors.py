"""The one family of errors that tlfx raises."""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "InputError",
    "ModelError",
    "NoContentError",
    "ProvenanceError",
    "RuleConflictError",
    "RuleError",
    "TargetError",
    "TlfxError",
    "UnknownOperatorError",
    "WrongRuleError",
]


class TlfxError(Exception):
    """Base of every error of tlfx; the message says what was given, what was expected and the remedy."""


class CaptureError(TlfxError):
    """The model could not be captured as a graph."""


class InputError(TlfxError, ValueError):
    """Images or options of the wrong rank, type, size or value."""


class ModelError(TlfxError):
    """A model that is unknown by its name, or that could not be built or given images of a size."""


class TargetError(TlfxError, ValueError):
    """A target that does not fit its images or classes."""


class RuleError(TlfxError):
    """A rule raised or returned something that does not fit its operator."""


class RuleConflictError(RuleError):
    """Two rules for one operator."""


class WrongRuleError(RuleError):
    """A rule whose labels do not agree with what its operator does."""


class UnknownOperatorError(RuleError):
    """An operator that touches image content and has no rule."""


class ProvenanceError(TlfxError):
    """Image content that cannot be followed, for example mixed across the samples of a batch."""


class NoContentError(TlfxError):
    """No output of the model carries image content, so there is nothing to align."""
