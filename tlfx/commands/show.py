"""Draw the label map of a mixed image: inputs, mixture, initial label map, and the aligned label maps of layers.

Red is the first image, blue the second, white half of each. The model has random weights unless --weights is given.
Without images, two photos from scikit-image are mixed.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tlfx.commands import arguments, output
from tlfx.errors import InputError
from tlfx.zoo.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table
    from torch import Tensor

    from tlfx.analysis.probe import Probe, Reading

__all__ = ["add_arguments", "run"]

DEFAULT_PHOTOS = ("astronaut", "chelsea")
SHOWN = 6
"""Number of blocks that are drawn by default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tlfx show``."""
    arguments.add_model(parser)
    parser.add_argument(
        "images", metavar="IMAGE", nargs="*", default=[], help="two image files; default: two photos from scikit-image"
    )
    parser.add_argument(
        "--at",
        metavar="MODULE",
        action="append",
        help="modules to draw, such as blocks.6 or 'blocks.*'; may be repeated",
    )
    parser.add_argument("--every-block", action="store_true", help="draw all blocks; default: six of them")
    parser.add_argument("--mixer", metavar="NAME", default="cutmix", help="cutmix (default), mixup, blocks or patches")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and mixing; default: 0")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="labels.png",
        help="PNG, PDF, SVG, or GIF with a frame for each layer; default: labels.png",
    )
    parser.add_argument("--small", action="store_true", help="write a PNG with 256 colours, a third of the size")
    parser.add_argument(
        "--npz", metavar="FILE", help="also write the label maps, by layer, and the mask of the mixture as NumPy arrays"
    )
    arguments.add_weights(parser)
    output.add_color(parser)
    _intermix(parser)


def _intermix(parser: argparse.ArgumentParser) -> None:
    """Accept images after options too; argparse by default ends the list of images at the first option."""
    plain = parser.parse_known_args

    def parse(args: Any = None, namespace: Any = None) -> Any:
        parser.parse_known_args = plain  # type: ignore[method-assign]
        return parser.parse_known_intermixed_args(args, namespace)

    parser.parse_known_args = parse  # type: ignore[method-assign]


def run(args: argparse.Namespace) -> int:
    """Write the picture and print λ by layer; exit status 0."""
    import torch

    from tlfx.analysis.pairs import check_mixer, mixed
    from tlfx.analysis.photos import normalised
    from tlfx.analysis.pictures import write_label_maps
    from tlfx.analysis.plotting import ANIMATION, FORMATS, check_file
    from tlfx.analysis.probe import Probe

    if args.at and args.every_block:
        raise InputError("--at and --every-block were both given: use only one of them")
    if len(args.weights) > 1:
        raise InputError(f"--weights was given {len(args.weights)} times, expected once")
    check_mixer(args.mixer)
    check_file(args.output, "--output", (*FORMATS, ANIMATION))
    if args.npz:
        check_file(args.npz, "--npz", (".npz",))
    torch.manual_seed(args.seed)
    model, example = arguments.model_from(args)
    first, second = _photos(args.images, example)
    for file in args.weights:
        load_weights(model, file)
    with output.progress(f"capturing {args.model}"):
        probe = Probe(model, tuple(example.shape[1:]), args.at, attention=False)
    pair = mixed(first, second, args.mixer, args.seed, patch=_patch(probe, example))
    readings, arrival = probe(normalised(pair.mixed, model), pair.mask)
    chosen = readings if args.at or args.every_block else _spread(readings)
    area, share = float(pair.area[0]), float(arrival.label[0, 0])
    write_label_maps(args.output, args.model, pair, chosen, share, args.small)
    console = output.console(args)
    console.print(_table(args.model, chosen, area, share))
    output.wrote(args.output)
    if args.npz:
        _write_maps(readings if args.at is None else chosen, pair.mask, args.npz)
        output.wrote(args.npz)
    return 0


def _write_maps(readings: Sequence[Reading], mask: Tensor, file: str) -> None:
    """Write shares of the first image: "mask" (height, width), and an array (rows, columns) for each layer."""
    import numpy as np

    from tlfx.system.files import write_atomically

    maps: dict[str, Any] = {reading.layer.path: reading.map[0, ..., 0].numpy() for reading in readings}
    write_atomically(file, lambda raw: np.savez(raw, mask=mask[0, 0].numpy(), **maps))


def _photos(files: Sequence[str], example: Tensor) -> tuple[Tensor, Tensor]:
    """The two images (3, height, width) at the model's size."""
    from tlfx.analysis.photos import fitted, open_photo, shipped_photo

    size = tuple(example.shape[1:])
    if len(size) != 3 or size[0] != 3:
        raise InputError(
            f"the model takes inputs of {'x'.join(map(str, size))}, expected images of three channels, 3xHxW"
        )
    if len(files) not in (0, 2):
        given = f"{len(files)} image{'s were' if len(files) > 1 else ' was'} given"
        raise InputError(f"{given}, expected two, or none for photos from scikit-image")
    photos = [open_photo(f) for f in files] if files else [shipped_photo(n) for n in DEFAULT_PHOTOS]
    first, second = (fitted(photo, size[1:]) for photo in photos)
    return first, second


def _patch(probe: Probe, example: Tensor) -> int:
    """Side of a token of the first layer, in pixels."""
    return max(1, int(example.shape[-2]) // probe.layers[0].size[0])


def _spread(readings: list[Reading]) -> list[Reading]:
    """The first, the last, and evenly spaced readings between them."""
    count = min(SHOWN, len(readings))
    return [readings[round(i * (len(readings) - 1) / max(1, count - 1))] for i in range(count)]


def _table(name: str, readings: Sequence[Reading], area: float, share: float) -> Table:
    from rich import box
    from rich.table import Table

    caption = f"λ by area {area:.3f}, λ that reaches the output {share:.3f}"
    table = Table(title=name, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("layer")
    for name in ("tokens", "λ read here", "least", "most"):
        table.add_column(name, justify="right")
    for reading in readings:
        low, high = reading.map[0].aminmax()
        height, width = reading.layer.size
        figures = (float(reading.share[0, 0]), float(low), float(high))
        table.add_row(reading.layer.path, f"{height}×{width}", *(f"{x:.3f}" for x in figures))
    return table
