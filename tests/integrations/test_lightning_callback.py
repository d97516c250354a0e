"""The λ gap in the logs of Lightning."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import hooks_of
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tlfx
from tlfx.errors import InputError
from tlfx.integrations.lightning import LambdaGap
from tlfx.mix import CutMix


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Classifier(LightningModule):
    """Mixes all steps but the first, and keeps the gaps of its steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.mixer = CutMix(num_classes=4, mode="elem", generator=torch.Generator().manual_seed(0))
        self.gaps: list[Tensor] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        images, labels = batch
        images, target = CutMix(num_classes=4, prob=0.0)(images, labels) if index == 0 else self.mixer(images, labels)
        logits, soft = self.model(images, target=target)
        self.gaps.append(tlfx.lambda_gap(target, soft, reduction="none"))
        return F.cross_entropy(logits, soft)

    def validation_step(self, batch: Any, _: int) -> None:
        images, target = self.mixer(*batch)
        self.model(images, target)  # also aligned, but not of training
        self.model(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: LightningModule, folder: Path, *callbacks: Any) -> Trainer:
    data = TensorDataset(torch.rand(11, 3, 16, 16), torch.arange(11) % 4)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=CSVLogger(folder),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, DataLoader(data, 4), DataLoader(data, 4))
    return trainer


def test_each_epoch_logs_the_mean_over_its_pairs(tmp_path: Path) -> None:
    module = Classifier(tlfx.align(small_model()))
    trainer = fit(module, tmp_path, LambdaGap())
    assert len(module.gaps) == 6
    assert module.gaps[0].isnan().all()
    expected = [torch.cat(module.gaps[:3]).nanmean().item(), torch.cat(module.gaps[3:]).nanmean().item()]
    assert min(expected) > 1e-3
    assert trainer.log_dir is not None
    rows = csv.DictReader((Path(trainer.log_dir) / "metrics.csv").open())
    logged = [float(row["lambda_gap"]) for row in rows if row["lambda_gap"]]
    assert logged == pytest.approx(expected, rel=1e-4)
    assert not hooks_of(module.model)


def test_a_model_that_is_not_aligned_or_has_several_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no module of Classifier is aligned, expected self\.model = tlfx"):
        fit(Classifier(small_model()), tmp_path, LambdaGap())

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small_model()

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return self.body(images), self.body(images)

    module = Classifier(tlfx.align(Two()))
    with pytest.raises(
        InputError, match="returns its soft targets as a tuple, expected a single one; remove LambdaGap"
    ):
        fit(module, tmp_path, LambdaGap())
    assert not hooks_of(module.model)


def test_a_model_is_not_captured_again_because_lightning_notes_that_it_was_compiled() -> None:
    """Lightning replaces torch.compile when it is imported; another capture would break the compiled graph."""
    torch.compiler.reset()
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    model = tlfx.align(small_model(), example=images)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert model._compile_kwargs == {"backend": "eager", "fullgraph": True}
    logits, _ = compiled(*CutMix(num_classes=4)(images, labels))
    assert logits.shape == (4, 4)
