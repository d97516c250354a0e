"""A Hugging Face model and its Trainer.

    python examples/huggingface_trainer.py

The lines marked 1 and 2, and the import of Trainer, are the only differences from training without mixing. The
trainer mixes and computes the loss, because a Hugging Face model computes binary cross-entropy for soft labels.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from typing import Any

import numpy as np
import torch
from data import NUM_CLASSES
from pictures import MEAN, STD, command_line, load_pictures
from torch import nn
from torchvision.transforms import v2  # type: ignore[import-untyped]
from training import SIZE
from transformers import EvalPrediction, TrainingArguments, ViTConfig, ViTForImageClassification

import tlfx
from tlfx.integrations.huggingface import Trainer
from tlfx.mix import CutMix


def build_model() -> nn.Module:
    """A Hugging Face vision transformer for SIZE×SIZE pictures and 4×4 patches."""
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            image_size=SIZE,
            patch_size=4,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=192,
            id2label={label: str(label) for label in range(NUM_CLASSES)},
        )
    )


def collate_fn(samples: Any) -> dict[str, torch.Tensor]:
    """A batch in the form that Hugging Face models take."""
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of pictures that are classified correctly."""
    right = np.argmax(prediction.predictions, axis=1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


def train(options: Namespace) -> nn.Module:
    """Train, print loss and accuracy of every epoch, and return the model."""
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    train_set, test_set = load_pictures(options, transform)
    model = build_model()
    model = tlfx.align(model)  # tlfx 1: in place
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            mixer=CutMix(num_classes=NUM_CLASSES),  # tlfx 2: mixes training batches; the target goes to model and loss
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=options.epochs,
                per_device_train_batch_size=options.batch_size,
                per_device_eval_batch_size=250,
                learning_rate=options.lr,
                weight_decay=0.05,
                lr_scheduler_type="cosine",
                eval_strategy="epoch",
                logging_strategy="epoch",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=train_set,
            eval_dataset=test_set,
            data_collator=collate_fn,
            compute_metrics=accuracy,
        )
        trainer.train()
    return model


if __name__ == "__main__":
    train(command_line(__doc__).parse_args())
