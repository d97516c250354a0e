"""The mixer of a run, from the flags of timm or from a method of the paper's Table 2."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import timm
from torch import nn
from trainer import Mixing

from imagenet.model import load_weights
from tlfx.errors import InputError
from tlfx.mix import AttentiveCutMix, BlockMix, Mixup, PuzzleMix, RandomPatchMix, SaliencyMix
from tlfx.mix.puzzle import gradient_saliency

__all__ = ["METHODS", "PATCHWISE", "choose_method", "make_mixer", "mixes"]

TARGETS: dict[str, list[str] | None] = {"transmix": ["-1"], "aligned": None}
"""Methods with alignment, and the layers that they align; None for all."""


def _saliency(model: nn.Module, options: Namespace, arguments: dict[str, Any]) -> Mixing:
    return SaliencyMix(alpha=options.cutmix or 1.0, **arguments)


def _puzzle(model: nn.Module, options: Namespace, arguments: dict[str, Any]) -> Mixing:
    return PuzzleMix(gradient_saliency(model), alpha=options.cutmix or 1.0, **arguments)


def _attentive(model: nn.Module, options: Namespace, arguments: dict[str, Any]) -> Mixing:
    network = _attention_network(options).to(next(model.parameters()).device)
    features: Any = network.forward_features
    return AttentiveCutMix(features, patches=options.attention_patches, **{**arguments, "mode": "elem"})


MIXERS = {"saliencymix": _saliency, "attentive": _attentive, "puzzlemix": _puzzle}
METHODS = ("plain", *MIXERS, *TARGETS)
PATCHWISE: dict[str, Any] = {"patches": RandomPatchMix, "blocks": BlockMix}
"""Mixers of `--patch-mixer`: the random and the block-wise one of the paper's Table 7."""


def choose_method(options: Namespace) -> None:
    """Set the options that `--method` implies; it takes precedence over --align and --align-layers."""
    if options.method is not None:
        options.align = options.method in TARGETS
        options.align_layers = TARGETS.get(options.method) or (options.align_layers if options.align else None)


def mixes(options: Namespace) -> bool:
    """Whether images are mixed."""
    timms = options.mixup > 0 or options.cutmix > 0 or options.cutmix_minmax is not None
    return timms or options.patch_mixer is not None or options.method in MIXERS


def make_mixer(model: nn.Module, options: Namespace) -> Mixing | None:
    """The mixer of the options, or None; Puzzle Mix computes saliency with the model in training."""
    if not mixes(options):
        return None
    arguments = {
        "prob": options.mixup_prob,
        "mode": options.mixup_mode,
        "label_smoothing": options.smoothing,
        "num_classes": options.num_classes,
    }
    if options.method in MIXERS:
        return MIXERS[options.method](model, options, arguments)
    if options.patch_mixer is not None:
        return PATCHWISE[options.patch_mixer](patch_size=options.mix_patch_size, **arguments)  # type: ignore[no-any-return]
    return Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        cutmix_minmax=options.cutmix_minmax,
        switch_prob=options.mixup_switch_prob,
        **arguments,
    )


def _attention_network(options: Namespace) -> nn.Module:
    """The attention network of Attentive CutMix, in evaluation mode. Raises InputError if timm cannot create it."""
    name, file = options.attention_model, options.attention_checkpoint
    try:
        network: nn.Module = timm.create_model(name, pretrained=file is None)
    except Exception as error:  # of timm, or of its download
        raise InputError(
            f"--attention-model: timm cannot create {name} with its published weights: {error}; pass a file of weights "
            "as --attention-checkpoint"
        ) from error
    if file is not None:
        load_weights(network, Path(file), reset_classifier=True, flag="--attention-checkpoint")
    return network.eval().requires_grad_(False)
