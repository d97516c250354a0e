"""Losses against soft targets: cross-entropy, binary cross-entropy, and token labels beside the image's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlfx.errors import InputError, TargetError

__all__ = ["BinaryCrossEntropy", "SoftTargetCrossEntropy", "TokenLabelCrossEntropy"]


class SoftTargetCrossEntropy(nn.Module):
    """Cross-entropy −Σ y·log softmax(x) with soft targets, averaged over samples and positions, as timm's.

    Logits and targets, floating, have one shape: (batch, classes), tokens (batch, tokens, classes) or a dense output
    (batch, classes, height, width). Integer labels are refused, since they are no distribution. TargetError if the
    target does not fit.

    >>> loss = SoftTargetCrossEntropy()
    >>> loss(torch.zeros(2, 4), torch.full((2, 4), 0.25))
    tensor(1.3863)
    """

    def forward(self, logits: Tensor, soft_target: Tensor) -> Tensor:
        """The loss, a scalar."""
        _check(logits, soft_target)
        axis = _class_axis(logits)
        return (-soft_target * F.log_softmax(logits, axis)).sum(axis).mean()


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of each class with soft targets, as timm's `BinaryCrossEntropy` on dense targets.

    target_threshold: classes above it become 1, others 0, as timm's `bce_target_thresh`; None leaves targets soft.
    sum_classes: sum over classes instead of the average. weight, pos_weight: of each class, or of positive ones.

    Shapes and errors are those of `SoftTargetCrossEntropy`. Label smoothing belongs to the mixer: its targets have it.

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
        """The loss, a scalar."""
        _check(logits, soft_target)
        axis = _class_axis(logits)
        logits, target = logits.movedim(axis, -1), soft_target.movedim(axis, -1).to(logits.dtype)
        if self.target_threshold is not None:
            target = target.gt(self.target_threshold).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(
            logits, target, self.weight, pos_weight=self.pos_weight, reduction="none"
        )
        return (loss.sum(-1) if self.sum_classes else loss).mean()


class TokenLabelCrossEntropy(nn.Module):
    """Loss of the class token and of every patch token against the label that reaches it: cls + β·tokens.

    TokenLabeling (arXiv 2104.10858) with aligned labels of the tokens in place of those of an annotator. The
    model gives (logits, token logits): (batch, classes), and (batch, tokens, classes) or (batch, classes, height,
    width). An aligned model gives targets of the same structure.

    beta: weight of the token loss, averaged over tokens; 0.5 in the paper.
    loss: of either part; `SoftTargetCrossEntropy()` if None.

    InputError for outputs of another form, TargetError if a target does not fit.

    >>> loss = TokenLabelCrossEntropy(beta=0.5)
    >>> outputs = torch.zeros(2, 4), torch.zeros(2, 9, 4)
    >>> loss(outputs, tuple(torch.full_like(x, 0.25) for x in outputs))
    tensor(2.0794)
    """

    def __init__(self, beta: float = 0.5, loss: nn.Module | None = None) -> None:
        super().__init__()
        if not 0.0 <= beta < float("inf"):
            raise InputError(f"beta is {beta}, expected a weight of at least 0, as 0.5 in the paper")
        self.beta = beta
        self.loss = SoftTargetCrossEntropy() if loss is None else loss

    def forward(self, outputs: Sequence[Any], soft_targets: Sequence[Any]) -> Tensor:
        """The loss, a scalar, of two outputs and their two targets."""
        logits, tokens = _pair("outputs", outputs)
        target, token_target = _pair("targets", soft_targets)
        image_loss: Tensor = self.loss(logits, target)
        token_loss: Tensor = self.loss(tokens, token_target)
        return image_loss + self.beta * token_loss


def _pair(name: str, values: Any) -> tuple[Any, Any]:
    """InputError unless values are two, of the image and of its tokens."""
    if not isinstance(values, tuple | list) or len(values) != 2:
        given = f"{len(values)} values" if isinstance(values, tuple | list) else f"a {type(values).__name__}"
        raise InputError(f"{name} are {given}, expected two tensors: of the class token and of the patch tokens")
    return values[0], values[1]


def _class_axis(logits: Tensor) -> int:
    """The last axis, but for dense outputs (batch, classes, height, width) the second."""
    return -1 if logits.dim() < 4 else 1


def _check(logits: Tensor, target: Any) -> None:
    """TargetError unless the target is soft and of the logits' shape."""
    if not isinstance(target, Tensor):
        raise TargetError(
            f"the target is a {type(target).__name__}, expected the soft target that model(images, target) returns, or "
            "target.area()"
        )
    if not target.is_floating_point():
        raise TargetError(
            f"the target is {target.dtype} of shape {tuple(target.shape)}, expected a soft target of shape "
            f"{tuple(logits.shape)}; use model(images, target=labels), or torch.nn.functional.one_hot(labels).float()"
        )
    if target.shape != logits.shape:
        raise TargetError(
            f"the target has shape {tuple(target.shape)} and the logits {tuple(logits.shape)}, expected one shape; "
            "check num_classes of the mixer against the model's"
        )
