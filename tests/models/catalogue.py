"""Every model beyond timm's own classifiers that the alignment is tried on, by source and name."""

from __future__ import annotations

from models import (
    attention_ways,
    huggingface_models,
    mixer_ways,
    token_ways,
    torchvision_models,
    vit_pytorch_models,
)
from models.entry import Entry

__all__ = ["CATALOGUE", "Entry"]

_PACKS = (attention_ways, token_ways, mixer_ways, torchvision_models, huggingface_models, vit_pytorch_models)

CATALOGUE: dict[str, Entry] = {
    f"{entry.source}: {name}": entry for pack in _PACKS for name, entry in pack.ENTRIES.items()
}
