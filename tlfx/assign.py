"""The training target of a mixed batch by one of three methods: area, TransMix, or TL-Align."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from tlfx._torch import tree_map
from tlfx.aligned import align
from tlfx.errors import InputError, TargetError, a_type
from tlfx.mix.labels import check_labels, hard_or_soft
from tlfx.mix.target import MixedTarget

__all__ = ["METHODS", "TargetAssigner"]

M = TypeVar("M", bound=nn.Module)
METHODS = ("plain", "transmix", "aligned")
AGREEMENT = "agreement"
"""The option of blend that weights each target by its similarity to that of the area."""


@dataclass(frozen=True)
class TargetAssigner:
    """Computes the outputs of a mixed batch and their soft targets by a method that one option selects.

    | method     | target                                                                                   |
    |------------|------------------------------------------------------------------------------------------|
    | "plain"    | labels weighted by the area of each image, as in CutMix and MixUp                        |
    | "transmix" | average of the area and the last attention of the class token (arXiv 2111.09833)         |
    | "aligned"  | the labels that reach the output through all layers (TL-Align, arXiv 2210.06455)         |

    TransMix is `tlfx.align(model, layers=[-1])`: labels stay in place up to the last attention. Its residual averages
    the label of the class token (the area) with the labels that the class token attends to, as the authors' code does.
    Two details differ from that code: the class token also attends to itself, with the area as its label, and a patch
    that holds both images counts for both in proportion. A model without a class token gets the average over its
    tokens.

    Attributes:
        method: one of the above.
        blend: the share α of the method's target, α·T + (1 − α)·T_area, since attention is unreliable early in training
            (progressive attention labels of MixPro, arXiv 2304.12043). A number from 0 to 1; a function without
            arguments that returns one, a schedule, which is called for each batch; or "agreement", the cosine
            similarity of T and T_area, for each image and position.

    InputError for an unknown method or a share that is not from 0 to 1, and at the first call for "transmix" with a
    model without attention.

    >>> import torch
    >>> from tlfx.mix import CutMix
    >>> model = nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images, target = CutMix(num_classes=2)(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0]))
    >>> for method in ("plain", "aligned"):
    ...     assign = TargetAssigner(method)
    ...     model = assign.prepare(model)  # before DistributedDataParallel, torch.compile or an optimiser
    ...     logits, soft_target = assign(model, images, target)
    ...     print(method, soft_target.shape)
    plain torch.Size([4, 2])
    aligned torch.Size([4, 2])
    >>> half = TargetAssigner("aligned", blend=0.5)(model, images, target)[1]
    >>> torch.allclose(half, (soft_target + target.area()) / 2)
    True
    """

    method: Literal["plain", "transmix", "aligned"] = "aligned"
    blend: float | Callable[[], float] | Literal["agreement"] = 1.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}, expected one of {', '.join(map(repr, METHODS))}")
        if not callable(self.blend) and self.blend != AGREEMENT:
            _check_share(self.blend)

    def prepare(self, model: M) -> M:
        """The model, aligned in place if the method asks for it."""
        if self.method == "plain":
            return model
        return align(model, layers=[-1] if self.method == "transmix" else None)

    def __call__(self, model: nn.Module, images: Any, target: Any, **arguments: Any) -> tuple[Any, Any]:
        """The output of the model and its soft target, float32 (B, num_classes).

        The target is a `MixedTarget`, int64 labels (B,) or soft labels (B, num_classes). Several outputs get targets in
        the same structure. With "plain", the target is (B, num_classes) for dense outputs too. TargetError for a target
        that does not fit the images or classes.
        """
        if self.method != "plain":
            output, soft = model(images, target=target, **arguments)
            return output, self._blended(soft, target)
        if isinstance(target, MixedTarget):
            target.check(len(images), values=not images.is_cuda)
        output = model(images, **arguments)
        return output, tree_map(lambda leaf: _plain(leaf, target), output)

    def _blended(self, targets: Any, target: Any) -> Any:
        """Targets of all outputs, blended with that of the area; those of unmixed labels are equal to it."""
        share = self.blend() if callable(self.blend) else self.blend
        if share != AGREEMENT:
            _check_share(share)
        if share == 1 or not isinstance(target, MixedTarget):
            return targets
        area = target.area()
        return tree_map(lambda soft: None if soft is None else _blend(soft, area, share), targets)


def _check_share(share: Any) -> None:
    """Raise InputError for anything but a number from 0 to 1."""
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise InputError(
            f"blend is {share!r}, expected a share from 0 to 1, a function that returns one, or {AGREEMENT!r}"
        )


def _blend(soft: Tensor, area: Tensor, share: float | Literal["agreement"]) -> Tensor:
    """The target of one output, (B,), (B, classes), (B, tokens, classes) or (B, classes, …), and area (B, classes)."""
    area = area.to(soft.device)
    if soft.dim() == 1:  # one logit for each image
        return _blend(soft[:, None], area, share)[:, 0]
    axis = 2 if soft.dim() == 3 else 1
    if soft.shape[0] != area.shape[0] or soft.shape[axis] != area.shape[1]:
        raise TargetError(
            f"the target of an output, {tuple(soft.shape)}, cannot be blended with that of the area, "
            f"{tuple(area.shape)}: expected {len(area)} rows and {area.shape[1]} classes; use blend=1"
        )
    area = area[:, None] if axis == 2 else area.view(*area.shape, *[1] * (soft.dim() - 2))
    weight = F.cosine_similarity(soft, area, dim=axis).unsqueeze(axis) if isinstance(share, str) else share
    return weight * soft + (1 - weight) * area


def _plain(output: Any, target: Any) -> Tensor | None:
    """The target of one output; None for an output other than floating logits (B, …)."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 2:
        return None
    if isinstance(target, MixedTarget):
        return target.area()
    if not isinstance(target, Tensor) or len(target) != len(output):
        given = f"{len(target)} labels" if isinstance(target, Tensor) else a_type(target)
        raise TargetError(f"the target is {given}, expected a tlfx.MixedTarget or labels of {len(output)} images")
    classes = target.shape[-1] if target.is_floating_point() else output.shape[-1 if output.dim() == 3 else 1]
    check_labels(target, classes, values=not target.is_cuda)
    return hard_or_soft(target, classes)
