"""A random choice between mixers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tlfx.errors import InputError
from tlfx.mix.draws import Draws
from tlfx.mix.mixer import Mixer
from tlfx.mix.target import MixedTarget

__all__ = ["RandomChoice"]


class RandomChoice:
    """Each batch is mixed by one of several mixers, as `torchvision.transforms.v2.RandomChoice` applies transforms.

    mixers: one or more mixers.
    p: weight of each mixer, normalised to probabilities; equal weights if None.
    generator: the `torch.Generator` of the choice; None for torch's default one.
    `mixup_enabled` switches mixing on or off in all mixers.

    InputError for no mixers, or if p is not a valid list of weights.

    >>> from tlfx.mix import CutMix, MixUp
    >>> mix = RandomChoice([CutMix(num_classes=2), MixUp(num_classes=2, alpha=0.8)], p=[2, 1])
    >>> images, target = mix(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 1, 0]))
    >>> target.area().shape
    torch.Size([4, 2])
    """

    def __init__(
        self, mixers: Sequence[Mixer], p: Sequence[float] | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        p = [1.0] * len(mixers) if p is None else p
        if not mixers:
            raise InputError("mixers is empty, expected one mixer or more, such as [CutMix(...), MixUp(...)]")
        if len(p) != len(mixers):
            raise InputError(f"{len(mixers)} mixers and {len(p)} probabilities were given, expected one for each mixer")
        if min(p) < 0.0 or not 0.0 < sum(p) < float("inf"):
            raise InputError(f"p is {list(p)}, expected weights of at least 0 with a positive sum, such as [0.5, 0.5]")
        self.mixers = list(mixers)
        self.p = list(p)
        self.draws = Draws(generator)

    def __call__(self, images: Any, labels: Any = None) -> tuple[Tensor, MixedTarget]:
        """Mix a batch; see `Mixer`."""
        self.draws.check_worker()
        chosen = int(self.draws.choice(torch.tensor([self.p], dtype=torch.float64), 1))
        return self.mixers[chosen](images, labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.mixers}, p={self.p})"

    @property
    def mixup_enabled(self) -> bool:
        """Whether any of the mixers mixes."""
        return any(mixer.mixup_enabled for mixer in self.mixers)

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        for mixer in self.mixers:
            mixer.mixup_enabled = enabled
