"""Compare aligned labels of a trained model with the influence of each image on its output, for several label policies.

Images of a folder with one folder for each class are mixed in pairs by CutMix, λ ~ Beta(1, 1). For each pair, the share
of the first image by area and by each policy is compared with five references: eq. 13 of the TL-Align paper, similarity
of features, exchange of a region for the other image's pixels, occlusion, and |gradient × input|. The model needs
trained weights; help(tlfx.analysis.fidelity) defines what is measured. The accuracy on the unmixed images shows whether
weights, classes and preprocessing fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tlfx.commands import arguments, output
from tlfx.errors import InputError
from tlfx.zoo.weights import load_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlfx.analysis import Fidelity
    from tlfx.analysis.class_images import ClassImages

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tlfx fidelity``."""
    arguments.add_model(parser)
    arguments.add_weights(parser)
    add = parser.add_argument
    add(
        "--images", metavar="FOLDER", type=Path, required=True, help="a folder with one folder of images for each class"
    )
    add("--classes", metavar="FILE", type=Path,
        help="names of all classes in the order of the logits, one a line; default: the folders, sorted")  # fmt: skip
    add("--policies", metavar="FIELD=VALUE[,…]", nargs="+",
        help="label policies to compare with the paper's, such as residual=norm,values=deviation; default: every "
        "policy that changes one rule, and two that weight everything by values")  # fmt: skip
    add("--count", metavar="N", type=int, default=1000, help="images to use, chosen at random; default: 1000")
    add("--batch", metavar="N", type=int, help="images in a batch, an even number; default: 50, or --count")
    add("--seed", type=int, default=0, help="seed of the choice of images and of the mixing; default: 0")
    add("--device", default="auto", help="cpu, cuda, mps, or auto (default): a GPU if there is one")
    add("--csv", metavar="FILE", help="write the figures, a line for each reference and policy")
    output.add_color(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table for each reference; exit status 0."""
    from tlfx.analysis.plotting import check_file, write

    if args.batch is None:
        args.batch = max(2, min(50, args.count - args.count % 2))
    if args.batch < 2 or args.batch % 2 or args.count < args.batch:
        raise InputError(
            f"--batch {args.batch} --count {args.count}: expected an even batch, because images are mixed in pairs, "
            "and at least as many images"
        )
    if not (args.weights or args.pretrained):
        raise InputError("contributions in an untrained model are arbitrary: pass --weights FILE or --pretrained")
    if args.csv:
        check_file(args.csv, "--csv", (".csv",))
    console = output.console(args)
    study, right = _measure(args)
    console.print(f"{args.model}: {100 * right:.1f} % of the unmixed images right", highlight=False)
    console.print(study)
    if args.csv:
        write(study.csv(), args.csv)
        output.wrote(args.csv)
    return 0


def _measure(args: argparse.Namespace) -> tuple[Fidelity, float]:
    """Fidelity of the policies, and the accuracy on the unmixed images."""
    import numpy as np

    from tlfx.analysis import fidelity
    from tlfx.analysis.class_images import ClassImages
    from tlfx.analysis.label_fidelity import POLICIES
    from tlfx.policy import DEFAULT, parse_policy
    from tlfx.system.devices import choose_device

    policies = [DEFAULT, *(POLICIES if args.policies is None else map(parse_policy, args.policies))]
    device = choose_device(args.device)
    model, example = arguments.model_from(args)
    for file in args.weights:
        load_weights(model, file)
    if example.dim() != 4 or example.shape[1] != 3:
        size = "x".join(map(str, example.shape[1:]))
        raise InputError(f"{args.model} takes inputs of {size}, expected images of three channels, 3xHxW")
    classes = _classes(args, model.eval(), example)
    height, width = example.shape[2:]
    images = ClassImages(args.images, classes, model, (height, width), args.batch, args.count, args.seed)
    scored = _Scored(images, model.to(device))
    np.random.seed(args.seed)  # the mixer draws from numpy
    study = fidelity(model, scored, policies=policies)
    return study, scored.right / (len(images) * args.batch)


def _classes(args: argparse.Namespace, model: nn.Module, example: Tensor) -> list[str]:
    """Names of the classes in the order of the logits. Raises InputError unless there is one for each logit."""
    import torch

    from tlfx.analysis.class_images import class_folders

    source = args.classes or args.images
    try:
        names = args.classes.read_text().splitlines() if args.classes else class_folders(args.images)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--classes {args.classes} cannot be read: {error}") from error
    if len(set(names)) < len(names) or "" in names:
        raise InputError(f"--classes {args.classes}: expected the name of a different class in each line")
    with torch.no_grad():
        logits = model(example)
    count = logits.shape[-1] if isinstance(logits, torch.Tensor) else len(names)  # other outputs are refused later
    if count != len(names):
        raise InputError(
            f"{args.model} has {count} logits, but {source} names {len(names)} classes: pass --classes FILE with one "
            "name for each logit, or the number of classes as --kwargs '{\"num_classes\": …}'"
        )
    return names


class _Scored:
    """The batches of a loader, counting images that the model classifies right."""

    def __init__(self, images: ClassImages, model: nn.Module) -> None:
        self.images, self.model, self.right = images, model, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        for images, labels in self.images:
            with torch.no_grad():
                predicted = self.model(images.to(device)).argmax(-1).cpu()
            self.right += int((predicted == labels).sum())
            yield images, labels
