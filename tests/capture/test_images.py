"""The images among the arguments of a call: chosen by the mask, or named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tlfx

SIDE = 8
LEFT, RIGHT = torch.randn(2, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).unbind()
MASK = torch.zeros(2, 1, SIDE, SIDE)
MASK[:, :, :, 4:] = 1.0


class TwoInputs(nn.Module):
    """Patches of two inputs, summed; each output position is a patch of 4×4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Conv2d(3, 2, 4, 4), nn.Conv2d(3, 2, 4, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.one(left) + self.other(right).flip(-1)
        return out


class OfADict(TwoInputs):
    def forward(self, batch: dict[str, Any]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["left"], batch["right"])


def target(mask: Tensor = MASK) -> tlfx.MixedTarget:
    first = torch.zeros(len(LEFT), dtype=torch.long)
    return tlfx.MixedTarget(first=first, second=first + 1, mask=mask, num_classes=2, smoothing=0.0)


def columns(images: Any, model: nn.Module | None = None, *args: Any, **kwargs: Any) -> list[float]:
    """The share of the first image in both columns of patches of the first sample."""
    plain = model or TwoInputs()
    aligned = tlfx.align(plain, images=images)
    args = args if args or kwargs else (LEFT, RIGHT)
    output, soft = aligned(*args, target=target(), **kwargs)
    assert torch.equal(output, tlfx.unalign(plain)(*args, **kwargs))
    return [soft[0, 0, 0, column].item() for column in (0, 1)]


def test_named_images() -> None:
    """Labels come from those that are named; the label of a sum of two images is the average."""
    assert columns("left") == columns(0) == columns(["left"]) == [0.0, 1.0]
    assert columns("right") == columns(1) == [1.0, 0.0]
    assert columns(["left", "right"]) == columns((1, "left")) == [0.5, 0.5]


def test_images_by_keyword_and_in_a_dictionary() -> None:
    assert columns("right", None, LEFT, right=RIGHT) == [1.0, 0.0]
    assert columns("right", None, right=RIGHT, left=LEFT) == [1.0, 0.0]
    batch = {"left": LEFT, "right": RIGHT}
    assert columns("right", OfADict(), batch) == columns("batch.right", OfADict(), batch) == [1.0, 0.0]
    assert columns("batch", OfADict(), batch) == [0.5, 0.5]


def test_the_tensor_that_the_mask_fits() -> None:
    class WithThumbnail(nn.Module):
        def forward(self, thumbnail: Tensor, image: Tensor) -> Tensor:
            return image.mean((2, 3)) * thumbnail.mean()

    aligned = tlfx.align(WithThumbnail())
    _, soft = aligned(LEFT[:, :, :4, :4], RIGHT, target(torch.ones(2, 1, SIDE, SIDE)))
    assert torch.equal(soft[:, 0], torch.ones(2))


def test_several_that_fit_are_an_error() -> None:
    words = (
        r"TwoInputs was called with 2 tensors that may be the mixed images: left \(2, 3, 8, 8\), right "
        r"\(2, 3, 8, 8\)\. Name them: tlfx\.align\(model, images='left'\), or images=\['left', 'right'\] if all were "
        r"mixed by the same mask"
    )
    for call in (
        lambda: tlfx.align(TwoInputs())(LEFT, RIGHT, target()),
        lambda: tlfx.align(TwoInputs(), example=(LEFT, RIGHT)),
        lambda: tlfx.inspect(TwoInputs(), example=(LEFT, RIGHT)),
    ):
        with pytest.raises(tlfx.InputError, match=words):
            call()


def test_inspect_takes_names() -> None:
    report = tlfx.inspect(TwoInputs(), example=(LEFT, RIGHT), images="right")
    assert [node.operation.value for node in report.select(only="aggregation,residual")] == ["aggregation"]


def test_other_images_are_another_capture() -> None:
    aligned = tlfx.align(TwoInputs(), images="right")
    shares = [aligned(*args, target=target(), **more)[1][0, 0, 0, 0].item() for args, more in CALLS]
    assert shares == [1.0, 1.0]


CALLS: list[tuple[tuple[Tensor, ...], dict[str, Tensor]]] = [((LEFT, RIGHT), {}), ((), {"right": RIGHT, "left": LEFT})]


@pytest.mark.parametrize(
    ("images", "args", "words"),
    [
        (
            "top",
            (LEFT, RIGHT),
            "images='top' names no tensor among the arguments of TwoInputs: expected one of left, right",
        ),
        (2, (LEFT, RIGHT), "images=2: TwoInputs was called with 2 arguments by position"),
        ("right", (LEFT, RIGHT.mean(1)), r"images='right' has shape \(2, 8, 8\), expected \(batch, channels, height"),
        (["left", "right"], (LEFT, RIGHT[..., :4]), "all need the same batch, height and width"),
        ("right", (LEFT, RIGHT.long()), "images have dtype torch.int64, expected a floating type"),
    ],
)
def test_names_that_do_not_fit_the_call(images: Any, args: tuple[Tensor, ...], words: str) -> None:
    with pytest.raises(tlfx.InputError, match=words):
        tlfx.align(TwoInputs(), images=images)(*args, target())


@pytest.mark.parametrize("images", [[], 1.5, [None]])
def test_names_of_the_wrong_type(images: Any) -> None:
    with pytest.raises(tlfx.InputError, match="expected names or positions of arguments, such as 'image' or 0"):
        tlfx.align(TwoInputs(), images=images)


class OfFrames(nn.Module):
    """Logits (batch, classes, frames) of video (batch, frames, channels, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 4, 4)

    def forward(self, video: Tensor) -> Tensor:
        logits: Tensor = self.conv(video.flatten(0, 1)).mean((2, 3))
        return logits.unflatten(0, video.shape[:2]).transpose(1, 2)


class OfChannels(OfFrames):
    """The same of video (batch, channels, frames, height, width)."""

    def forward(self, video: Tensor) -> Tensor:
        return super().forward(video.transpose(1, 2))


def of_video(shares: Tensor) -> tlfx.MixedTarget:
    zeros = torch.zeros(2, dtype=torch.int64)
    return tlfx.MixedTarget(first=zeros, second=zeros + 1, mask=shares, num_classes=2, smoothing=0.0)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_mask_shows_the_axis_of_frames(batch: int) -> None:
    """One model takes both layouts in turn; each frame has the mean of its mask."""
    shares, video = torch.rand(batch, 1, 5, 8, 8), torch.randn(2, 5, 3, 8, 8)
    _, first = tlfx.align(OfFrames())(video, of_video(shares))
    _, second = tlfx.align(OfChannels())(video.transpose(1, 2), of_video(shares))
    torch.testing.assert_close(first[:, 0], shares.mean((1, 3, 4)).expand(2, 5))
    torch.testing.assert_close(first, second)


def test_a_mask_of_all_frames_fits_both_layouts() -> None:
    """A mask that differs from frame to frame is another capture."""
    shares, video = torch.rand(2, 1, 8, 8), torch.randn(2, 5, 3, 8, 8)
    aligned = tlfx.align(nn.Sequential(OfFrames(), nn.AvgPool1d(5), nn.Flatten()))
    of_each = (torch.arange(5) == 2).float()[:, None, None] * shares[:, :, None]
    for mask in (shares, of_each, shares):
        _, soft = aligned(video, of_video(mask))
        torch.testing.assert_close(soft[:, 0], mask.flatten(1).mean(1))


def test_as_many_frames_as_channels_are_an_error() -> None:
    with pytest.raises(tlfx.InputError, match=r"axis 1 or axis 2 may hold the frames: pass a mask \(batch, 1, height"):
        tlfx.align(OfFrames())(torch.randn(2, 3, 3, 8, 8), of_video(torch.rand(2, 1, 3, 8, 8)))
