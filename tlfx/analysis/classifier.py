"""Logits of a model and the feature that its classifier reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tlfx._torch import tree_leaves
from tlfx.errors import InputError, a_type

__all__ = ["Classifier", "last_weighted"]


class Classifier:
    """A model that returns its logits and the input of its classifier; hooks exist only during a call.

    Args:
        model: returns logits, a tensor (batch, classes).
        images: floating (batch, channels, height, width), for one first call.
        path: path of the classifier module; by default the last executed module with a weight matrix or kernel, which
            is a linear layer or a 1×1 convolution in most models.

    Raises InputError if the path is unknown, no module has such a weight, or the model returns something else.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    >>> images = torch.ones(4, 3, 8, 8)
    >>> classifier = Classifier(model, images)
    >>> classifier.path, classifier.classes
    ('2', 2)
    >>> logits, feature = classifier(images)
    >>> tuple(logits.shape), tuple(feature.shape)
    ((4, 2), (4, 3))
    """

    def __init__(self, model: nn.Module, images: Tensor, path: str | None = None) -> None:
        modules = dict(model.named_modules())
        if path is not None and path not in modules:
            some = ", ".join(repr(p) for p in list(modules)[-3:])
            raise InputError(f"classifier={path!r} is not a module of the model; its last modules are {some}")
        self.model = model
        self.path = last_weighted(model, images) if path is None else path
        with torch.no_grad():
            logits, _ = self(images)
        self.classes = logits.shape[1]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, classes) and the input of the classifier, floating (batch, …)."""
        seen: list[Tensor] = []

        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            """Keep the first tensor among the arguments."""
            seen.extend([x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)][:1])

        hook = self.model.get_submodule(self.path).register_forward_pre_hook(note, with_kwargs=True)
        try:
            logits = self.model(images)
        finally:
            hook.remove()
        _check(logits, len(images))
        if not seen or len(seen[-1]) != len(images):
            given = f"reads a tensor of shape {tuple(seen[-1].shape)}" if seen else "does not run"
            raise InputError(
                f"classifier={self.path!r} {given} for {len(images)} images, expected features (batch, …): pass the "
                "path of the module that reads them"
            )
        return logits, seen[-1]


def last_weighted(model: nn.Module, images: Tensor) -> str:
    """Path of the last executed module with a ``weight`` of at least two axes.

    Raises InputError if there is none.

    >>> last_weighted(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.BatchNorm1d(16)), torch.rand(2, 3, 2, 2))
    '0'
    """
    ran: list[str] = []

    def noting(path: str) -> Any:
        """A hook that notes that a module ran."""
        return lambda *_: ran.append(path)

    weighted = [(p, m) for p, m in model.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) > 1]
    hooks = [module.register_forward_hook(noting(path)) for path, module in weighted]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise InputError(
            "no module with a weight matrix ran, so that the classifier is unknown: pass its path, such as "
            "classifier='head'"
        )
    return ran[-1]


def _check(logits: Any, batch: int) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != batch:
        given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else a_type(logits)
        raise InputError(
            f"the model returns {given} for {batch} images, expected logits (batch, classes): wrap it in a module that "
            "returns them"
        )
