"""A short version of torchvision's references/classification: MixUp or CutMix in collate_fn, and its loops.

    python examples/torchvision_reference.py

The lines marked 1 and 2, and the import of the mixers, are the only differences from plain CutMix and MixUp.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from data import NUM_CLASSES
from pictures import MEAN, STD, command_line, load_pictures
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision.models import VisionTransformer  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]
from training import SIZE

import tlfx
from tlfx.mix import CutMix, MixUp, RandomChoice


def build_model() -> nn.Module:
    """A vision transformer of torchvision for SIZE×SIZE pictures and 4×4 patches."""
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=SIZE,
        patch_size=4,
        num_layers=3,
        num_heads=3,
        hidden_dim=48,
        mlp_dim=192,
        num_classes=NUM_CLASSES,
    )
    nn.init.xavier_uniform_(model.heads.head.weight)  # initially zero, so that no gradient would reach the blocks
    module: nn.Module = model
    return module


def train(options: Namespace) -> nn.Module:
    """Train, print loss and accuracy of every epoch, and return the model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    dataset, dataset_test = load_pictures(options, transform)

    mixup_or_cutmix = RandomChoice([MixUp(num_classes=NUM_CLASSES, alpha=0.2), CutMix(num_classes=NUM_CLASSES)])

    def collate_fn(batch: Any) -> Any:
        return mixup_or_cutmix(*default_collate(batch))

    torch.manual_seed(0)  # seed of order and mixing
    data_loader = DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True, collate_fn=collate_fn)
    data_loader_test = DataLoader(dataset_test, batch_size=250)

    model = build_model().to(device)
    model = tlfx.align(model)  # tlfx 1: in place, before DistributedDataParallel
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.epochs)
    for epoch in range(options.epochs):
        loss = train_one_epoch(model, criterion, optimizer, data_loader, device)
        lr_scheduler.step()
        print(f"epoch {epoch}: loss {loss:.3f}, accuracy {evaluate(model, data_loader_test, device):.1%}")
    return model


def train_one_epoch(
    model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, data_loader: Any, device: torch.device
) -> float:
    """One pass over the training set; returns the mean loss."""
    model.train()
    losses: list[float] = []
    for image, target in data_loader:
        image, target = image.to(device), target.to(device)
        output, target = model(image, target)  # tlfx 2: the target that reaches the output
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.inference_mode()
def evaluate(model: nn.Module, data_loader: Any, device: torch.device) -> float:
    """Share of pictures that are classified correctly."""
    model.eval()
    right = sum((model(image.to(device)).argmax(1) == target.to(device)).sum().item() for image, target in data_loader)
    return float(right / len(data_loader.dataset))


if __name__ == "__main__":
    train(command_line(__doc__).parse_args())
