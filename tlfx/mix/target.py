"""The target of a mixed batch: the labels of each sample, and the share of each label per pixel."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tlfx.errors import TargetError, a_type
from tlfx.mix.labels import check_labels, hard_or_soft, not_a_tensor

__all__ = ["MixedTarget", "ShareTarget"]

_ITEMS = ("first", "second", "labels", "mask", "num_classes", "smoothing")


class MixedTarget(dict[str, Any]):
    """Labels of the images (usually two) that each mixed image was made of, and the mask that mixed them.

    | item          | type and shape                                            | meaning                              |
    |---------------|-----------------------------------------------------------|--------------------------------------|
    | `first`       | int64 (B,), or soft float (B, num_classes)                | label of the image where `mask` is 1 |
    | `second`      | as `first`                                                | label of the image where `mask` is 0 |
    | `mask`        | float in [0, 1], (B or 1, 1, H, W); video (…, 1, T, H, W) | share of the first image per pixel   |
    | `num_classes` | int ≥ 1                                                   | width of the soft target             |
    | `smoothing`   | float in [0, 1), 0 if left out                            | label smoothing                      |

    A mixture of K images has `labels`, int64 (B, K) or soft float (B, K, num_classes), instead of `first` and `second`,
    and a mask with K channels that sum to 1: the share of each image per pixel.

    It is a `dict`, so that code which collates, moves, pins, slices or pickles dictionaries of tensors handles it. A
    single sample has labels and mask without batch axis; `default_collate` adds it. Attributes of the same names return
    the items with the types and shapes of the table. Names of items are validated at once, the items when `check` is
    called. `len` is the number of images, as of a tensor of labels.

    >>> mask = torch.ones(1, 1, 2, 4)
    >>> mask[..., 3] = 0
    >>> target = MixedTarget(first=torch.tensor([0]), second=torch.tensor([2]), mask=mask, num_classes=3)
    >>> target.area()
    tensor([[0.7500, 0.0000, 0.2500]])
    >>> target
    MixedTarget(first=(1,), second=(1,), mask=(1, 1, 2, 4), num_classes=3, smoothing=0.0)

    Raises TargetError for an item of any other name.
    """

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **fields: Any) -> None:
        super().__init__(items, **fields)
        self.setdefault("smoothing", 0.0)
        for name in self:
            if name not in _ITEMS:
                near = difflib.get_close_matches(str(name), _ITEMS, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise TargetError(f"{name!r} is not an item of a MixedTarget, expected {', '.join(_ITEMS)}{hint}")

    def __len__(self) -> int:
        """The number of images. TypeError for a single sample, which has no batch axis."""
        shape = self._batch_shape()
        if not shape:
            raise TypeError("a MixedTarget of a single sample has no length: torch.utils.data.default_collate adds it")
        return int(shape.numel())

    def __repr__(self) -> str:
        shown = (f"{k}={tuple(v.shape) if isinstance(v, Tensor) else v!r}" for k, v in self.items())
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def shape(self) -> torch.Size:
        """(images, classes), as of a tensor of soft labels."""
        return torch.Size((len(self), self.num_classes))

    @property
    def device(self) -> torch.device:
        """The device of the mask."""
        return self._tensor("mask").device

    def copy(self) -> MixedTarget:
        """A new target with the same items."""
        return type(self)(self)

    def __or__(self, other: Mapping[str, Any]) -> MixedTarget:  # type: ignore[override]
        """A new target with some items replaced."""
        return type(self)({**self, **other})

    def size(self, dim: int | None = None) -> Any:
        """`shape`, or the number of images for dim 0 and the number of classes for dim 1.

        IndexError for any other dim.
        """
        if dim is None:
            return self.shape
        if dim not in (0, 1, -1, -2):
            raise IndexError(f"dim is {dim}, expected 0 (images) or 1 (classes)")
        return len(self) if dim in (0, -2) else self.num_classes

    @property
    def first(self) -> Tensor:
        """Label of the first image: int64 (B,) or float32 (B, num_classes)."""
        return self.labels[:, 0] if "labels" in self else _batched(self._tensor("first"), 0)

    @property
    def second(self) -> Tensor:
        """Label of the second image: int64 (B,) or float32 (B, num_classes)."""
        return self.labels[:, 1] if "labels" in self else _batched(self._tensor("second"), 0)

    @property
    def labels(self) -> Tensor:
        """Labels of all images: int64 (B, K) or float32 (B, K, num_classes)."""
        if "labels" in self:
            return _batched(self._tensor("labels"), 1)
        return torch.stack((self.first, self.second), 1)

    @property
    def mask(self) -> Tensor:
        """Share of the first image (or of each of K) per pixel: float32 (B or 1, 1 or K, H, W), or (…, T, H, W)."""
        mask, batch = self._tensor("mask").float(), self._batch_shape()
        axes = len(batch)  # 0 for one sample, 1 for a batch, 2 for collated batches
        if axes == 0:
            return mask.unsqueeze(0)
        if axes > 1 and mask.shape[: axes - 1] == batch[:-1] and mask.shape[axes - 1] in (1, batch[-1]):
            return mask.expand(*batch, *mask.shape[axes:]).flatten(0, axes - 1)
        return mask

    @property
    def num_classes(self) -> int:
        """Number of classes, ≥ 1."""
        return int(self._number("num_classes"))

    @property
    def smoothing(self) -> float:
        """Label smoothing in [0, 1)."""
        return float(self._number("smoothing"))

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> MixedTarget:
        """A new target with labels and mask on `device`, types unchanged. TargetError if `device` is not a device."""
        if not isinstance(device, (torch.device, str, int)):
            given = a_type(device) if isinstance(device, Tensor) else repr(device)
            raise TargetError(f"MixedTarget.to takes a device, got {given}; labels and mask keep their types")
        moved = {
            # num_classes and smoothing are read on the host, so they stay on the CPU
            key: value.to(device, non_blocking=non_blocking) if key in ("first", "second", "labels", "mask") else value
            for key, value in self.items()
        }
        return type(self)(moved)

    def cuda(self, device: torch.device | str | int = "cuda", non_blocking: bool = False) -> MixedTarget:
        """A new target on a GPU, as `to`."""
        return self.to(device, non_blocking)

    def cpu(self) -> MixedTarget:
        """A new target on the CPU, as `to`."""
        return self.to("cpu")

    def area(self) -> Tensor:
        """Plain CutMix/MixUp target λ·y₁ + (1 − λ)·y₂ with λ the mean of the mask: float32 (B, num_classes)."""
        share = self.mask.flatten(2).mean(2)
        return self.soften(share if "labels" in self else share.squeeze(1))

    @torch.no_grad()
    def soften(self, share: Tensor) -> Tensor:
        """Soft targets share·y₁ + (1 − share)·y₂ at any positions: float32 (B or 1, …) → (B, …, num_classes).

        For a mixture of K images, share is (B or 1, …, K) and the result Σ shareₖ·yₖ. y is the one-hot or soft label,
        smoothed as in timm: 1 − smoothing + smoothing/num_classes for the class of the label, smoothing/num_classes for
        other classes. The targets sum to 1 over classes if the labels do.

        >>> target = MixedTarget(first=torch.tensor([0]), second=torch.tensor([1]), mask=torch.ones(1, 1, 2, 2),
        ...                      num_classes=2)
        >>> target.soften(torch.tensor([[1.0, 0.25]]))
        tensor([[[1.0000, 0.0000],
                 [0.2500, 0.7500]]])
        """
        share = share.float()
        shares = share.unbind(-1) if "labels" in self else (share, 1.0 - share)
        labels = self.labels.unbind(1) if "labels" in self else (self.first, self.second)
        soft = self._soft(labels[0], shares[0])
        for label, part in zip(labels[1:], shares[1:], strict=True):
            soft += self._soft(label, part)  # one by one: a single sum over K would need K times the memory
        return soft

    def check(self, batch: int, size: tuple[int, ...] | None = None, *, values: bool = True) -> None:
        """TargetError unless the target fits `batch` images of `size`: (H, W), (T, H, W), or None for any size.

        `values=False` omits the checks that read values of labels and mask, which synchronise a GPU.
        """
        if self.num_classes < 1:
            raise TargetError(f"num_classes is {self.num_classes}, expected at least 1")
        if not 0.0 <= self.smoothing < 1.0:
            raise TargetError(f"smoothing is {self.smoothing}, expected a number in [0, 1), often 0.1")
        if self.num_classes == 1 and self.smoothing:
            raise TargetError(
                f"smoothing is {self.smoothing} for a single class, which would move all labels towards 1; use "
                "label_smoothing=0, or Mixup(multi_label=True), which smooths towards 0.5"
            )
        for name in self._label_items():
            check_labels(self.get(name), self.num_classes, name=name, values=values)
        self._check_lengths(batch)
        self._check_mask(batch, size)
        if values:
            _check_range(self.mask)

    def _soft(self, label: Tensor, share: Tensor) -> Tensor:
        """A new tensor share·y, float32 (B, …, num_classes), of a label (B, …) and its share (B or 1, …)."""
        classes = self.num_classes
        soft = hard_or_soft(label, classes, self.smoothing).view(-1, *[1] * (share.dim() - 1), classes)
        return soft * share.unsqueeze(-1)

    def _label_items(self) -> tuple[str, ...]:
        """Names of the items with labels. TargetError if both forms are present."""
        if "labels" not in self:
            return "first", "second"
        if "first" in self or "second" in self:
            raise TargetError(
                "the target holds labels and first or second; expected labels (K images), or first and second (two)"
            )
        return ("labels",)

    def _batch_shape(self) -> torch.Size:
        """The leading shape: () for one sample, (B,) for a batch, (N, B) for collated batches."""
        labels = self._tensor(self._label_items()[0])
        own = labels.is_floating_point() + ("labels" in self)
        return labels.shape[: labels.dim() - own]

    def _check_lengths(self, batch: int) -> None:
        """TargetError unless there is one label per image, on the same device as the mask."""
        if "labels" in self:
            self._check_images()
        first, second = self.first, self.second
        if len(first) != len(second):
            raise TargetError(f"first has {len(first)} labels and second {len(second)}; expected one of each per image")
        if len(first) != batch:
            raise TargetError(
                f"a target of {len(first)} labels was given with {batch} images; it seems to come from another batch: "
                "pass images and target from the same call of the mixer"
            )
        devices = sorted({str(self._tensor(name).device) for name in (*self._label_items(), "mask")})
        if len(devices) > 1:
            raise TargetError(f"labels and mask are on several devices {devices}; use target.to(images.device)")

    def _check_images(self) -> None:
        """TargetError unless the labels of K images have an axis of size K ≥ 2."""
        labels = self._tensor("labels")
        axis = labels.dim() - 1 - labels.is_floating_point()
        if axis < 0 or labels.shape[axis] < 2:
            raise TargetError(
                f"labels is {labels.dtype} of shape {tuple(labels.shape)}, expected (batch, images) with 2 images or "
                "more: int64, or soft (batch, images, num_classes)"
            )

    def _check_mask(self, batch: int, size: tuple[int, ...] | None) -> None:
        """TargetError unless the mask is a floating tensor (batch or 1, 1 or K, *size)."""
        given = self._tensor("mask")
        if not given.is_floating_point():
            raise TargetError(
                f"mask has dtype {given.dtype}, expected a floating type with the share of the first image in [0, 1]; "
                "use mask.float()"
            )
        mask, channels = self.mask, self.labels.shape[1] if "labels" in self else 1
        expected = f"({batch} or 1, {channels}, {', '.join(map(str, size)) if size else 'height, width'})"
        fits = mask.dim() in (4, 5) if size is None else tuple(mask.shape[2:]) == tuple(size)
        if mask.dim() < 3 or not fits or mask.shape[1] != channels or mask.shape[0] not in (1, batch):
            raise TargetError(
                f"mask has shape {tuple(given.shape)}, expected {expected}; resize images before mixing, or resize the "
                "mask with them"
            )

    def _tensor(self, name: str) -> Tensor:
        """The item, unchanged. TargetError if it is missing or not a tensor."""
        value = self.get(name)
        if not isinstance(value, Tensor):
            raise TargetError(not_a_tensor(name, value))
        return value

    def _number(self, name: str) -> int | float:
        """The item as one number; collating makes it a tensor of equal numbers. TargetError if they differ."""
        value = self.get(name)
        numbers = set(value.flatten().tolist()) if isinstance(value, Tensor) else {value}
        number = numbers.pop() if len(numbers) == 1 else None
        if not isinstance(number, (int, float)):
            raise TargetError(f"{name} is {value!r}, expected one number for the whole batch")
        return number


class ShareTarget(MixedTarget):
    """A target whose classes are the images of the mixture: its soft targets are the shares of the images.

    It fits a model with any number of classes, while the classes of any other target must be those of the model.

    >>> zero, mask = torch.tensor([0]), torch.full((1, 1, 2, 2), 0.25)
    >>> ShareTarget(first=zero, second=zero + 1, mask=mask, num_classes=2).area()
    tensor([[0.2500, 0.7500]])
    """


def _check_range(mask: Tensor) -> None:
    """TargetError unless every share is in [0, 1], and the shares of K images sum to 1."""
    low, high = (float(bound) for bound in mask.aminmax())
    if not (low >= 0.0 and high <= 1.0):  # also false for NaN
        raise TargetError(
            f"mask holds values from {low:g} to {high:g}, expected shares of the first image in [0, 1]; "
            "divide an 8-bit mask by 255"
        )
    if mask.shape[1] > 1:
        low, high = (float(bound) for bound in mask.sum(1).aminmax())
        if low < 1.0 - 1e-2 or high > 1.0 + 1e-2:  # the rounding error of shares in half precision
            raise TargetError(
                f"the shares of {mask.shape[1]} images sum to {low:g} to {high:g} per pixel, expected 1; divide the "
                "mask by its sum over channels"
            )


def _batched(labels: Tensor, images: int) -> Tensor:
    """Labels int64 (B, …) or float32 (B, …, num_classes) from one sample, a batch or collated batches.

    images: number of axes, 0 or 1, over the K images of a sample.
    """
    own = labels.is_floating_point() + images
    labels = labels.float() if labels.is_floating_point() else labels.long()
    shape = labels.shape[max(labels.dim() - own, 0) :]
    return labels.reshape(-1, *[1] * (own - len(shape)), *shape)
