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
    "a_type",
    "counted",
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


def a_type(x: object) -> str:
    """The type of a value with its article, for a message.

    >>> a_type([]), a_type(1)
    ('a list', 'an int')
    """
    name = type(x).__name__
    return f"{'an' if name[0].lower() in 'aeiou' and not name.startswith('U') else 'a'} {name}"


def counted(count: int, what: str) -> str:
    """A number of things, for a message.

    >>> counted(1, "image"), counted(2, "class")
    ('1 image', '2 classes')
    """
    plural = "es" if what.endswith("s") else "s"
    return f"{count} {what}{'' if count == 1 else plural}"


def named(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, for a message.

    >>> named(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
