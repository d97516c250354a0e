"""A training task of timm (timm.task), as the current train.py of timm uses it: the task computes output and loss.

    python examples/timm_task.py

The line marked 1 and two imports, of the task and of Mixup, are the only differences from plain CutMix and MixUp.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from architectures import build
from data import NUM_CLASSES
from pictures import MEAN, STD, command_line, load_pictures
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import TrainingTask
from timm.utils import AverageMeter, dispatch_clip_grad, random_seed
from torch import nn
from training import SIZE

import tlfx
from tlfx.integrations.timm import ClassificationTask
from tlfx.mix import Mixup


def build_model() -> nn.Module:
    """An MLP-Mixer of timm."""
    return build("mixer", seed=0)


def train(options: Namespace) -> nn.Module:
    """Train, print loss and accuracy of every epoch, and return the model."""
    random_seed(42, rank=0)
    train_set, test_set = load_pictures(options)
    settings: dict[str, Any] = {
        "input_size": (3, SIZE, SIZE),
        "mean": MEAN,
        "std": STD,
        "num_workers": 0,
        "use_prefetcher": False,
    }
    loader_train = create_loader(train_set, batch_size=options.batch_size, is_training=True, no_aug=True, **settings)
    loader_eval = create_loader(test_set, batch_size=250, is_training=False, crop_pct=1.0, **settings)

    model = build_model()
    model = tlfx.align(model)  # tlfx 1: in place; the task hands it the mixed target
    mixup_fn = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=NUM_CLASSES)
    task = ClassificationTask(model, criterion_kwargs={"soft_targets": True})
    task.setup_ema(decay=0.99, use_warmup=True)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=options.lr, weight_decay=0.05)
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=options.epochs, warmup_epochs=1)

    for epoch in range(epochs):
        loss = train_one_epoch(task, loader_train, optimizer, mixup_fn)
        metrics, of_ema = validate(task, loader_eval), validate(task, loader_eval, ema=True)
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {metrics['top1']:.1f} %, of the EMA {of_ema['top1']:.1f} %")
        scheduler.step(epoch + 1)
    return model


def train_one_epoch(task: TrainingTask, loader: Any, optimizer: torch.optim.Optimizer, mixup_fn: Any) -> float:
    """One pass over the training set; returns the mean loss."""
    losses_m = AverageMeter()
    task.train()
    for input, target in loader:
        input, target = mixup_fn(input, target)
        result = task(input, target)
        losses_m.update(result["loss"].item(), input.size(0))
        optimizer.zero_grad()
        result["loss"].backward()
        dispatch_clip_grad(task.get_clip_parameters(), value=5.0)
        optimizer.step()
        task.update_ema()
    return float(losses_m.avg)


@torch.no_grad()
def validate(task: TrainingTask, loader: Any, ema: bool = False) -> dict[str, float]:
    """Loss and accuracy, in percent, by timm's evaluator."""
    model, evaluator = task.get_eval_model(ema=ema), task.create_evaluator()
    assert model is not None
    model.eval()
    for input, target in loader:
        evaluator.update(model(input), target)
    return dict(evaluator.compute())


if __name__ == "__main__":
    train(command_line(__doc__).parse_args())
