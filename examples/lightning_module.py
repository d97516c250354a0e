"""A LightningModule, trained on one device, or on several with strategy="ddp".

    python examples/lightning_module.py
    python examples/lightning_module.py --devices 2  # two processes, each with a part of every step

The lines marked 1 and 2, and the import of CutMix, are the only differences from plain CutMix.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
import torch.nn.functional as F
from architectures import build
from data import NUM_CLASSES
from lightning.pytorch import LightningModule, Trainer, seed_everything
from pictures import MEAN, STD, command_line, load_pictures
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2  # type: ignore[import-untyped]

import tlfx
from tlfx.mix import CutMix


def build_model() -> nn.Module:
    """A ConvNeXt with two stages."""
    return build("convnext", seed=0)


class Classifier(LightningModule):
    """Trains with CutMix on the device, and tests on unmixed pictures."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.model = build_model()
        self.model = tlfx.align(self.model)  # tlfx 1: in place, before Lightning wraps it
        self.cutmix = CutMix(num_classes=NUM_CLASSES)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, target = self.cutmix(*batch)
        logits, target = self.model(images, target)  # tlfx 2: the target that reaches the logits
        loss = F.cross_entropy(logits, target)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        right = (self.model(images).argmax(1) == labels).float().mean()
        self.log("accuracy", right, batch_size=len(images), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.05)

    def on_train_epoch_end(self) -> None:
        figures = self.trainer.callback_metrics
        self.print(f"epoch {self.current_epoch}: loss {figures['train_loss']:.3f}, accuracy {figures['accuracy']:.1%}")


def train(options: Namespace) -> nn.Module:
    """Train, print loss and accuracy of every epoch, and return the model."""
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    train_set, test_set = load_pictures(options, transform)
    seed_everything(0)
    module = Classifier(options.lr)
    trainer = Trainer(
        max_epochs=options.epochs,
        accelerator="auto" if options.devices == 1 else "cpu",
        devices=options.devices,
        strategy="auto" if options.devices == 1 else "ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module,
        DataLoader(train_set, options.batch_size // options.devices, shuffle=True, drop_last=True),
        DataLoader(test_set, batch_size=250),
    )
    return module.model


def parse(arguments: list[str] | None = None) -> Namespace:
    """The shared flags, and the number of devices."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--devices", type=int, default=1, help="number of processes; several processes run on the CPU (default: 1)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse())
