"""Hugging Face's Trainer, which calls the model itself, for aligned models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tlfx.aligned import Aligned
from tlfx.errors import InputError, TargetError
from tlfx.mix.target import MixedTarget

__all__ = ["Trainer"]

Mix = Callable[[Tensor, Tensor], tuple[Tensor, MixedTarget]]


class Trainer(transformers.Trainer):
    """`transformers.Trainer` that mixes each training batch and descends the cross-entropy with the aligned target.

    Left to itself, a model of Hugging Face takes *binary* cross-entropy of soft labels, since it goes by their type.
    This trainer keeps labels from the model, so that only its own loss counts: the cross-entropy of the logits with the
    target that reaches them, summed over the batches of an accumulated step and divided by their number of images, as
    Hugging Face normalises its own. Evaluation mixes nothing.

    model: aligned, with "logits" among its outputs, as all models for image classification have.
    mixer: any of `tlfx.mix`; label smoothing is its argument. Images are the model's main input, labels are class
        numbers, int64 (batch,), under "labels", as Hugging Face's collators give them.
    compute_loss_func: `f(outputs, labels, num_items_in_batch=…)`, another loss; labels are the aligned target, float32
        (batch, classes), while training.

    The other arguments are those of `transformers.Trainer`. InputError if the model is not aligned, or labels are to be
    smoothed by `label_smoothing_factor`, which Hugging Face leaves out beside a loss of one's own. TargetError for
    labels that are missing or no class numbers.

    >>> import tempfile, torch, tlfx
    >>> config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    >>> config = transformers.ViTConfig(image_size=16, patch_size=8, **config)
    >>> model = tlfx.align(transformers.ViTForImageClassification(config))
    >>> settings = transformers.TrainingArguments(tempfile.mkdtemp(), report_to="none", use_cpu=True)
    >>> trainer = Trainer(model, settings, mixer=tlfx.mix.CutMix(num_classes=2))
    >>> batch = {"pixel_values": torch.rand(4, 3, 16, 16), "labels": torch.tensor([0, 1, 1, 0])}
    >>> trainer.compute_loss(model.train(), batch).shape
    torch.Size([])
    """

    def __init__(self, *args: Any, mixer: Mix, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.model, Aligned):
            raise InputError(
                f"{type(self.model).__name__} is not aligned, expected the model that tlfx.align(model) returns; for "
                "plain targets there is transformers.Trainer"
            )
        if self.args.label_smoothing_factor:
            raise InputError(
                f"label_smoothing_factor is {self.args.label_smoothing_factor}, which would be left out: give it to "
                f"the mixer, as {type(mixer).__name__}(label_smoothing={self.args.label_smoothing_factor})"
            )
        self.mixer = mixer
        self.loss_of_soft_labels = self.compute_loss_func or cross_entropy
        self.compute_loss_func = self._loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss as `transformers.Trainer` computes it; of a mixed batch, if the model is training."""
        return super().compute_loss(model, self._mixed(inputs) if model.training else inputs, *args, **kwargs)

    def _mixed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch, mixed: the target goes to the model, and to the loss in place of labels."""
        model: Any = self.model
        name, labels = model.main_input_name, inputs.get("labels")
        if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
            given = f"a {type(labels).__name__}" if labels is not None else "missing"
            given = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else given
            raise TargetError(
                f"the labels of a batch with {', '.join(inputs)} are {given}, expected class numbers int64 (batch,) "
                "under 'labels'; leave mixing and label smoothing to the mixer of the trainer"
            )
        images, target = self.mixer(inputs[name], labels)
        return {**inputs, name: images, "labels": target, "target": target}

    def _loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """The loss of a batch; an aligned call gave the outputs together with their targets."""
        if isinstance(labels, MixedTarget):
            outputs, targets = outputs
            labels = targets["logits"]
        return self.loss_of_soft_labels(outputs, labels, num_items_in_batch=num_items_in_batch)


def cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of outputs["logits"] with hard or soft labels, over a number of images; of the batch if None."""
    loss = F.cross_entropy(outputs["logits"], labels, reduction="sum")
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
