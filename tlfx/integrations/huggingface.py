"""The Trainer of Hugging Face for aligned models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tlfx.aligned import Aligned
from tlfx.errors import InputError, TargetError, a_type
from tlfx.gaps import lambda_gap
from tlfx.mix.target import MixedTarget

__all__ = ["Trainer"]

Mix = Callable[[Tensor, Tensor], tuple[Tensor, MixedTarget]]


class Trainer(transformers.Trainer):
    """`transformers.Trainer` that mixes each training batch and minimises the cross-entropy with the aligned target.

    Given floating labels, a Hugging Face model computes the *binary* cross-entropy, which it selects by their type.
    This trainer therefore does not pass labels to the model. The loss is the cross-entropy of the logits with their
    aligned target, summed over the batches of an accumulated step and divided by their number of images, which is
    Hugging Face's normalisation. Batches are not mixed in evaluation. The trainer logs the λ gap
    (`tlfx.lambda_gap`, over all processes) as "lambda_gap" together with the training loss.

    model: an aligned model with "logits" among its outputs, as all image classification models of Hugging Face.
    mixer: any mixer of `tlfx.mix`, which also smooths labels. Images are the model's main input; labels are class
        indices, int64 (batch,), under "labels", as Hugging Face's collators return them.
    compute_loss_func: another loss `f(outputs, labels, num_items_in_batch=…)`; in training, labels are the aligned
        target, float32 (batch, classes).

    The other arguments are those of `transformers.Trainer`. InputError if the model is not aligned, or if
    `label_smoothing_factor` is set, which Hugging Face ignores together with a loss function, or if a batch has no
    images under the name of the model's main input. TargetError if labels are missing or not class indices, or if the
    mixer has another number of classes than the model.

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
                f"{type(self.model).__name__} is not aligned, expected the model that tlfx.align(model) returns; use "
                "transformers.Trainer for plain targets"
            )
        if self.args.label_smoothing_factor:
            raise InputError(
                f"label_smoothing_factor is {self.args.label_smoothing_factor}, which would be ignored: pass it to "
                f"the mixer, as {type(mixer).__name__}(label_smoothing={self.args.label_smoothing_factor})"
            )
        if not callable(mixer):
            raise InputError(f"mixer is {mixer!r}, expected a mixer of tlfx.mix, such as CutMix(num_classes=10)")
        self.mixer = mixer
        self.gaps: list[Tensor] = []  # one (batch,) for each batch since the last log
        self.loss_of_soft_labels = self.compute_loss_func or cross_entropy
        self.compute_loss_func = self._loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of `transformers.Trainer`; in training, of the mixed batch."""
        return super().compute_loss(model, self._mixed(inputs) if model.training else inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as `transformers.Trainer`; with the training loss, also "lambda_gap" since the last log."""
        if "loss" in logs and self.gaps:
            gaps = torch.cat(self.gaps)
            figures = torch.stack((gaps.nansum(), (~gaps.isnan()).sum()))
            gap, pairs = self.accelerator.reduce(figures, "sum").tolist()
            self.gaps.clear()
            if pairs:
                logs["lambda_gap"] = gap / pairs
        super().log(logs, *args, **kwargs)

    def _mixed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The mixed batch, with the target for the model and as labels for the loss."""
        model: Any = self.model
        name, labels = model.main_input_name, inputs.get("labels")
        if name not in inputs:
            raise InputError(
                f"a batch has {', '.join(inputs) or 'no items'}, expected images under {name!r} and labels under "
                "'labels'; rename the columns of the data set, or pass a data_collator that returns these names. With "
                "remove_unused_columns=True, columns that the model's forward does not take are dropped"
            )
        if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
            given = a_type(labels) if labels is not None else "missing"
            given = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else given
            raise TargetError(
                f"the labels of a batch with {', '.join(inputs)} are {given}, expected class indices int64 (batch,) "
                "under 'labels'; only the mixer of the trainer may mix and smooth them"
            )
        images, target = self.mixer(inputs[name], labels)
        if not isinstance(target, MixedTarget):
            raise TargetError(
                f"the mixer returned {a_type(target)}, expected a tlfx.MixedTarget: use tlfx.mix.Mixup instead of "
                "timm.data.Mixup, or another mixer of tlfx.mix"
            )
        return {**inputs, name: images, "labels": target, "target": target}

    def _loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """The loss of a batch; an aligned call returned the outputs together with their targets."""
        if isinstance(labels, MixedTarget):
            outputs, targets = outputs
            self.gaps.append(lambda_gap(labels, targets["logits"], reduction="none"))
            labels = targets["logits"]
        return self.loss_of_soft_labels(outputs, labels, num_items_in_batch=num_items_in_batch)


def cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Summed cross-entropy of outputs["logits"] with hard or soft labels, divided by the number of images."""
    loss = F.cross_entropy(outputs["logits"], labels, reduction="sum")
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
