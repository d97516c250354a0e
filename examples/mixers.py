"""The mixers of the examples by name, with the settings of their papers, for pictures of 7×7 patches of 4×4 pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from architectures import build
from data import NUM_CLASSES, load_digits
from torch import Tensor, nn
from trainer import Mixing
from training import SIZE, DigitTrainer, Recipe

from tlfx import mix
from tlfx.mix.puzzle import gradient_saliency

__all__ = ["MIXERS", "NETWORKS"]

Builder = Callable[[nn.Module, Recipe], Mixing]


def _timm(mixup_alpha: float, cutmix_alpha: float) -> Builder:
    """The mixer of timm: λ ~ Beta(α, α) for each kind with α > 0; of two kinds, each mixes half of the batches."""

    def make(model: nn.Module, recipe: Recipe) -> Mixing:
        return mix.Mixup(mixup_alpha, cutmix_alpha, prob=recipe.mix_prob, label_smoothing=0.0, num_classes=NUM_CLASSES)

    return make


def _mixer(kind: Callable[..., Mixing], **arguments: Any) -> Builder:
    """A mixer that does not use a network."""
    return lambda model, recipe: kind(prob=recipe.mix_prob, num_classes=NUM_CLASSES, **arguments)


def _attentive(model: nn.Module, recipe: Recipe) -> Mixing:
    """The attention is the mean absolute feature of a small ConvNeXt that is first trained on unmixed digits."""
    digits, _ = load_digits(recipe.train, recipe.test, size=SIZE)
    [name] = NETWORKS["attentive"]
    network = build(name, recipe.seed).to(recipe.device)
    unmixed = replace(recipe, mix_prob=0.0)
    for _ in DigitTrainer(network, unmixed, MIXERS["cutmix"](network, unmixed)).train(digits):
        pass
    patchwise = nn.Sequential(*list(network.eval().children())[:3])  # up to the last stage of 7×7 positions

    def attention(images: Tensor) -> Tensor:
        features: Tensor = patchwise(images)
        return features.abs()

    return mix.AttentiveCutMix(attention, patches=6, prob=recipe.mix_prob, num_classes=NUM_CLASSES)


def _puzzle(model: nn.Module, recipe: Recipe) -> Mixing:
    """The saliency is that of the network in training."""
    saliency = gradient_saliency(model)
    return mix.PuzzleMix(saliency, blocks=7, prob=recipe.mix_prob, num_classes=NUM_CLASSES)


MIXERS: dict[str, Builder] = {
    "none": lambda model, recipe: _timm(0.0, 1.0)(model, replace(recipe, mix_prob=0.0)),
    "cutmix": _timm(0.0, 1.0),
    "mixup": _timm(0.8, 0.0),
    "switch": _timm(0.8, 1.0),
    "patches": _mixer(mix.RandomPatchMix, patch_size=4),
    "blocks": _mixer(mix.BlockMix, patch_size=4, min_block=4),
    "grid": _mixer(mix.GridMix, images=4, grid=7),
    "resizemix": _mixer(mix.ResizeMix),
    "saliencymix": _mixer(mix.SaliencyMix),
    "attentive": _attentive,
    "puzzlemix": _puzzle,
}
"""By their name in a `Method`. `switch` is that of DeiT, `blocks` that of BEiT, `grid` mixes four."""
NETWORKS = {"attentive": ("convnext",)}
"""Architectures of the networks that a mixer has in addition to the model in training."""
