"""One trainer for all examples: it descends the cross-entropy of mixed images with their soft targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tlfx
from tlfx.assign import TargetAssigner
from tlfx.mix import MixedTarget

__all__ = ["Meter", "Mixing", "Trainer"]

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, MixedTarget]]
"""A mixer of `tlfx.mix`: maps images and labels to mixed images and their target."""


class Meter(Protocol):
    """Collects the figures of training."""

    def update(self, loss: Tensor, gaps: Tensor) -> None:
        """Add one batch: its loss, and λ gaps (B,), NaN for images that are not a mixture of different classes."""


class Trainer:
    """Updates a model on mixed batches.

    The target is the label that reaches the output if the model is aligned, and the area target otherwise.
    :meth:`place`, :meth:`place_labels`, :meth:`batch`, :meth:`autocast` and :meth:`clip` are hooks for subclasses.

    Args:
        model: called as ``model(images)``, or as ``model(images, target)`` if ``aligned``.
        optimizer: of the model's parameters.
        mixer: mixes each batch.
        meter: receives the loss and the λ gaps of each batch.
        device: of the model; batches are moved to it.
        aligned: whether the model is aligned. A wrapped or compiled model does not show it.
        scaled: whether to scale the loss for float16 gradients.
        target_scale: factor of the soft targets in the loss, other than 1 for labels that are not normalised.
        blend: share of the aligned target, the rest being that of the area; see :class:`tlfx.assign.TargetAssigner`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        mixer: Mixing | None,
        meter: Meter,
        device: torch.device,
        *,
        aligned: bool,
        scaled: bool = False,
        target_scale: float = 1.0,
        blend: float | Literal["agreement"] = 1.0,
    ) -> None:
        self.target_scale = target_scale
        self.assign = TargetAssigner("aligned" if aligned else "plain", blend)
        self.model, self.optimizer, self.mixer, self.device, self.aligned = model, optimizer, mixer, device, aligned
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.meter: Any = meter  # subclasses read further values of their meters

    def descend(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """One step of the optimizer on the mean loss of batches of images (B, C, H, W) and labels int64 (B,)."""
        self.model.train()
        self.optimizer.zero_grad()
        for number, (images, labels) in enumerate(batches, 1):
            with self.batch(number - 1, last=number == len(batches)):
                loss = self.loss(self.place(images), self.place_labels(labels))
                self.scaler.scale(loss / len(batches)).backward()
        self.clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def place(self, images: Tensor) -> Tensor:
        """Images on the device of the model."""
        return images.to(self.device, non_blocking=True)

    def place_labels(self, labels: Tensor) -> Tensor:
        """Labels on the device of the model."""
        return labels.to(self.device, non_blocking=True)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mix a batch, and return its cross-entropy with the soft target."""
        assert self.mixer is not None
        mixed, target = self.mixer(images, labels)
        logits, soft = self.predict(mixed, target)
        loss = F.cross_entropy(logits.float(), self.target_scale * soft)
        self.meter.update(loss.detach(), tlfx.lambda_gap(target, soft, reduction="none"))
        return loss

    def predict(self, images: Tensor, target: MixedTarget) -> tuple[Tensor, Tensor]:
        """Logits and the soft target to train against, both (B, classes)."""
        with self.autocast():
            return self.assign(self.model, images, target)

    @contextmanager
    def batch(self, index: int, *, last: bool) -> Iterator[None]:
        """Hook: the context in which one batch of an update is computed."""
        yield

    def autocast(self) -> AbstractContextManager[Any]:
        """Hook: the context of the forward pass, such as mixed precision."""
        return nullcontext()

    def clip(self) -> None:
        """Hook: clip the gradients of an update."""
