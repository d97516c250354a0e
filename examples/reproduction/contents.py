"""All equations, tables and figures of the paper: what each is, the command that makes it, and the file of its test."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CONTENTS", "Item"]


class Item(NamedTuple):
    """One equation, table or figure. The command is run in the root of the project."""

    name: str
    what: str
    command: str
    test: str


PAPER = "python examples/paper.py"
EQUATIONS = "tests/test_equations.py"
WEIGHTS = "--weights WEIGHTS"
"""A folder of trained models; Tables 3 and 4 have no small version."""


def _equation(number: int, what: str) -> Item:
    """The command compares tlfx with the slow twin of the equation, tests/twins/eq_NN.py."""
    return Item(f"eq. {number}", what, f"{PAPER} equation {number}", EQUATIONS)


def _table(number: int, what: str, test: str = "tests/examples/test_paper.py", flags: str = "--data digits") -> Item:
    return Item(f"Table {number}", what, f"{PAPER} table {number} {flags}".rstrip(), test)


def _figure(number: int, what: str, test: str = "tests/examples/test_paper.py") -> Item:
    return Item(f"figure {number}", what, f"{PAPER} figure {number}", test)


CONTENTS = (
    _equation(1, "CutMix: mixed image and mixed label"),
    _equation(2, "contribution and presence of a token in one spatial operation"),
    _equation(3, "presence 1 inside of a depth-wise convolution"),
    _equation(4, "tokens of the input: patches, class token, position embedding"),
    _equation(5, "initial labels of the tokens"),
    _equation(6, "self-attention"),
    _equation(7, "labels mixed by the same matrix"),
    _equation(8, "multi-head self-attention"),
    _equation(9, "TL-Align-S: labels mixed by the mean over heads"),
    _equation(10, "transformer block"),
    _equation(11, "labels of a transformer block, normalised after residual connections"),
    _equation(12, "loss against the aligned label, without its gradient"),
    _equation(13, "mixing ratio by similarity"),
    _table(1, "ImageNet accuracy of eight models"),
    _table(2, "training strategies on DeiT-S: parameters, speed, accuracy"),
    _table(
        3,
        "semantic segmentation, ADE20K",
        "tests/examples/test_segment.py",
        f"--data-dir ADEChallengeData2016 {WEIGHTS}",
    ),
    _table(4, "object detection, COCO", "tests/examples/test_detect.py", f"--data-dir coco {WEIGHTS}"),
    _table(5, "transfer to CIFAR, Flowers and Cars", "tests/examples/test_paper_on_digits.py"),
    _table(6, "generalisation and robustness", "tests/examples/test_paper_on_digits.py"),
    _table(7, "mixing strategies, with and without alignment"),
    _table(8, "alignment of some layers, and without normalisation"),
    _table(9, "training recipes of DeiT-S"),
    _table(10, "label alignment of each operation", flags=""),
    _figure(1, "CutMix targets and aligned targets", "tests/commands/test_show.py"),
    _figure(2, "tokens and labels, layer by layer", "tests/test_how_it_works.py"),
    _figure(3, "RMSE between CutMix targets and aligned labels", "tests/commands/test_fluctuation.py"),
    _figure(4, "λ of the class token by layer", "tests/commands/test_fluctuation.py"),
    _figure(5, "label embeddings of DeiT-S and Swin-S"),
    _figure(6, "the similarities of a mixed token"),
    _figure(7, "images mixed by CutMix, random and block-wise mixing"),
    _figure(8, "label embeddings of more pairs"),
)
