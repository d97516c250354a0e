"""Mixed targets on their way to a device and between processes, as frameworks move whole batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import DataLoaderConfiguration, find_batch_size, send_to_device, slice_tensors  # type: ignore[import-untyped]
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.distributed.utils import _recursive_to
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import tlfx
from tlfx.mix import Collate, CutMix, GridMix

META = torch.device("meta")


def cutmix_batch(mixer: Any = None) -> tuple[Tensor, tlfx.MixedTarget]:
    mixer = mixer or CutMix(num_classes=3, generator=torch.Generator().manual_seed(0))
    return mixer(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))


def by_accelerate(target: Any) -> Any:
    return send_to_device({"images": target}, META)["images"]


def by_lightning(target: Any) -> Any:
    return move_data_to_device([target], META)[0]


def by_distributed(target: Any) -> Any:
    return _recursive_to([target], META, False)[0][0]


@pytest.mark.parametrize("mixer", [None, GridMix(num_classes=3, images=3)], ids=["two", "three"])
@pytest.mark.parametrize("move", [by_accelerate, by_lightning, by_distributed])
def test_labels_and_mask_move_and_numbers_stay(move: Callable[[Any], Any], mixer: Any) -> None:
    _, target = cutmix_batch(mixer)
    moved = move(target)
    assert type(moved) is tlfx.MixedTarget
    assert moved.keys() == target.keys()
    assert all(value.device == META for value in moved.values() if isinstance(value, Tensor))
    assert moved.num_classes == 3
    assert moved.mask.shape == target.mask.shape


def test_hugging_face_keeps_the_type(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    _, target = cutmix_batch()
    kept = Trainer(torch.nn.Linear(1, 1), arguments)._prepare_inputs({"labels": target})["labels"]
    assert type(kept) is tlfx.MixedTarget
    assert torch.equal(kept.area(), target.area())


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")  # Lightning's, of any number beside tensors
def test_lightning_finds_the_batch_size() -> None:
    assert extract_batch_size(cutmix_batch()) == 4


def test_accelerate_slices_a_batch_for_its_processes() -> None:
    images, target = cutmix_batch()
    assert find_batch_size((images, target)) == 4
    _, half = slice_tensors((images, target), slice(2, 4))
    half.check(2, (8, 8))
    assert torch.equal(half.area(), target.area()[2:])


@pytest.mark.parametrize("dispatch", [False, True])
def test_loaders_of_accelerate_give_whole_targets(dispatch: bool) -> None:
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
    samples: Any = [(torch.rand(3, 8, 8), index % 3) for index in range(6)]
    loader = DataLoader(samples, 4, collate_fn=Collate(CutMix(num_classes=3)))
    sizes = []
    for images, target in accelerator.prepare(loader):
        target.check(len(images), (8, 8))
        sizes.append(len(images))
    assert sizes == [4, 2]


def test_trees_keep_a_target_whole() -> None:
    _, target = cutmix_batch()
    kept = tree_map_only(tlfx.MixedTarget, lambda t: t.area(), {"labels": target})
    assert torch.equal(kept["labels"], target.area())
