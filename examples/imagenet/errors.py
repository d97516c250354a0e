"""What a user of the training script is told in place of a traceback."""

from __future__ import annotations

__all__ = ["RunError"]


class RunError(Exception):
    """Settings, data or a checkpoint that a run cannot go on with; the message says what to do."""
