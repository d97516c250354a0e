"""What a model computes on the way, taken by forward hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def outputs_of(model: Any, images: Tensor, modules: Iterable[nn.Module]) -> dict[nn.Module, Tensor]:
    """Run ``model`` once and return what each of ``modules`` gave out."""
    seen: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        seen[module] = output.clone()

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen
