"""What a run trains, its state, and the update that moves it on."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from imagenet.distributed import Processes, last_step, load_state, load_states, state, states
from imagenet.mixing import Mixing
from imagenet.order import Draws, seed_for, seed_generators

__all__ = ["Meter", "Trainer", "autocast"]


class Meter:
    """Means over the present epoch: of the loss, and of half the L1 distance of targets from those by area."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.sums = processes.zeros(3)  # loss, distance, steps

    def reset(self) -> None:
        """Begin an epoch."""
        self.sums.zero_()

    @torch.no_grad()
    def update(self, loss: Tensor, gap: Tensor) -> None:
        """Take in the means of one step."""
        self.sums += torch.stack((loss, gap, torch.ones_like(gap))).to(self.sums)

    def figures(self) -> dict[str, float]:
        """Over all processes, which must call it together."""
        loss, gap, steps = self.processes.sum(self.sums).tolist()
        return {"train_loss": loss / steps, "label_gap": gap / steps}


def autocast(options: Namespace, device: torch.device) -> torch.autocast:
    """Mixed precision where options ask for it."""
    return torch.autocast(device.type, getattr(torch, options.amp_dtype), enabled=options.amp)


class Trainer:
    """A model with all that trains it.

    model: as it is called, maybe wrapped or compiled. bare: the module with the weights, in it. mixer: None if images
    are not mixed. scheduler: one of timm's, or None.
    """

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
        self.model, self.bare, self.ema = model, bare, ema
        self.optimizer, self.scheduler, self.mixer = optimizer, scheduler, mixer
        self.options, self.processes, self.device = options, processes, processes.device
        scaled = options.amp and options.amp_dtype == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.meter = Meter(processes)

    def update(self, batches: Sequence[tuple[Tensor, Tensor]], numbers: Sequence[int], epoch: int, done: int) -> None:
        """Descend the mean loss of an update: this process's batches, by their numbers in it.

        done: updates of the whole run, this one included. What is drawn follows from the update and the number alone.
        """
        self.model.train()
        self.optimizer.zero_grad()
        for step, ((images, labels), number) in enumerate(zip(batches, numbers, strict=True), 1):
            seed = seed_for(self.options.seed, Draws.BATCH, done, number)
            seed_generators(seed)
            torch.manual_seed(seed)  # GPUs too
            with last_step(self.model, self.bare, step == len(batches)):
                loss = self._loss(self._placed(images), labels.to(self.device, non_blocking=True), epoch)
                self.scaler.scale(loss / len(batches)).backward()
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.bare, step=done)
        if self.scheduler is not None:
            self.scheduler.step_update(done)

    def autocast(self) -> torch.autocast:
        """As :func:`autocast`, on the model's device."""
        return autocast(self.options, self.device)

    def _placed(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
        return images.to(self.device, non_blocking=True, memory_format=layout)

    def _loss(self, images: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """Cross-entropy with the target that reaches the classifier if the model is aligned, else with that by area."""
        if self.mixer is None or 0 < self.options.mixup_off_epoch <= epoch:
            with self.autocast():
                logits = self.model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.options.smoothing)
            self.meter.update(loss, loss.new_zeros(()))
            return loss
        images, target = self.mixer(images, labels)
        area = target.area()
        with self.autocast():
            logits, soft = self.model(images, target) if self.options.align else (self.model(images), area)
        loss = F.cross_entropy(logits.float(), soft)
        self.meter.update(loss, (soft - area).abs().sum(1).mean() / 2)
        return loss

    def _clip(self) -> None:
        if self.options.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(list(self.bare.parameters()), self.options.clip_grad, mode=self.options.clip_mode)

    def state(self) -> dict[str, Any]:
        """All that changes in training, for a checkpoint; all processes must call it together."""
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
        """Take back what :meth:`state` gave."""
        load_states(self.bare, self.optimizer, content["state_dict"], content["optimizer"])
        if self.ema is not None:
            load_state(self.ema.module, content["state_dict_ema"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        self.scaler.load_state_dict(content["scaler"])
        if self.processes.primary:  # the sum is of all processes
            self.meter.sums.copy_(content["meter"])
