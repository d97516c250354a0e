"""A short version of timm's train.py: its loader, Mixup, optimiser, schedule, EMA, loss and loops.

    python examples/timm_train.py

The lines marked 1 and 2, and the import of Mixup, are the only differences from plain CutMix and MixUp.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import timm
import torch
from data import NUM_CLASSES
from pictures import MEAN, STD, command_line, load_pictures
from timm.data import create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy, random_seed
from torch import nn
from training import SIZE

import tlfx
from tlfx.mix import Mixup


def build_model() -> nn.Module:
    """A vision transformer of timm for SIZE×SIZE pictures and 4×4 patches."""
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=4,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=NUM_CLASSES,
    )


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
    model = tlfx.align(model)  # tlfx 1: in place, before optimiser, EMA, torch.compile and DistributedDataParallel
    mixup_fn = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=NUM_CLASSES)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=options.lr, weight_decay=0.05)
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=options.epochs, warmup_epochs=1)
    model_ema = ModelEmaV3(model, decay=0.99, use_warmup=True)
    train_loss_fn = SoftTargetCrossEntropy()

    for epoch in range(epochs):
        loss = train_one_epoch(model, loader_train, optimizer, train_loss_fn, mixup_fn, model_ema)
        top1, top1_ema = validate(model, loader_eval), validate(model_ema.module, loader_eval)
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {top1:.1f} %, of the EMA {top1_ema:.1f} %")
        scheduler.step(epoch + 1)
    return model


def train_one_epoch(
    model: nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    loss_fn: nn.Module,
    mixup_fn: Any,
    model_ema: ModelEmaV3,
) -> float:
    """One pass over the training set; returns the mean loss."""
    losses_m = AverageMeter()
    model.train()
    for input, target in loader:
        input, target = mixup_fn(input, target)
        output, target = model(input, target)  # tlfx 2: the target that reaches the output
        loss = loss_fn(output, target)
        losses_m.update(loss.item(), input.size(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model_ema.update(model)
    return float(losses_m.avg)


@torch.no_grad()
def validate(model: nn.Module, loader: Any) -> float:
    """Top-1 accuracy in percent."""
    top1_m = AverageMeter()
    model.eval()
    for input, target in loader:
        (acc1,) = accuracy(model(input), target, topk=(1,))
        top1_m.update(acc1.item(), input.size(0))
    return float(top1_m.avg)


if __name__ == "__main__":
    train(command_line(__doc__).parse_args())
