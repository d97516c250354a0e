"""The base class of all mixers: checks a batch, pairs its images, and builds the target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from tlfx.errors import InputError, TargetError, a_type, counted
from tlfx.mix.draws import Draws, on_device
from tlfx.mix.labels import check_label_shape
from tlfx.mix.target import MixedTarget

__all__ = ["Mixer", "MixerArguments"]

MODES = ("batch", "pair", "elem")
PAIRINGS = ("mirror", "roll", "shuffle")


class MixerArguments(TypedDict, total=False):
    """Keyword arguments of every mixer; see `Mixer`."""

    num_classes: int | None
    label_smoothing: float
    mode: Literal["batch", "pair", "elem"]
    prob: float
    pairing: Literal["mirror", "roll", "shuffle"]
    generator: torch.Generator | None


class Mixer(ABC):
    """Abstract base class of mixers: `mixer(images, labels)` mixes a batch with itself and returns images and target.

    Derive a new mixer from `tlfx.mix.MaskMixer` if it pastes by a mask.

    num_classes: number of classes of the target; None takes it from soft labels (B, num_classes).
    label_smoothing: label smoothing of the target.
    mode: draw one mask for the "batch", one for each "pair" of images that are mixed with each other, or one for each
        image ("elem").
    prob: probability that a batch (or pair, or image) is mixed.
    pairing: "mirror" mixes image i with image B − 1 − i, as timm, and needs an even batch; "roll" with image i − 1, as
        torchvision; "shuffle" with a random other image. `mode="pair"` needs "mirror". If more than two images are
        mixed, "roll" takes i − 1, i − 2, … and "shuffle" takes further random images.
    generator: the `torch.Generator` to draw from, on its device; None for torch's default CPU generator.

    Set `mixup_enabled` to switch mixing on or off between batches. InputError for invalid arguments.
    """

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        mode: Literal["batch", "pair", "elem"] = "batch",
        prob: float = 1.0,
        pairing: Literal["mirror", "roll", "shuffle"] = "roll",
        generator: torch.Generator | None = None,
        images: int = 2,
    ) -> None:
        _check_choice("mode", mode, MODES)
        _check_choice("pairing", pairing, PAIRINGS)
        if mode == "pair" and pairing != "mirror":
            raise InputError(
                f"mode='pair' mixes two images with each other, which pairing={pairing!r} does not: use "
                "pairing='mirror', or mode='elem'"
            )
        if not 0.0 <= prob <= 1.0:
            raise InputError(f"prob is {prob}, expected a probability in [0, 1]")
        if images < 2 or (images > 2 and pairing == "mirror"):
            raise InputError(
                f"images is {images} with pairing={pairing!r}, expected at least 2, and exactly 2 with pairing='mirror'"
            )
        if num_classes is not None and not isinstance(num_classes, int):
            raise InputError(f"num_classes is {num_classes!r}, expected an integer, or None for soft labels")
        self.images = images
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.mode = mode
        self.mix_prob = prob
        self.pairing = pairing
        self.draws = Draws(generator)
        self.mixup_enabled = True

    def __call__(self, images: Any, labels: Any = None) -> tuple[Tensor, MixedTarget]:
        """Mix images (B, C, H, W), floating or uint8, with int64 labels (B,) or soft labels (B, num_classes).

        A single argument may hold both as a pair (images, labels). Returns new images of the same shape and type, and a
        `MixedTarget` with a float32 mask (B, 1 or K, H, W). InputError for other images, TargetError for labels that do
        not fit the images.
        """
        if labels is None and isinstance(images, tuple | list) and len(images) == 2:
            images, labels = images
        self._check_images(images)
        self.draws.check_worker()
        sources = on_device(self._sources(len(images)), images.device)
        labels = self._checked(labels, images)
        mixed, mask = self._mix(images, labels, sources)
        target = self._target(labels, sources, mask)
        on_cpu = images.device.type == "cpu"  # reading values synchronises a GPU
        target.check(len(images), tuple(images.shape[-2:]), values=on_cpu)
        return mixed, target

    def __repr__(self) -> str:
        names = {"mix_prob": "prob"}
        shown = (f"{names.get(k, k)}={_shown(v)}" for k, v in vars(self).items() if k not in ("draws", "mixup_enabled"))
        return f"{type(self).__name__}({', '.join(shown)})"

    @abstractmethod
    def _mix(self, images: Tensor, labels: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and their mask (B, 1 or K, H, W); sources, int64 (K, B), index the K images of each."""

    def _draws_for(self, batch: int) -> int:
        """Number of masks to draw for a batch."""
        return {"batch": 1, "pair": batch // 2, "elem": batch}[self.mode]

    def _sources(self, batch: int) -> Tensor:
        """Batch indices of the K images that are mixed into each image: int64 (K, batch)."""
        own = torch.arange(batch, device=self.draws.device)
        if self.pairing == "mirror":
            return torch.stack((own, own.flip(0)))
        order = self.draws.permutation(batch) if self.pairing == "shuffle" else own
        # image order[i] is mixed with image order[i − k]
        return torch.stack([torch.empty_like(own).scatter_(0, order, order.roll(k)) for k in range(self.images)])

    def _target(self, labels: Tensor, sources: Tensor, mask: Tensor) -> MixedTarget:
        """The target of the mixed batch. TargetError if the number of classes is unknown."""
        labels, smoothing = self._smoothed(labels)
        mixed = labels[sources.to(labels.device)]  # (K, B) or (K, B, num_classes)
        fields = {"mask": mask, "num_classes": self._classes(labels), "smoothing": smoothing}
        if len(mixed) > 2:
            return MixedTarget(labels=mixed.transpose(0, 1), **fields)
        return MixedTarget(first=mixed[0], second=mixed[1], **fields)

    def _checked(self, labels: Any, images: Tensor) -> Tensor:
        """The labels of a batch. TargetError unless they are a tensor with one label per image."""
        if not isinstance(labels, Tensor):
            raise TargetError(f"labels are {a_type(labels)}, expected a torch.Tensor (batch,)")
        check_label_shape(labels, len(images), name="labels")
        if images.is_meta and not labels.is_meta:
            raise InputError(
                "images are on the meta device, without data to mix; move them to the device of the labels"
            )
        return labels

    def _smoothed(self, labels: Tensor) -> tuple[Tensor, float]:
        """Labels, and the smoothing that the target applies to them later."""
        return labels, self.label_smoothing

    def _classes(self, labels: Tensor) -> int:
        if self.num_classes is not None:
            return self.num_classes
        if not labels.is_floating_point() or labels.dim() != 2:
            raise TargetError(
                f"num_classes is not given and labels are {labels.dtype} of shape {tuple(labels.shape)}: pass "
                f"{type(self).__name__}(num_classes=...), or soft labels (batch, num_classes)"
            )
        return labels.shape[1]

    def _check_images(self, images: Any) -> None:
        """InputError unless images are a tensor (B, C, H, W) of a supported type and batch size."""
        if not isinstance(images, Tensor) or images.dim() != 4:
            given = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else a_type(images)
            raise InputError(f"images are {given}, expected a torch.Tensor (batch, channels, height, width)")
        if not (images.is_floating_point() or images.dtype == torch.uint8):
            raise InputError(
                f"images have dtype {images.dtype}, expected a floating type or torch.uint8; use images.float()"
            )
        if self.pairing == "mirror" and (len(images) < 2 or len(images) % 2):
            raise InputError(
                f"a batch of {counted(len(images), 'image')} cannot be mixed in pairs (i with B − 1 − i); use an even "
                "batch size and drop_last=True in the DataLoader, or pairing='roll'"
            )
        if len(images) < self.images:
            raise InputError(
                f"a batch of {counted(len(images), 'image')} cannot be mixed, at least {self.images} are needed; use "
                "drop_last=True in the DataLoader (dataloader_drop_last=True for the Trainer of Hugging Face)"
            )
        # amax is NaN if any value is; checked on the CPU only, since reading a value synchronises a GPU
        if images.is_floating_point() and images.device.type == "cpu" and images.amax().isnan():
            raise InputError(
                f"images hold NaN in {int(images.flatten(1).isnan().any(1).sum())} of {len(images)} samples; mixing "
                "would spread it to their partners: check the data and its normalisation"
            )


def _shown(value: Any) -> str:
    """An attribute in one line: the type of a module or tensor, the name of a function."""
    if isinstance(value, Tensor | nn.Module):
        return type(value).__name__
    return getattr(value, "__qualname__", None) or repr(value)


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        *some, last = map(repr, known)
        raise InputError(f"{name} is {value!r}, expected {', '.join(some)} or {last}")
