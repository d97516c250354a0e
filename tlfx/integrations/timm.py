"""The training tasks of timm for aligned models."""

from __future__ import annotations

from typing import Any

from timm import task as tasks
from torch import Tensor, nn

from tlfx.aligned import Aligned
from tlfx.errors import InputError
from tlfx.mix.target import MixedTarget

__all__ = ["ClassificationTask", "MultiLabelClassificationTask"]


class ClassificationTask(tasks.ClassificationTask):
    """`timm.task.ClassificationTask` whose criterion is evaluated with the aligned target of the model.

    Arguments, checkpoints, EMA, compilation and distributed wrapping are those of timm. `task(images, target)` with a
    :class:`tlfx.MixedTarget` returns {"loss", "output"}; targets of other types are handled by timm.

    InputError if the model is not aligned, TargetError if the target does not fit.

    >>> import torch, tlfx
    >>> model = tlfx.align(nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    >>> task = ClassificationTask(model, criterion_kwargs={"soft_targets": True}, verbose=False)
    >>> images, target = tlfx.mix.CutMix(num_classes=2)(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0]))
    >>> {name: tuple(value.shape) for name, value in task(images, target).items()}
    {'loss': (), 'output': (4, 2)}
    """

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if not any(isinstance(module, Aligned) for module in model.modules()):
            raise InputError(
                f"{type(model).__name__} is not aligned, expected the model that tlfx.align(model) returns; use "
                f"timm.task.{type(self).__name__} for plain targets"
            )
        super().__init__(model, *args, **kwargs)

    def forward(self, input: Tensor, target: Any) -> dict[str, Tensor]:
        """The scalar loss and the logits."""
        if not isinstance(target, MixedTarget):
            return super().forward(input, target)
        output, soft_target = self.trainable_module(input, target)
        return {"loss": self.criterion(output, soft_target), "output": output}


class MultiLabelClassificationTask(ClassificationTask, tasks.MultiLabelClassificationTask):
    """`timm.task.MultiLabelClassificationTask` for aligned models: binary losses against mixed dense targets.

    Use the mixer `tlfx.mix.Mixup(multi_label=True)`. The rest is as in :class:`ClassificationTask`.
    """
