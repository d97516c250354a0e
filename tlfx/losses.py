"""Losses for soft targets: cross-entropy, binary cross-entropy, and the sum of an image loss and a token loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlfx.errors import InputError, TargetError, a_type

__all__ = ["BinaryCrossEntropy", "SoftTargetCrossEntropy", "TokenLabelCrossEntropy"]


class SoftTargetCrossEntropy(nn.Module):
    """Cross-entropy −Σ y·log softmax(x) with soft targets, averaged over samples and positions.

    On (batch, classes) it equals timm's `SoftTargetCrossEntropy` bit for bit. Logits and targets are floating tensors
    of the same shape: (batch, classes), (batch, tokens, classes) or a dense output (batch, classes, height, width).
    TargetError if shapes differ, or for integer labels, which are not a distribution over classes.

    >>> loss = SoftTargetCrossEntropy()
    >>> loss(torch.zeros(2, 4), torch.full((2, 4), 0.25))
    tensor(1.3863)
    """

    def forward(self, logits: Tensor, soft_target: Tensor) -> Tensor:
        """The scalar loss."""
        _check(logits, soft_target)
        if class_axis(logits) == -1:  # F.cross_entropy expects the classes on axis 1
            logits, soft_target = (x.reshape(-1, x.shape[-1]) for x in (logits, soft_target))
        # Its own mean divides one sum over everything, which rounds otherwise than timm's mean over samples.
        return F.cross_entropy(logits, soft_target, reduction="none").mean()


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of each class with soft targets, as timm's `BinaryCrossEntropy` on dense targets.

    target_threshold: targets above it become 1, others 0, as timm's `bce_target_thresh`; None leaves targets soft.
    sum_classes: sum the losses of the classes instead of averaging them.
    weight, pos_weight: factors for each class and for positive targets, as in `torch.nn.BCEWithLogitsLoss`.

    Shapes and errors are those of `SoftTargetCrossEntropy`. The mixer smooths the targets, so this loss has no
    smoothing argument.

    >>> loss = BinaryCrossEntropy(target_threshold=0.2)
    >>> loss(torch.tensor([[9.0, 9.0, -9.0]]), torch.tensor([[0.7, 0.3, 0.0]]))
    tensor(0.0001)
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        target_threshold: float | None = None,
        *,
        sum_classes: bool = False,
        weight: Tensor | None = None,
        pos_weight: Tensor | float | None = None,
    ) -> None:
        super().__init__()
        if target_threshold is not None and not 0.0 <= target_threshold < 1.0:
            raise InputError(f"target_threshold is {target_threshold}, expected a probability in [0, 1), often 0.2")
        self.target_threshold = target_threshold
        self.sum_classes = sum_classes
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", None if pos_weight is None else torch.as_tensor(pos_weight))

    def forward(self, logits: Tensor, soft_target: Tensor) -> Tensor:
        """The scalar loss."""
        _check(logits, soft_target)
        axis = class_axis(logits)
        # The wider type: in bfloat16 under autocast, targets next to the threshold would cross it.
        kind = torch.promote_types(logits.dtype, soft_target.dtype)
        logits, target = logits.movedim(axis, -1).to(kind), soft_target.movedim(axis, -1)
        target = (target if self.target_threshold is None else target.gt(self.target_threshold)).to(kind)
        loss = F.binary_cross_entropy_with_logits(
            logits, target, self.weight, pos_weight=self.pos_weight, reduction="none"
        )
        return (loss.sum(-1) if self.sum_classes else loss).mean()


class TokenLabelCrossEntropy(nn.Module):
    """Loss of the class token plus β times the mean loss of the patch tokens, each against its own aligned label.

    This is the loss of TokenLabeling (arXiv 2104.10858) with the aligned token labels instead of labels from an
    annotator network. The model returns (logits, token logits): (batch, classes), and (batch, tokens, classes) or
    (batch, classes, height, width). An aligned model returns targets of the same structure.

    beta: weight of the token loss; 0.5 in the paper.
    loss: the loss of each part; `SoftTargetCrossEntropy()` if None.

    InputError unless there are two outputs and two targets, TargetError if a target does not fit its output.

    >>> loss = TokenLabelCrossEntropy(beta=0.5)
    >>> outputs = torch.zeros(2, 4), torch.zeros(2, 9, 4)
    >>> loss(outputs, tuple(torch.full_like(x, 0.25) for x in outputs))
    tensor(2.0794)
    """

    def __init__(self, beta: float = 0.5, loss: nn.Module | None = None) -> None:
        super().__init__()
        if not 0.0 <= beta < float("inf"):
            raise InputError(f"beta is {beta}, expected a weight of at least 0 (0.5 in the paper)")
        self.beta = beta
        self.loss = SoftTargetCrossEntropy() if loss is None else loss

    def forward(self, outputs: Sequence[Any], soft_targets: Sequence[Any]) -> Tensor:
        """The loss, a scalar, for two outputs and their two targets."""
        logits, tokens = _pair("outputs", outputs)
        target, token_target = _pair("targets", soft_targets)
        image_loss: Tensor = self.loss(logits, target)
        token_loss: Tensor = self.loss(tokens, token_target)
        return image_loss + self.beta * token_loss


def _pair(name: str, values: Any) -> tuple[Any, Any]:
    """The value of the image and that of its tokens. InputError unless there are exactly two values."""
    if not isinstance(values, tuple | list) or len(values) != 2:
        given = f"{len(values)} values" if isinstance(values, tuple | list) else a_type(values)
        raise InputError(f"{name} are {given}, expected two tensors: for the class token and for the patch tokens")
    return values[0], values[1]


def class_axis(logits: Tensor) -> int:
    """The last axis; the second for dense outputs (batch, classes, height, width)."""
    return -1 if logits.dim() < 4 else 1


def _check(logits: Tensor, target: Any) -> None:
    """TargetError unless the target is soft and has the shape of the logits."""
    if not isinstance(target, Tensor):
        raise TargetError(
            f"the target is {a_type(target)}, expected the soft target that model(images, target) returns, or "
            "target.area()"
        )
    if not target.is_floating_point():
        raise TargetError(
            f"the target is {target.dtype} of shape {tuple(target.shape)}, expected a soft target of shape "
            f"{tuple(logits.shape)}; use model(images, target=labels), or torch.nn.functional.one_hot(labels).float()"
        )
    if target.shape != logits.shape:
        raise TargetError(
            f"the target has shape {tuple(target.shape)} and the logits {tuple(logits.shape)}, expected equal shapes; "
            "compare the mixer's num_classes with the model's"
        )
