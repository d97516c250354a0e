"""The trainer of a run: mixed precision, gradient accumulation, moving average, and the state that checkpoints hold."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from trainer import Mixing, Trainer

from imagenet.distributed import Processes, last_step, load_state, load_states, state, states
from imagenet.order import Draws, seed_for, seed_generators

__all__ = ["RunMeter", "RunTrainer", "autocast"]


class RunMeter:
    """Means over the current epoch: of the loss, and of |λ − λ_area| of each mixture of different classes."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.sums = processes.zeros(4)  # losses, gaps, steps, pairs

    def reset(self) -> None:
        """Start an epoch."""
        self.sums.zero_()

    @torch.no_grad()
    def update(self, loss: Tensor, gaps: Tensor) -> None:
        """Add one batch: its mean loss, and its λ gaps, NaN for images that are not a mixture of different classes."""
        self.sums += torch.stack((loss, gaps.nansum(), torch.ones_like(loss), (~gaps.isnan()).sum())).to(self.sums)

    def figures(self) -> dict[str, float]:
        """The means over all processes, which must call this together; the gap is 0 without mixtures."""
        loss, gap, steps, pairs = self.processes.sum(self.sums).tolist()
        return {"train_loss": loss / steps, "lambda_gap": gap / max(pairs, 1.0)}


def autocast(options: Namespace, device: torch.device) -> torch.autocast:
    """Mixed precision if the options ask for it."""
    return torch.autocast(device.type, getattr(torch, options.amp_dtype), enabled=options.amp)


class RunTrainer(Trainer):
    """The trainer of a run.

    model: as it is called, possibly wrapped or compiled. bare: the module inside it that has the weights. mixer: None
    if images are not mixed. scheduler: one of timm's, or None.
    """

    meter: RunMeter

    def __init__(
        self,
        model: nn.Module,
        bare: nn.Module,
        ema: ModelEmaV3 | None,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        mixer: Mixing | None,
        options: Namespace,
        processes: Processes,
    ) -> None:
        scaled = options.amp and options.amp_dtype == "float16"
        meter, device = RunMeter(processes), processes.device
        variant = {
            "aligned": options.align,
            "scaled": scaled,
            "target_scale": getattr(options, "target_scale", 1.0),
        }  # not of segment.py
        super().__init__(model, optimizer, mixer, meter, device, **variant)
        self.bare, self.ema, self.scheduler = bare, ema, scheduler
        self.options, self.processes = options, processes
        self.epoch, self.done, self.numbers = 0, 0, range(0)

    def update(self, batches: Sequence[tuple[Tensor, Tensor]], numbers: range, epoch: int, done: int) -> None:
        """Descend the mean loss of an update: the batches of this process, by their numbers in the update.

        done: updates of the whole run, this one included. Random draws follow from the update and the number alone.
        """
        self.epoch, self.done, self.numbers = epoch, done, numbers
        self.descend(batches)
        if self.ema is not None:
            self.ema.update(self.bare, step=done)
        if self.scheduler is not None:
            self.scheduler.step_update(done)

    @contextmanager
    def batch(self, index: int, *, last: bool) -> Iterator[None]:
        """Seed the generators by the place of the batch in the run; sum gradients over processes after the last."""
        seed = seed_for(self.options.seed, Draws.BATCH, self.done, self.numbers[index])
        seed_generators(seed)
        torch.manual_seed(seed)  # GPUs too
        with last_step(self.model, self.bare, last):
            yield

    def autocast(self) -> torch.autocast:
        """As :func:`autocast`, on the model's device."""
        return autocast(self.options, self.device)

    def place(self, images: Tensor) -> Tensor:
        """Images on the device of the model, in the memory format that the options ask for."""
        layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
        return images.to(self.device, non_blocking=True, memory_format=layout)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of a mixed batch, or of an unmixed one if images are not mixed in this epoch."""
        if self.mixer is not None and not 0 < self.options.mixup_off_epoch <= self.epoch:
            return super().loss(images, labels)
        with self.autocast():
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.options.smoothing)
        self.meter.update(loss.detach(), loss.new_empty(0))  # no image is a mixture
        return loss

    def clip(self) -> None:
        """Clip the gradients if the options ask for it."""
        if self.options.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(list(self.bare.parameters()), self.options.clip_grad, mode=self.options.clip_mode)

    def state(self) -> dict[str, Any]:
        """The state of training for a checkpoint; all processes must call this together."""
        model, optimizer = states(self.bare, self.optimizer)
        return {
            "state_dict": model,
            "state_dict_ema": None if self.ema is None else state(self.ema.module),
            "optimizer": optimizer,
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meter": self.processes.sum(self.meter.sums),
        }

    def load(self, content: dict[str, Any]) -> None:
        """Load the result of :meth:`state`."""
        load_states(self.bare, self.optimizer, content["state_dict"], content["optimizer"])
        if self.ema is not None:
            load_state(self.ema.module, content["state_dict_ema"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        self.scaler.load_state_dict(content["scaler"])
        if self.processes.primary:  # the sum is over all processes
            self.meter.sums.copy_(content["meter"])
