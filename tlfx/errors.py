"""The errors that tlfx raises, all derived from TlfxError."""

from __future__ import annotations

from collections.abc import Sequence

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
    "named",
]


class TlfxError(Exception):
    """Base of every error of tlfx; the message states the given value, the expected one and the remedy."""


class CaptureError(TlfxError):
    """The model could not be captured as a graph."""


class InputError(TlfxError, ValueError):
    """Images or options have a wrong rank, type, size or value."""


class ModelError(TlfxError):
    """No model has the given name, or the model cannot be built or does not take images of the given size."""


class TargetError(TlfxError, ValueError):
    """A target does not fit its images or the number of classes."""


class RuleError(TlfxError):
    """A rule raised an error or returned a value that does not fit its operator."""


class RuleConflictError(RuleError):
    """Two rules were registered for one operator."""


class WrongRuleError(RuleError):
    """The labels of a rule contradict what its operator depends on."""


class UnknownOperatorError(RuleError):
    """An operator receives image content and has no rule."""


class ProvenanceError(TlfxError):
    """Image content cannot be followed, for example because an operator mixes the samples of a batch."""


class NoContentError(TlfxError):
    """No output of the model carries image content, so there is no label to align."""


def named(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, for a message.

    >>> named(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
