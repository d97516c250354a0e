"""Mixers that choose the pasted region by the saliency of the image or by a network's attention to it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tlfx.errors import InputError, a_type
from tlfx.mix.cutmix import CutMix
from tlfx.mix.masked import MaskMixer
from tlfx.mix.mixer import MixerArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AttentiveCutMix", "SaliencyMix"]


class SaliencyMix(CutMix):
    """CutMix with the box around the most salient pixel of the image that it is cut from (arXiv 2006.01791).

    Saliency is OpenCV's fine-grained saliency on the CPU, about 40 milliseconds for an image of 224×224; install
    `tlfx[saliency]`. In mode "batch", one image determines the box of all images, as in the published code; in mode
    "elem", each image determines its box. Arguments are those of `CutMix`.

    InputError for invalid arguments, or if OpenCV's saliency module is not installed.

    >>> mix = SaliencyMix(num_classes=2, mode="elem")
    >>> images, target = mix(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
    >>> images.shape, target.mask.shape
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 1, 32, 32]))
    """

    def __init__(self, *, alpha: float = 1.0, **arguments: Unpack[MixerArguments]) -> None:
        super().__init__(alpha=alpha, **arguments)
        _saliency_model()  # reports a missing OpenCV before the first batch

    def centres(self, others: Tensor) -> tuple[Tensor, Tensor]:
        """The most salient pixel of each image."""
        model = _saliency_model()
        places = torch.tensor([int(model.computeSaliency(_picture(image))[1].argmax()) for image in others])
        width = others.shape[-1]
        return places // width, places % width


class AttentiveCutMix(MaskMixer):
    """Pastes the patches that a network attends to most on another image, at the same positions (arXiv 2003.13048).

    attention: a function, or a module in evaluation mode, that maps images (B, C, H, W) to attention (B, h, w), or to
        features (B, channels, h, w), which are averaged over channels; for example `backbone.forward_features` of a
        pretrained timm ResNet. The h×w grid is the grid of patches.
    patches: number of pasted patches; 6 of 7×7 in the paper.
    The other arguments are those of `Mixer`: num_classes, label_smoothing, mode, prob, pairing, generator. The default
    mode is "elem", since attention differs from image to image.

    InputError for invalid arguments, or if attention has another shape.

    >>> mix = AttentiveCutMix(lambda x: torch.nn.functional.avg_pool2d(x, 2), patches=1, num_classes=2)
    >>> images = torch.tensor([[1.0, 1.0, 2.0, 2.0], [7.0, 7.0, 3.0, 3.0]]).view(2, 1, 1, 4).repeat(1, 1, 2, 1)
    >>> mix(images, torch.tensor([0, 1]))[0][:, 0, 0]
    tensor([[7., 7., 2., 2.],
            [7., 7., 2., 2.]])
    """

    def __init__(
        self, attention: Callable[[Tensor], Any], *, patches: int = 6, **arguments: Unpack[MixerArguments]
    ) -> None:
        if patches < 1:
            raise InputError(
                f"patches is {patches}, expected the number of patches to paste, at least 1; 6 in the paper"
            )
        if not callable(attention):
            raise InputError(
                f"attention is {attention!r}, expected a function of images or a module, such as "
                "backbone.forward_features of a network in evaluation mode"
            )
        arguments.setdefault("mode", "elem")
        super().__init__(**arguments)
        self.attention = attention
        self.patches = patches

    def masks(self, others: Tensor) -> Tensor:
        """0 in the patches with the most attention, 1 elsewhere."""
        if not others.is_floating_point():
            raise InputError(
                f"images have dtype {others.dtype}, but the attention network takes floating-point images; normalise "
                "images after the collate function and before they are mixed"
            )
        network = getattr(self.attention, "__self__", self.attention)  # that of network.forward_features
        if isinstance(network, nn.Module) and network.training:
            raise InputError(
                f"attention is computed by {a_type(network)} in training mode, which drops units and updates "
                "statistics: call eval() on it"
            )
        maps = self._maps(others)
        rows, columns = maps.shape[1:]
        top = maps.flatten(1).topk(self.patches, 1).indices
        grid = torch.ones_like(maps.flatten(1)).scatter_(1, top, 0.0).view(-1, rows, columns)
        height, width = others.shape[-2:]
        # the patch of each row and of each column of pixels
        y, x = (torch.arange(n, device=grid.device) * cells // n for n, cells in ((height, rows), (width, columns)))
        return grid[:, None, y[:, None], x]

    @torch.no_grad()
    def _maps(self, others: Tensor) -> Tensor:
        """Attention, float32 (count, rows, columns)."""
        attention = self.attention(others)
        if not isinstance(attention, Tensor) or attention.dim() not in (3, 4) or len(attention) != len(others):
            is_tensor = isinstance(attention, Tensor)
            given = f"of shape {tuple(attention.shape)}" if is_tensor else a_type(attention)
            raise InputError(
                f"attention is {given} for {len(others)} images, expected (batch, rows, columns) or features (batch, "
                "channels, rows, columns); pass a function that selects or reshapes them"
            )
        _check_cells(attention, others)
        maps = attention.float() if attention.dim() == 3 else attention.float().mean(1)
        if self.patches > maps[0].numel() or maps.shape[1] > others.shape[2] or maps.shape[2] > others.shape[3]:
            raise InputError(
                f"{self.patches} patches of a grid of {maps.shape[1]}×{maps.shape[2]} were requested for images of "
                f"{others.shape[2]}×{others.shape[3]}, expected at most one patch per cell and one cell per pixel"
            )
        return maps


def _check_cells(attention: Tensor, images: Tensor) -> None:
    """InputError unless the grid of attention may come from one stride along both axes of the images."""
    bounds = [_strides(length, cells) for length, cells in zip(images.shape[-2:], attention.shape[-2:], strict=True)]
    if max(low for low, _ in bounds) > min(high for _, high in bounds):
        rows, columns = attention.shape[-2:]
        raise InputError(
            f"attention of shape {tuple(attention.shape)} is a grid of {rows}×{columns} on images of "
            f"{images.shape[-2]}×{images.shape[-1]}, whose cells are not square; expected (batch, rows, columns) or "
            "features (batch, channels, rows, columns). Permute channels-last features, x.permute(0, 3, 1, 2), and "
            "reshape token sequences (batch, tokens, channels) without their class token"
        )


def _strides(length: int, cells: int) -> tuple[float, float]:
    """The least and the largest stride that may divide an axis into cells, padded or not."""
    return length / (cells + 1), length / (cells - 1) if cells > 1 else float("inf")


def _saliency_model() -> Any:
    """OpenCV's fine-grained saliency. InputError if it is not installed."""
    try:
        cv2: Any = importlib.import_module("cv2")
        return cv2.saliency.StaticSaliencyFineGrained_create()
    except (ImportError, AttributeError) as error:  # opencv-python without contrib has no cv2.saliency
        raise InputError(
            f"SaliencyMix needs OpenCV's saliency module, which is missing ({error}): pip install "
            "'tlfx[saliency]', or replace the installed OpenCV by opencv-contrib-python-headless"
        ) from error


def _picture(image: Tensor) -> np.ndarray[Any, Any]:
    """An image (C, H, W) of any range in OpenCV's format: uint8 (H, W, 3) in BGR order, or grey (H, W)."""
    pixels = image.detach().float().cpu()
    pixels = pixels.flip(0).permute(1, 2, 0) if len(pixels) == 3 else pixels.mean(0)
    low, high = pixels.aminmax()
    picture: np.ndarray[Any, Any] = ((pixels - low) * (255 / (high - low).clamp_min(1e-12))).byte().contiguous().numpy()
    return picture
