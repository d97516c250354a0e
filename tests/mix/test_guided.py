"""`tlfx.mix.SaliencyMix` and `AttentiveCutMix`: where they cut, against slow twins."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from batches import CLASSES, batch, numbered, seeded
from torch import Tensor

import tlfx
from tlfx.errors import InputError
from tlfx.mix import AttentiveCutMix, CutMix, SaliencyMix
from tlfx.mix.draws import Draws


def spots(count: int, channels: int = 3, size: int = 96, dtype: torch.dtype = torch.uint8) -> tuple[Tensor, Tensor]:
    """Grey noise with one bright spot of 9×9 each, and the middles of the spots, int64 (count, 2)."""
    generator = seeded()
    images = 100 + 10 * torch.rand(count, channels, size, size, generator=generator)
    places = torch.randint(20, size - 20, (count, 2), generator=generator)
    for image, (y, x) in zip(images, places.tolist(), strict=True):
        image[:, y - 4 : y + 5, x - 4 : x + 5] = 255
    images = images if dtype == torch.uint8 else (images - 120) / 60
    return images.to(dtype), places


def peak(image: Tensor) -> tuple[int, int]:
    """The most salient pixel, by OpenCV, of an image of three colours and any range."""
    low, high = image.float().min(), image.float().max()
    pixels = ((image.float() - low) * (255 / (high - low))).byte().numpy()[::-1].transpose(1, 2, 0)
    _, saliency = cv2.saliency.StaticSaliencyFineGrained_create().computeSaliency(np.ascontiguousarray(pixels))  # type: ignore[attr-defined]
    return divmod(int(saliency.argmax()), image.shape[-1])


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_what_stands_out_is_salient(channels: int, dtype: torch.dtype) -> None:
    images, places = spots(6, channels, dtype=dtype)
    centres = torch.stack(SaliencyMix().centres(images), 1)
    assert (centres - places).abs().max() <= 12


def test_where_nothing_stands_out_the_first_pixel_is_taken() -> None:
    assert [x.tolist() for x in SaliencyMix().centres(torch.ones(2, 3, 8, 8))] == [[0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_box_lies_around_the_most_salient_pixel(dtype: torch.dtype) -> None:
    images, _ = spots(5, dtype=dtype)
    mixed, target = SaliencyMix(num_classes=5, mode="elem", generator=seeded(1))(images, torch.arange(5))
    draws = Draws(seeded(1))
    draws.uniform(5, 1, 1, 1)  # whether to mix
    for i, lam in enumerate(draws.shares(1.0, 5)[:, 0]):
        source = images[(i - 1) % 5]
        (y, x), side = peak(source), int(np.float32(float((1.0 - lam).sqrt())) * np.float32(96))
        inside = torch.zeros(96, 96, dtype=torch.bool)
        top, left = max(y - side // 2, 0), max(x - side // 2, 0)
        inside[top : y - side // 2 + side, left : x - side // 2 + side] = True
        assert torch.equal(target.mask[i, 0], 1.0 - inside.float())
        assert torch.equal(mixed[i], torch.where(inside, source, images[i]))


def test_one_image_says_where_the_box_of_a_batch_lies() -> None:
    images, _ = spots(5)
    target = SaliencyMix(num_classes=5, generator=seeded(4))(images, torch.arange(5))[1]
    assert len(target.mask.flatten(1).unique(dim=0)) == 1
    box = CutMix(num_classes=5, generator=seeded(4))(images, torch.arange(5))[1]
    assert not torch.equal(box.mask, target.mask)


@pytest.mark.slow
def test_without_opencv() -> None:
    """In a process that can import neither cv2 nor parts of SciPy, as where the extra is not installed."""
    code = (
        "import sys; sys.modules['cv2'] = sys.modules['scipy.sparse.csgraph'] = None\n"
        "from tlfx.mix import SaliencyMix; SaliencyMix(num_classes=2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "tlfx.errors.InputError: SaliencyMix needs OpenCV's saliency module, which is missing" in done.stderr
    assert "pip install 'tlfx[saliency]'" in done.stderr


# attention


def mean_of_cells(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(images, 4)


@pytest.mark.parametrize("channels", [False, True])
def test_the_most_attended_patches_are_pasted(channels: bool) -> None:
    images, labels = batch(5, 12, 16)
    attention = mean_of_cells if channels else lambda x: mean_of_cells(x).mean(1)
    mixed, target = AttentiveCutMix(attention, patches=3, num_classes=CLASSES)(images, labels)
    for i in range(5):
        source = images[(i - 1) % 5]
        means = {
            (r, c): float(source[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].mean()) for r in range(3) for c in range(4)
        }
        best = sorted(means, key=lambda cell: -means[cell])[:3]
        for r, c in means:
            cell = (slice(4 * r, 4 * r + 4), slice(4 * c, 4 * c + 4))
            assert (target.mask[i, 0][cell] == float((r, c) not in best)).all()
            assert torch.equal(
                mixed[i][:, cell[0], cell[1]], (source if (r, c) in best else images[i])[:, cell[0], cell[1]]
            )
    torch.testing.assert_close(target.mask.mean((1, 2, 3)), torch.full((5,), 0.75))


def test_a_backbone_of_timm_attends_and_an_aligned_model_learns() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("test_resnet", num_classes=0).eval()
    model = tlfx.align(timm.create_model("test_vit", img_size=64, num_classes=CLASSES))
    images, labels = batch(3, 64, 64)
    images, target = AttentiveCutMix(backbone.forward_features, patches=2, num_classes=CLASSES)(images, labels)  # type: ignore[arg-type]
    assert not images.requires_grad
    assert len(target.mask.flatten(1).unique(dim=0)) == 3
    logits, soft = model(images, target)
    torch.nn.functional.cross_entropy(logits, soft).backward()
    torch.testing.assert_close(soft.sum(1), torch.ones(3))


def test_grids_that_do_not_divide_the_image() -> None:
    images, labels = numbered(3, 13, 10)
    attention = torch.rand(3, 4, 3, generator=seeded())
    target = AttentiveCutMix(lambda x: attention, patches=5, num_classes=3)(images, labels)[1]
    cells = {(y * 4 // 13, x * 3 // 10) for _, y, x in (target.mask[0] == 0).nonzero().tolist()}
    assert cells == {divmod(i, 3) for i in attention[0].flatten().topk(5).indices.tolist()}


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        (lambda x: [x], "attention is a list for 4 images, expected .* pass a function that selects or reshapes"),
        (lambda x: x.flatten(1), r"attention is of shape \(4, 288\) for 4 images"),
        (lambda x: x[:2], r"attention is of shape \(2, 3, 12, 8\)"),
        (lambda x: x[:, :, :2, :2], "6 patches of a grid of 2×2 were requested for images of 12×8"),
        (
            lambda x: torch.rand(4, 12, 5),
            r"grid of 12×5 on images of 12×8, whose cells are not square; .* token sequences",
        ),
        (
            lambda x: x.movedim(1, 3),
            r"attention of shape \(4, 12, 8, 3\) is a grid of 8×3 .* Permute channels-last features, x.permute",
        ),
        (lambda x: x[:, :, :2, :1], "6 patches of a grid of 2×1 were requested for images of 12×8"),
        (lambda x: torch.zeros(len(x), 6, 40), "whose cells are not square; .* token sequences"),
    ],
)
def test_attention_of_another_form(attention: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        AttentiveCutMix(attention, num_classes=CLASSES)(*batch(4))


def test_what_cannot_be_attended_to() -> None:
    images, labels = numbered(4)
    with pytest.raises(InputError, match=r"dtype torch.uint8, but the attention network takes floating-point images"):
        AttentiveCutMix(mean_of_cells, num_classes=4)(images.byte(), labels)
    with pytest.raises(
        InputError, match=r"attention is computed by an AvgPool2d in training mode, .* call eval\(\) on it"
    ):
        AttentiveCutMix(torch.nn.AvgPool2d(4), num_classes=4)(images, labels)
    with pytest.raises(InputError, match="attention is computed by an AvgPool2d in training mode"):
        AttentiveCutMix(torch.nn.AvgPool2d(4).forward, num_classes=4)(images, labels)
    AttentiveCutMix(torch.nn.AvgPool2d(4).eval(), num_classes=4)(images, labels)[1].check(4, (12, 8))
    with pytest.raises(InputError, match="attention is 'resnet', expected a function of images or a module"):
        AttentiveCutMix("resnet", num_classes=4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="patches is 0, expected the number of patches to paste"):
        AttentiveCutMix(mean_of_cells, patches=0)
