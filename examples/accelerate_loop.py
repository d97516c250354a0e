"""A training loop with accelerate, in one process or in several.

    python examples/accelerate_loop.py
    accelerate launch --multi_gpu --num_processes 2 examples/accelerate_loop.py --batch-size 32  # two batches a step
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc-per-node 2 examples/accelerate_loop.py  # without a GPU

The lines marked 1 and 2, and the import of the mixers, are the only differences from plain CutMix and MixUp.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import set_seed  # type: ignore[import-untyped]
from architectures import build
from data import NUM_CLASSES
from pictures import MEAN, STD, command_line, load_pictures
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2  # type: ignore[import-untyped]

import tlfx
from tlfx.mix import CutMix, MixUp, RandomChoice


def build_model() -> nn.Module:
    """A vision transformer of timm."""
    return build("vit", seed=0)


def train(options: Namespace) -> nn.Module:
    """Train, print loss and accuracy of every epoch, and return the model."""
    accelerator = Accelerator()
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    train_set, test_set = load_pictures(options, transform)
    mixer = RandomChoice([MixUp(num_classes=NUM_CLASSES, alpha=0.8), CutMix(num_classes=NUM_CLASSES)])

    def collate_fn(samples: Any) -> Any:
        return mixer(*default_collate(samples))

    model = build_model()
    model = tlfx.align(model)  # tlfx 1: in place, before accelerator.prepare
    set_seed(0, device_specific=True)  # each process draws different mixtures
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05)
    loader = DataLoader(train_set, options.batch_size, shuffle=True, drop_last=True, collate_fn=collate_fn)
    test_loader = DataLoader(test_set, batch_size=250)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.epochs * len(loader))
    model, optimizer, loader, test_loader, scheduler = accelerator.prepare(
        model, optimizer, loader, test_loader, scheduler
    )
    for epoch in range(options.epochs):
        model.train()
        losses = []
        for images, target in loader:
            optimizer.zero_grad()
            logits, target = model(images, target)  # tlfx 2: the target that reaches the logits
            loss = criterion(logits, target)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
        mean = accelerator.reduce(torch.stack(losses).mean(), reduction="mean")
        accelerator.print(f"epoch {epoch}: loss {mean:.3f}, accuracy {evaluate(accelerator, model, test_loader):.1%}")
    trained: nn.Module = accelerator.unwrap_model(model)
    return trained


@torch.inference_mode()
def evaluate(accelerator: Accelerator, model: nn.Module, loader: Any) -> float:
    """Share of pictures that are classified correctly, over all processes."""
    model.eval()
    right = torch.cat([accelerator.gather_for_metrics(model(images).argmax(1) == labels) for images, labels in loader])
    return right.float().mean().item()


if __name__ == "__main__":
    train(command_line(__doc__).parse_args())
