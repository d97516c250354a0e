"""A callback of Lightning for aligned models."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tlfx.aligned import Aligned, opened
from tlfx.errors import InputError, a_type
from tlfx.gaps import lambda_gap
from tlfx.mix.target import MixedTarget

__all__ = ["LambdaGap"]


class LambdaGap(Callback):
    """Logs the λ gap of each epoch, the mean of :func:`tlfx.lambda_gap` over its pairs, to the loggers of the trainer.

    It reads target and soft target in a forward hook of the aligned model, so that `training_step` stays as it is. To
    log other steps or outputs, call `self.log("lambda_gap", tlfx.lambda_gap(target, soft_target))` there instead.

    name: of the figure. InputError when training starts if no module of the LightningModule is aligned, and in a step
    if the model returns several soft targets.

    >>> import tlfx
    >>> trainer = Trainer(callbacks=[LambdaGap()], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(self, name: str = "lambda_gap") -> None:
        self.name = name
        self._handles: list[RemovableHandle] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook into the aligned models."""
        models = [module for module in pl_module.modules() if isinstance(module, Aligned)]
        if not models:
            raise InputError(
                f"no module of {type(pl_module).__name__} is aligned, expected self.model = tlfx.align(model) before "
                "training"
            )
        hook = partial(self._log, pl_module)
        self._handles = [model.register_forward_hook(hook, with_kwargs=True) for model in models]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hooks."""
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks: Lightning calls no teardown after an error."""
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _log(
        self, pl_module: LightningModule, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        given = map(opened, (*args, *kwargs.values()))
        target = next((a for a in given if isinstance(a, MixedTarget)), None)
        if target is None or not pl_module.training:
            return
        soft = output[1]
        if not isinstance(soft, Tensor):
            raise InputError(
                f"the model returns its soft targets as {a_type(soft)}, expected a single one; remove "
                "LambdaGap and log tlfx.lambda_gap(target, soft_target) for one of them in training_step"
            )
        gaps = lambda_gap(target, soft, reduction="none")
        pairs = int((~gaps.isnan()).sum())
        mean = gaps.nansum() / max(pairs, 1)  # of weight 0 without pairs, where NaN would make the whole epoch NaN
        pl_module.log(self.name, mean, on_step=False, on_epoch=True, sync_dist=True, batch_size=pairs)
