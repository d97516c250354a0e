"""What every mixer does: check a batch, find partners in it, and make the target of what comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypedDict

import torch
from torch import Tensor

from tlfx.errors import InputError, TargetError
from tlfx.mix.draws import Draws
from tlfx.mix.target import MixedTarget

__all__ = ["Mixer", "MixerArguments"]

MODES = ("batch", "pair", "elem")
PAIRINGS = ("mirror", "roll", "shuffle")


class MixerArguments(TypedDict, total=False):
    """What every mixer takes; see `Mixer`."""

    num_classes: int | None
    label_smoothing: float
    mode: str
    prob: float
    pairing: str
    generator: torch.Generator | None


class Mixer(ABC):
    """Base of all mixers: `mixer(images, labels)` mixes a batch with itself and returns images and `MixedTarget`.

    It is no mixer by itself; a new one is best derived from `tlfx.mix.MaskMixer`.

    num_classes: of the target; None takes it from soft labels (B, num_classes).
    label_smoothing: of the target.
    mode: one mask for the whole "batch", for each "pair" of images that are mixed with one another, or for each "elem".
    prob: probability to mix a batch (or pair, or element).
    pairing: "mirror" mixes image i with B − 1 − i, as timm, and needs an even batch; "roll" with i − 1, as torchvision;
        "shuffle" with a random other one. `mode="pair"` needs "mirror". Where more than two images make one, "roll"
        takes i − 1, i − 2, …, and "shuffle" as many random others.
    generator: a `torch.Generator` to draw from, on its device; None for torch's own, on the CPU.

    `mixup_enabled` switches mixing off and on between batches. InputError on arguments that no mixing can follow.
    """

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        mode: str = "batch",
        prob: float = 1.0,
        pairing: str = "roll",
        generator: torch.Generator | None = None,
        images: int = 2,
    ) -> None:
        _check_choice("mode", mode, MODES)
        _check_choice("pairing", pairing, PAIRINGS)
        if mode == "pair" and pairing != "mirror":
            raise InputError(
                f"mode='pair' mixes two images with one another, which pairing={pairing!r} does not: use "
                "pairing='mirror', or mode='elem'"
            )
        if not 0.0 <= prob <= 1.0:
            raise InputError(f"prob is {prob}, expected a probability in [0, 1]")
        if images < 2 or (images > 2 and pairing == "mirror"):
            raise InputError(
                f"images is {images} with pairing={pairing!r}, expected 2 or more, and 2 for pairing='mirror', which "
                "knows no third"
            )
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

        Both may come as one pair (images, labels). Returns new images of the same shape and type, and their target
        with a float32 mask (B, 1 or K, H, W). InputError for other images, TargetError for labels that do not fit them.
        """
        if labels is None and isinstance(images, tuple | list) and len(images) == 2:
            images, labels = images
        self._check_images(images)
        self.draws.check_worker()
        sources = self._sources(len(images)).to(images.device)
        labels = _checked(labels, len(images))
        mixed, mask = self._mix(images, labels, sources)
        target = self._target(labels, sources, mask)
        on_cpu = images.device.type == "cpu"  # reading values stalls a GPU
        target.check(len(images), tuple(images.shape[-2:]), values=on_cpu)
        return mixed, target

    @abstractmethod
    def _mix(self, images: Tensor, labels: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and the mask (B, 1 or K, H, W) that mixed them; sources, int64 (K, B), number what made each."""

    def _draws_for(self, batch: int) -> int:
        """How many masks a batch takes."""
        return {"batch": 1, "pair": batch // 2, "elem": batch}[self.mode]

    def _sources(self, batch: int) -> Tensor:
        """For the K images that make each mixed one, their numbers in the batch: int64 (K, batch)."""
        own = torch.arange(batch, device=self.draws.device)
        if self.pairing == "mirror":
            return torch.stack((own, own.flip(0)))
        order = self.draws.permutation(batch) if self.pairing == "shuffle" else own
        return torch.stack([torch.empty_like(own).scatter_(0, order, order.roll(k)) for k in range(self.images)])

    def _target(self, labels: Tensor, sources: Tensor, mask: Tensor) -> MixedTarget:
        """Labels of the images with the mask. TargetError if the number of classes is unknown."""
        labels, smoothing = self._smoothed(labels)
        made_of = labels[sources.to(labels.device)]  # (K, B) or (K, B, num_classes)
        fields = {"mask": mask, "num_classes": self._classes(labels), "smoothing": smoothing}
        if len(made_of) > 2:
            return MixedTarget(labels=made_of.transpose(0, 1), **fields)
        return MixedTarget(first=made_of[0], second=made_of[1], **fields)

    def _smoothed(self, labels: Tensor) -> tuple[Tensor, float]:
        """Labels, and the smoothing that the target is still to have."""
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
        """InputError unless images are a tensor (B, C, H, W) of a type and number that can be mixed."""
        if not isinstance(images, Tensor) or images.dim() != 4:
            given = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise InputError(f"images are {given}, expected a torch.Tensor (batch, channels, height, width)")
        if not (images.is_floating_point() or images.dtype == torch.uint8):
            raise InputError(
                f"images have dtype {images.dtype}, expected a floating type or torch.uint8; use images.float()"
            )
        if self.pairing == "mirror" and (len(images) < 2 or len(images) % 2):
            raise InputError(
                f"a batch of {len(images)} images cannot be mixed in pairs (i with B − 1 − i); use an even batch size "
                "and drop_last=True in the DataLoader, or pairing='roll'"
            )
        if len(images) < self.images:
            raise InputError(
                f"a batch of {len(images)} images cannot be mixed, it takes {self.images} or more; use drop_last=True "
                "in the DataLoader"
            )
        # the largest value is NaN if any is; read on the CPU only, since reading stalls a GPU
        if images.is_floating_point() and images.device.type == "cpu" and images.amax().isnan():
            raise InputError(
                f"images hold NaN in {int(images.flatten(1).isnan().any(1).sum())} of {len(images)} samples; mixing "
                "would carry it into their partners: look at the data and its normalisation"
            )


def _checked(labels: Any, batch: int) -> Tensor:
    """Labels of a batch. TargetError unless they are a tensor with one for each image."""
    if not isinstance(labels, Tensor):
        raise TargetError(f"labels are a {type(labels).__name__}, expected a torch.Tensor (batch,)")
    if labels.dim() == 0 or len(labels) != batch:
        count = len(labels) if labels.dim() else 0
        raise TargetError(f"a batch of {count} labels was given with {batch} images; expected one label per image")
    return labels


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        *some, last = map(repr, known)
        raise InputError(f"{name} is {value!r}, expected {', '.join(some)} or {last}")
