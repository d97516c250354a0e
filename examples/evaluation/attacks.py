"""Adversarial attacks: AutoAttack and its parts from the package of its authors, FGSM and PGD from torchattack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from evaluation.accuracy import pixels
from evaluation.classifier import Classifier
from tlfx.errors import InputError

__all__ = ["ATTACKS", "NORMS", "Robustness", "Threat", "attack", "check", "robustness"]

NORMS = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}
ENSEMBLE = dict.fromkeys(("autoattack", "apgd-ce", "apgd-t", "fab-t", "square"), tuple(NORMS))
ATTACKS = {**ENSEMBLE, "fgsm": ("Linf",), "pgd": ("Linf", "L2")}
"""Norms that can bound each attack."""
TARGETED = ("autoattack", "apgd-t")  # the targeted DLR loss reads four logits
TARGETS = 9  # classes that AutoAttack targets

Attack = Callable[[Tensor, Tensor], Tensor]
"""Maps images (B, C, H, W) in [0, 1] and labels (B,) to adversarial images."""


@dataclass(frozen=True)
class Threat:
    """An attack with perturbations of a norm up to ``eps``, for pixels in [0, 1]; ``steps`` are those of PGD."""

    name: str
    norm: str
    eps: float
    seed: int
    steps: int = 10

    @property
    def about(self) -> dict[str, Any]:
        """The settings of the attack, for the record."""
        return {name: value for name, value in asdict(self).items() if name != "steps" or self.name == "pgd"}


@dataclass(frozen=True)
class Robustness:
    """Percent of the images that are classified correctly with and without attack; norm of the largest perturbation."""

    images: int
    top1: float
    perturbation: float


def check(threat: Threat, classes: int) -> None:
    """Raise InputError for an attack whose package is missing, or that does not support its norm or so few classes."""
    norms = ATTACKS[threat.name]
    if threat.norm not in norms:
        raise InputError(f"--attack {threat.name} does not support --norm {threat.norm}; expected {' or '.join(norms)}")
    least, advice = (4, "; use apgd-ce, square or pgd") if threat.name in TARGETED else (2, "")
    if classes < least:
        raise InputError(f"--attack {threat.name} needs at least {least} classes, but there are {classes}{advice}")
    package = "pyautoattack" if threat.name in ENSEMBLE else "torchattack"
    try:
        import_module(package)
    except ImportError as error:
        raise InputError(f"--attack {threat.name} needs a package: pip install {package} ({error})") from error


def attack(threat: Threat, classifier: Classifier, classes: int, device: torch.device) -> Attack:
    """The attack on a classifier of so many classes. Step size of PGD: 2.5 eps / steps, as its authors take it."""
    if threat.name in ENSEMBLE:
        return _ensemble(threat, classifier, classes, device)
    from torchattack import FGSM, PGD, PGDL2

    if threat.name == "fgsm":
        return FGSM(classifier, device=device, eps=threat.eps)
    kind: Any = PGD if threat.norm == "Linf" else PGDL2
    step = 2.5 * threat.eps / threat.steps
    made: Attack = kind(classifier, device=device, eps=threat.eps, steps=threat.steps, alpha=step)
    return made


def _ensemble(threat: Threat, classifier: Classifier, classes: int, device: torch.device) -> Attack:
    """AutoAttack's standard version, or one of its parts with the same settings."""
    from pyautoattack import AutoAttack  # type: ignore[import-untyped]

    made = AutoAttack(classifier, norm=threat.norm, eps=threat.eps, seed=threat.seed, device=device)
    if threat.name != "autoattack":
        made.attacks_to_run = [threat.name]
    for part in (made.apgd_targeted, made.fab):
        part.n_target_classes = min(part.n_target_classes, TARGETS, classes - 1)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        attacked: tuple[Tensor, Tensor] = made.run_standard_evaluation(images, labels, batch_size=len(images))
        return attacked[0]  # attacked[1] holds the predicted classes

    return run


def robustness(
    made: Attack,
    threat: Threat,
    classifier: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
) -> Robustness:
    """Accuracy under an attack, over batches of images uint8 (B, C, H, W) and labels (B,).

    An image counts as correct if it is so both with and without the attack, because an attack may leave it unchanged.
    Raises RuntimeError if the attack exceeds its bound.
    """
    torch.manual_seed(threat.seed)  # the starting point of PGD is random
    images, right, largest = 0, 0, 0.0
    for batch, targets in batches:
        clean, labels = pixels(batch, device), targets.to(device)
        changed = made(clean, labels).detach()
        right += int((_right(classifier, clean, labels) & _right(classifier, changed, labels)).sum())
        images += len(labels)
        largest = max(largest, _bounded(changed, clean, threat))
    return Robustness(images, 100.0 * right / images, largest)


@torch.no_grad()
def _right(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    correct: Tensor = classifier(images).argmax(1) == labels
    return correct


def _bounded(changed: Tensor, clean: Tensor, threat: Threat) -> float:
    """Norm of the largest perturbation. Raises RuntimeError if it, or a pixel, exceeds its bounds beyond rounding."""
    sizes = torch.linalg.vector_norm((changed - clean).flatten(1), NORMS[threat.norm], dim=1)
    largest = float(sizes.max())
    low, high = float(changed.min()), float(changed.max())
    if largest > threat.eps * (1 + 1e-4) + 1e-6 or low < -1e-6 or high > 1 + 1e-6:
        raise RuntimeError(
            f"{threat.name} made perturbations of {threat.norm} norm {largest:.6f} and pixels {low:.6f} to {high:.6f}; "
            f"expected at most {threat.eps:.6f}, and pixels in [0, 1]"
        )
    return largest
