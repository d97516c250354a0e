"""The Trainer of Hugging Face for aligned models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

import tlfx
from tlfx.errors import InputError, TargetError
from tlfx.integrations.huggingface import Trainer
from tlfx.mix import CutMix


def small_model() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 4,
        "num_labels": 3,
        "initializer_range": 0.3,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = ViTConfig(**sizes)
    return ViTForImageClassification(config)


ALIGNED = tlfx.align(small_model())  # one for all tests, so that it is captured once


def aligned() -> nn.Module:
    """The aligned model, as it was first."""
    ALIGNED.load_state_dict(small_model().state_dict())
    ALIGNED.zero_grad()
    return ALIGNED.train()


class Noise(Dataset[dict[str, Any]]):
    """Seven images, so that the last batch of a pass is smaller."""

    images = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "label": index % 3}


class Keeping(CutMix):
    """Keeps what it has mixed."""

    def __call__(self, *batch: Any) -> Any:
        self.batches = [*getattr(self, "batches", []), super().__call__(*batch)]
        return self.batches[-1]


def mixer() -> Keeping:
    return Keeping(num_classes=3, generator=torch.Generator().manual_seed(0))


def trainer(folder: Path, *, of: type[transformers.Trainer] = Trainer, **changes: Any) -> Any:
    settings = {"model": aligned(), "mixer": mixer(), "train_dataset": Noise(), "eval_dataset": Noise()}
    options: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "max_grad_norm": 0.0,
        "optim": "sgd",
    }
    options |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    options |= changes.pop("options", {})
    options = {"learning_rate": 1.0, "lr_scheduler_type": "constant", **options}
    arguments = TrainingArguments(output_dir=str(folder), **options)
    return of(args=arguments, **{**settings, **changes})


def soft_cross_entropy(model: nn.Module, images: Tensor, target: tlfx.MixedTarget) -> Tensor:
    """Of every image, (batch,), with its aligned target, by hand."""
    output, soft = model(pixel_values=images, target=target)
    return -(soft["logits"] * output.logits.softmax(1).log()).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_step_of_several_batches_descends_the_mean_over_all_images(tmp_path: Path, accumulation: int) -> None:
    ours = trainer(tmp_path, options={"gradient_accumulation_steps": accumulation, "max_steps": 1})
    ours.train()
    batches = ours.mixer.batches
    assert [len(images) for images, _ in batches] == [4, 3][:accumulation]
    moved = [p.detach().clone() for p in ours.model.parameters()]
    reference = aligned()
    torch.cat([soft_cross_entropy(reference, *batch) for batch in batches]).mean().backward()
    for after, before in zip(moved, reference.parameters(), strict=True):
        torch.testing.assert_close(after, before - before.grad, rtol=1e-4, atol=1e-5)


def test_the_loss_is_not_binary_and_not_that_of_the_area(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    ours.model.train()
    inputs = {"pixel_values": Noise.images, "labels": torch.tensor([0, 1, 2, 0, 1, 2, 0])}
    loss = ours.compute_loss(ours.model, inputs)
    images, target = ours.mixer.batches[0]
    torch.testing.assert_close(loss, soft_cross_entropy(ours.model, images, target).mean())
    logits = ours.model(images).logits
    assert abs(loss - F.cross_entropy(logits, target.area())) > 1e-3
    assert abs(loss - F.binary_cross_entropy_with_logits(logits, target.area())) > 1e-1
    assert ours.model.config.problem_type is None
    assert inputs["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_evaluation_is_that_of_hugging_face(tmp_path: Path) -> None:
    mine, theirs = trainer(tmp_path), transformers.Trainer(small_model(), trainer(tmp_path).args, eval_dataset=Noise())
    ours, same = mine.evaluate(), theirs.evaluate()
    assert ours["eval_loss"] == pytest.approx(same["eval_loss"], rel=1e-5)
    assert not hasattr(mine.mixer, "batches")
    predicted, expected = mine.predict(Noise()), theirs.predict(Noise())
    assert (predicted.label_ids == expected.label_ids).all()
    assert predicted.predictions == pytest.approx(expected.predictions, abs=1e-5)


@pytest.mark.slow
def test_another_loss_gets_the_aligned_target(tmp_path: Path) -> None:
    seen = []

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        seen.append((labels, num_items_in_batch))
        return F.binary_cross_entropy_with_logits(outputs.logits, labels, reduction="sum") / num_items_in_batch

    ours = trainer(tmp_path, compute_loss_func=loss, options={"max_steps": 1})
    ours.train()
    ((labels, count),) = seen
    images, target = ours.mixer.batches[0]
    torch.testing.assert_close(labels, aligned()(pixel_values=images, target=target)[1]["logits"])
    assert count == 4


def test_the_gap_is_logged_with_the_training_loss(tmp_path: Path) -> None:
    options = {"num_train_epochs": 2, "logging_steps": 3, "eval_strategy": "epoch", "learning_rate": 0.0}
    ours = trainer(tmp_path, options=options)
    ours.train()
    batches = ours.mixer.batches
    assert len(batches) == 4
    reference = aligned()
    gaps = [tlfx.lambda_gap(t, reference(images, t)[1]["logits"], reduction="none") for images, t in batches]
    logged = [entry for entry in ours.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [3]
    expected = torch.cat(gaps[:3]).nanmean().item()
    assert expected > 1e-3
    assert logged[0]["lambda_gap"] == pytest.approx(expected, rel=1e-3)
    assert not any("lambda_gap" in entry for entry in ours.state.log_history if entry not in logged)


def test_saved_models_have_the_name_of_their_class(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    ours.save_model(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == [
        "ViTForImageClassification"
    ]
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), ours.model.parameters(), strict=True))


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(
        tlfx.InputError, match=r"ViTForImageClassification is not aligned, expected the model that tlfx"
    ):
        trainer(tmp_path, model=small_model())
    with pytest.raises(tlfx.InputError, match=r"label_smoothing_factor is 0.1, .* Keeping\(label_smoothing=0.1\)"):
        trainer(tmp_path, options={"label_smoothing_factor": 0.1})
    ours = trainer(tmp_path)
    ours.model.train()
    for labels, given in ((None, "missing"), ([0, 1], "a list"), (torch.rand(7, 3), r"float32 of shape \(7, 3\)")):
        with pytest.raises(tlfx.TargetError, match=f"labels of a batch with pixel_values, labels are .*{given}"):
            ours.compute_loss(ours.model, {"pixel_values": Noise.images, "labels": labels})


@pytest.mark.slow
def test_other_names_of_images_and_another_number_of_classes(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    ours.model.train()
    batch = {"image": Noise.images, "label": torch.tensor([0, 1, 2, 0, 1, 2, 0])}
    with pytest.raises(InputError, match=r"has image, label, expected images under 'pixel_values' and .* 'labels'"):
        ours.compute_loss(ours.model, batch)
    ours = trainer(tmp_path, mixer=lambda images, labels: (images, labels))
    with pytest.raises(
        TargetError, match=r"the mixer returned a Tensor, expected a tlfx.MixedTarget: use tlfx.mix.Mixup"
    ):
        ours.compute_loss(ours.model, {"pixel_values": Noise.images, "labels": batch["label"]})
    with pytest.raises(InputError, match=r"mixer is None, expected a mixer of tlfx\.mix"):
        trainer(tmp_path, mixer=None)
    ours = trainer(tmp_path, mixer=CutMix(num_classes=7))
    with pytest.raises(TargetError, match="num_classes=7, but ViTForImageClassification has logits of 3 classes"):
        ours.compute_loss(ours.model, {"pixel_values": Noise.images, "labels": batch["label"]})
