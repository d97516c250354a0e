"""Eq. 12: the loss against the aligned label, which is a constant: J(z, stop-gradient(y))."""

from __future__ import annotations

import math
from collections.abc import Sequence


def cross_entropy(logits: Sequence[float], label: Sequence[float]) -> float:
    """J = −Σ y·log softmax(z), for one image."""
    total = sum(math.exp(z) for z in logits)
    return -sum(y * math.log(math.exp(z) / total) for z, y in zip(logits, label, strict=True))


def gradient(logits: Sequence[float], label: Sequence[float]) -> list[float]:
    """dJ/dz with y constant: softmax(z)·Σy − y."""
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total * sum(label) - y for z, y in zip(logits, label, strict=True)]
