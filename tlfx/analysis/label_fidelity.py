"""Fidelity of aligned labels: how truly each label policy tells what a model takes from the images of a mixture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from tlfx.aligned import Aligned, align, planner_of
from tlfx.analysis.classifier import Classifier
from tlfx.analysis.fidelity_table import AREA, Fidelity
from tlfx.analysis.invariants import share
from tlfx.analysis.reference import Mixture, references
from tlfx.capture.arguments import Call
from tlfx.errors import InputError, TargetError
from tlfx.mix import MixedTarget, Mixup
from tlfx.mix.target import check_labels
from tlfx.plans import Capture
from tlfx.policy import DEFAULT, OPTIONS, Policy, check_policy

__all__ = ["POLICIES", "fidelity", "policy_name"]

POLICIES = (DEFAULT, *(Policy(**{name: other}) for name, known in OPTIONS.items() for other in known[1:]))
"""The paper's rules, then each alternative to one of them."""

Mix = Callable[[Tensor, Tensor], tuple[Tensor, MixedTarget]]


def fidelity(
    model: nn.Module,
    loader: Iterable[Sequence[Tensor]],
    *,
    policies: Sequence[Policy] = POLICIES,
    mixer: Mix | None = None,
    classifier: str | None = None,
) -> Fidelity:
    """Hold the aligned share of the first image at the classifier against what the model truly takes from each image.

    The model is in evaluation for the time of the call and left as it was, parameters, gradients and modes. References
    do not depend on label rules, so that the loader is gone through once: each batch is mixed once, for all policies.
    Pairs of one class, and mixtures that hold all of one image, tell nothing and are left out.

    The references, and agreement with them: :func:`tlfx.analysis.reference.references`,
    :class:`tlfx.analysis.agreement.Agreement`. The first are eq. 13 of the paper and causal measures.

    Args:
        model: any module that gives logits (batch, classes), aligned or not; an aligned one keeps its own options but
            for the policy. Train it first: what an untrained model takes from its images is accidental.
        loader: pairs of images, floating (batch, channels, height, width) with an even batch, and int64 labels
            (batch,), as a ``DataLoader`` of unmixed test images gives them. Other items of a batch are ignored.
        policies: label rules to compare; by default the paper's and each alternative to one of them.
        mixer: mixes images and labels, image i with B − 1 − i; by default :class:`tlfx.mix.Mixup` as CutMix with
            λ ~ Beta(1, 1) for each image, which draws from numpy's global generator: seed it for the same mixtures.
        classifier: path of the module whose input is compared in eq. 13; by default the last module to run that holds
            a weight matrix.

    Raises:
        InputError: the loader gives other than floating images and labels, or no pair of two classes; the model gives
            no logits; ``policies`` are none; the mixer pairs images in another way; ``classifier`` is unknown.
        TargetError: labels are soft, or beyond the classes of the model.
        CaptureError, UnknownOperatorError: as :func:`tlfx.align`.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3, bias=False))
    >>> model[2].weight.data = torch.eye(3)
    >>> colours = torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8)
    >>> labels = torch.tensor([0, 1, 2, 2, 0, 1])
    >>> found = fidelity(model, [(colours[labels], labels)], policies=[Policy()])
    >>> [(row.reference, round(row.agreement.rmse, 4)) for row in found.rows if row.rule == "paper"]
    [('similarity', 0.0), ('exchange', 0.0), ('occlusion', 0.0), ('gradient', 0.0)]
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"fidelity takes a torch.nn.Module, got {type(model).__name__}")
    rules = {policy_name(p): p for p in _checked(policies)}
    shares: list[dict[str, Tensor]] = []
    measured: list[dict[str, Tensor]] = []
    with _evaluating(model):
        aligned, reader = _aligned(model, rules), None
        for batch in loader:
            images, labels = _read(batch, model)
            reader = reader or Classifier(model, images, classifier)
            check_labels(labels, reader.classes, name="labels")
            mixture = _mix(mixer or _cutmix(reader.classes), images, labels)
            shares.append(_kept(mixture, _shares(aligned, mixture)))
            measured.append(_kept(mixture, references(reader, mixture)))
    if not any(len(part[AREA]) for part in shares):
        raise InputError(
            f"{len(shares)} batches gave no mixed pair of two classes, expected at least one: shuffle the loader if "
            "its batches hold one class each, use a mixer that mixes, and a loader that is not spent"
        )
    return Fidelity(_joined(shares), _joined(measured))


def policy_name(policy: Policy) -> str:
    """``"paper"``, or what a policy changes.

    >>> policy_name(Policy(residual="norm", weights="signed"))
    'residual=norm, weights=signed'
    """
    usual = asdict(DEFAULT)
    return ", ".join(f"{k}={v}" for k, v in asdict(policy).items() if v != usual[k]) or "paper"


def _checked(policies: Sequence[Policy]) -> list[Policy]:
    """Policies, each once. Raises InputError if there are none, or other things among them."""
    if not isinstance(policies, list | tuple) or not policies or None in policies:
        raise InputError(f"policies={policies!r}: expected a list of tlfx.Policy, such as [tlfx.Policy()]")
    return [check_policy(policy) for policy in dict.fromkeys(policies)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then each module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _aligned(model: nn.Module, rules: Mapping[str, Policy]) -> dict[str, nn.Module]:
    """A shallow copy of the model for each policy, on the same parameters; they share what is captured."""
    captures: list[Capture] = []
    copies = {}
    for name, policy in rules.items():
        copies[name] = copied = copy.copy(model)
        planner = planner_of(copied if isinstance(copied, Aligned) else align(copied))
        planner.options, planner.captures = replace(planner.options, policy=policy), captures
    return copies


def _read(batch: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch, on the device of the model. Raises as :func:`fidelity` does."""
    if not isinstance(batch, list | tuple) or len(batch) < 2 or not all(isinstance(x, Tensor) for x in batch[:2]):
        raise InputError(f"the loader gave a {type(batch).__name__}, expected (images, labels), two tensors")
    device = next((p.device for p in model.parameters()), batch[0].device)
    images, labels = (x.to(device) for x in batch[:2])
    Call.of(images)
    if labels.is_floating_point() or labels.dim() != 1:
        raise TargetError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected int64 (batch,): logits of the two "
            "classes of a pair are compared; use labels.argmax(1) for soft ones"
        )
    return images, labels


def _cutmix(classes: int) -> Mixup:
    return Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, mode="elem", label_smoothing=0.0, num_classes=classes)


def _mix(mixer: Mix, images: Tensor, labels: Tensor) -> Mixture:
    """A mixture of each image and its mirror image. Raises InputError if the mixer made another."""
    mixed, target = mixer(images, labels)
    mixture = Mixture(images, mixed, target.mask.expand(len(images), *target.mask.shape[1:]), labels)
    expected = mixture.blend(images, images.flip(0))
    if mixed.shape != expected.shape or not torch.allclose(mixed, expected, rtol=1e-3, atol=1e-3):
        raise InputError(
            f"{type(mixer).__name__} does not mix image i with image B − 1 − i by its mask, expected a mixer that "
            "does: tlfx.mix.Mixup, or pairing='mirror' where a mixer has it"
        )
    return mixture


def _shares(aligned: Mapping[str, nn.Module], mixture: Mixture) -> dict[str, Tensor]:
    """Share of the first image by each rule, (batch,)."""
    own = {name: share(model, mixture.mixed, mixture.mask)[:, 0] for name, model in aligned.items()}
    return {AREA: mixture.area, **own}


def _kept(mixture: Mixture, by_name: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the pairs that tell anything, on the CPU."""
    return {name: value[mixture.counts].float().cpu() for name, value in by_name.items()}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
