"""Rename the tensors of a DeiT, Swin or PVT v2 checkpoint for the software that fine-tunes it.

    python examples/convert_checkpoint.py runs/swin_t/model_best.pth.tar swin_t.pth --to mmseg
    python examples/convert_checkpoint.py swin_t.pth model.safetensors --to hf
    python examples/convert_checkpoint.py segmentor.pth swin_t.pth --to timm --drop 'decode_head.*' 'norm[0-3].*'

Layouts:

    timm        timm's models, and the checkpoints of train_imagenet.py
    official    facebookresearch/deit, microsoft/Swin-Transformer, whai362/PVT (v2)
    hf          Hugging Face: ViTForImageClassification, DeiTForImageClassificationWithTeacher (distilled),
                SwinForImageClassification, PvtV2ForImageClassification
    mmseg       backbones of mmsegmentation: VisionTransformer, SwinTransformer
    mmdet       backbones of mmdetection: SwinTransformer, PyramidVisionTransformerV2

The layout of the input is found by its names. Tensors are copied bit for bit; the classifier is left out for backbones,
and everything else must have a place, or nothing is written. Tests compare the outputs of timm and Hugging Face. The
names of the official repositories and of OpenMMLab are taken from their sources, named in examples/checkpoints/*.txt,
but were not loaded into their software, which does not install with current versions of torch.

In a Hugging Face configuration, set layer_norm_eps to that of the model (1e-6 for DeiT and PVT v2, 1e-5 for Swin). In
mmdet, set convert_weights=False, because the names are already its own. PVT v1 is not in timm and not supported.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

import torch
from checkpoints.convert import LAYOUTS, identify, write
from safetensors.torch import save
from torch import Tensor
from weights import read_weights

from tlfx.errors import InputError, TlfxError, named
from tlfx.system.files import check_writable, write_atomically

CONTAINERS = {"official": "model", "mmseg": "state_dict", "mmdet": "state_dict"}
"""The name under which a file of a layout holds the state_dict; those of other layouts are bare."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert a checkpoint, or exit with a message."""
    options = parse(arguments)
    try:
        convert(options)
    except TlfxError as error:
        raise SystemExit(f"convert_checkpoint.py: {error}") from None


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("input", type=Path, help="a checkpoint (.pth, .pt, .bin, .safetensors)")
    add("output", type=Path, help="the file to write; .safetensors is written as such, all others by torch.save")
    add("--to", required=True, choices=LAYOUTS, help="layout of the output")
    add("--from", dest="source", choices=LAYOUTS, help="layout of the input (default: found by its names)")
    add("--prefix", metavar="TEXT", help="prefix of names (default: vit., swin., … for hf, backbone. for Swin in "
        "mmdet, which requires it, none for others)")  # fmt: skip
    add("--drop", nargs="+", default=[], metavar="PATTERN", help="tensors of the input to leave out, such as head.*")
    add("--no-ema", action="store_true", help="take the weights themselves if there is a moving average of them")
    return parser.parse_args(arguments)


def convert(options: Namespace) -> None:
    """Convert a checkpoint. Raises InputError or ModelError; an existing output is then as it was."""
    check_writable(options.output, "output")
    state = read_weights(options.input, use_ema=not options.no_ema, flag="input")
    source = identify(_without(state, options.drop), options.source)
    written, left_out = write(source, options.to, options.prefix)
    write_atomically(options.output, lambda file: save_weights(written, options.output, options.to, file))
    dropped = f"; left out {named(left_out)}" if left_out else ""
    print(f"{options.output}: {source.table.family}, {source.layout} to {options.to}, {len(written)} tensors{dropped}")


def _without(state: Mapping[str, Tensor], patterns: Sequence[str]) -> dict[str, Tensor]:
    """The tensors whose names match no pattern. Raises InputError for a pattern that matches none."""
    if idle := [pattern for pattern in patterns if not any(fnmatchcase(key, pattern) for key in state)]:
        raise InputError(f"--drop {named(idle)}: no tensor of the checkpoint has such a name")
    return {key: value for key, value in state.items() if not any(fnmatchcase(key, p) for p in patterns)}


def save_weights(weights: dict[str, Tensor], file: Path, layout: str, raw: IO[bytes]) -> None:
    """Write a state_dict as the software of its layout reads it."""
    if file.suffix == ".safetensors":
        raw.write(save({key: value.contiguous() for key, value in weights.items()}, metadata={"format": "pt"}))
        return
    container = CONTAINERS.get(layout)
    torch.save(weights if container is None else {container: weights}, raw)


if __name__ == "__main__":
    main()
