"""Fidelity of aligned labels: agreement of each label policy with the contribution of the images to the output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tlfx.aligned import Aligned, align, planner_of
from tlfx.analysis.classifier import Classifier
from tlfx.analysis.fidelity_table import AREA, Fidelity
from tlfx.analysis.invariants import share
from tlfx.analysis.last_tokens import LastTokens
from tlfx.analysis.reference import Mixture, references
from tlfx.calls.plans import Capture
from tlfx.capture.arguments import Call
from tlfx.errors import InputError, TargetError, a_type
from tlfx.mix import MixedTarget, Mixup
from tlfx.mix.labels import check_labels
from tlfx.policy import DEFAULT, OPTIONS, Policy, check_policy, policy_name

__all__ = ["POLICIES", "fidelity"]

_CHANGES: list[dict[str, Any]] = [{name: x} for name, known in OPTIONS.items() for x in known[1:]]
POLICIES = (
    DEFAULT,
    *(replace(DEFAULT, **change) for change in _CHANGES),
    Policy(residual="norm", values="norm"),
    Policy(residual="norm", values="deviation"),
)
"""The paper's policy, every policy that changes one of its rules, and two that weight everything by values."""
Mix = Callable[[Tensor, Tensor], tuple[Tensor, MixedTarget]]


def fidelity(
    model: nn.Module,
    loader: Iterable[Sequence[Tensor]],
    *,
    policies: Sequence[Policy] = POLICIES,
    mixer: Mix | None = None,
    classifier: str | None = None,
) -> Fidelity:
    """Compare the aligned share of the first image at the classifier with the contribution of each image to the output.

    The model runs in evaluation mode; its parameters, gradients and modes are unchanged afterwards. References do not
    depend on the policy, so that each batch of the loader is mixed once for all policies. Pairs of equal classes and
    mixtures that consist of one image are ignored.

    References and agreement are documented in :func:`tlfx.analysis.reference.references` and
    :class:`tlfx.analysis.agreement.Agreement`. The references are eq. 13 of the paper, another similarity, two causal
    measures, and a gradient measure.

    Args:
        model: any module that returns logits (batch, classes), aligned or not; an aligned model keeps its options
            except the policy. Use a trained model: contributions in an untrained model are arbitrary.
        loader: batches of images, floating (batch, channels, height, width) with an even batch size, and int64 labels
            (batch,), such as a ``DataLoader`` of unmixed test images. Further items of a batch are ignored.
        policies: the policies to compare; by default the paper's and every policy that changes one of its rules.
        mixer: mixes image i with image B − 1 − i; by default :class:`tlfx.mix.Mixup` as CutMix with λ ~ Beta(1, 1) for
            each image, which draws from numpy's global generator: seed it for reproducible mixtures.
        classifier: path of the module whose input is compared by ``same_place``; by default the last executed module
            with a weight matrix.

    Raises:
        InputError: the loader yields something other than floating images and labels, or no pair of two classes; the
            model returns no logits; ``policies`` is empty; the mixer pairs images in another way; ``classifier`` is
            unknown.
        TargetError: labels are soft or exceed the classes of the model.
        CaptureError, UnknownOperatorError: see :func:`tlfx.align`.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3, bias=False))
    >>> model[2].weight.data = torch.eye(3)
    >>> colours = torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8)
    >>> labels = torch.tensor([0, 1, 2, 2, 0, 1])
    >>> study = fidelity(model, [(colours[labels], labels)], policies=[Policy()])
    >>> [(row.reference, round(row.agreement.rmse, 4)) for row in study.rows[4:] if row.rule == "paper"]
    [('exchange', 0.0), ('occlusion', 0.0), ('gradient', 0.0)]
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"fidelity takes a torch.nn.Module, got {a_type(model)}")
    rules = {policy_name(p): p for p in _checked(policies)}
    shares: list[dict[str, Tensor]] = []
    measured: list[dict[str, Tensor]] = []
    with _evaluating(model):
        aligned, reader, tokens = _aligned(model, rules), None, None
        for batch in loader:
            images, labels = _read(batch, model)
            reader = reader or Classifier(model, images, classifier)
            check_labels(labels, reader.classes, name="labels")
            mixture = _mix(mixer or _cutmix(reader.classes), images, labels)
            tokens = tokens or LastTokens(model, images)
            shares.append(_kept(mixture, _shares(aligned, mixture)))
            measured.append(_kept(mixture, references(reader, tokens, mixture)))
    if not any(len(part[AREA]) for part in shares):
        raise InputError(
            f"{len(shares)} batches gave no mixed pair of two classes, expected at least one: shuffle a loader whose "
            "batches have one class, enable mixing in the mixer, and pass an unexhausted loader"
        )
    return Fidelity(_joined(shares), _joined(measured))


def _checked(policies: Sequence[Policy]) -> list[Policy]:
    """Policies without duplicates. Raises InputError for an empty list or values of another type."""
    if not isinstance(policies, list | tuple) or not policies or None in policies:
        raise InputError(f"policies={policies!r}: expected a list of tlfx.Policy, such as [tlfx.Policy()]")
    return [check_policy(policy) for policy in dict.fromkeys(policies)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; on exit, every module returns to its previous mode."""
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
    """Images and labels of a batch on the model's device. Raises InputError or TargetError, see :func:`fidelity`."""
    if not isinstance(batch, list | tuple) or len(batch) < 2 or not all(isinstance(x, Tensor) for x in batch[:2]):
        raise InputError(f"the loader yielded {a_type(batch)}, expected two tensors (images, labels)")
    device = next((p.device for p in model.parameters()), batch[0].device)
    images, labels = (x.to(device) for x in batch[:2])
    # raises InputError for anything but floating-point images
    Call.of(images)
    if labels.is_floating_point() or labels.dim() != 1:
        raise TargetError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected int64 (batch,), since the logits of "
            "the two classes of a pair are compared; use labels.argmax(1) for soft labels"
        )
    return images, labels


def _cutmix(classes: int) -> Mixup:
    return Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, mode="elem", label_smoothing=0.0, num_classes=classes)


def _mix(mixer: Mix, images: Tensor, labels: Tensor) -> Mixture:
    """The mixture of image i with image B − 1 − i. Raises InputError if the mixer made another one."""
    mixed, target = mixer(images, labels)
    mixture = Mixture(images, mixed, target.mask.expand(len(images), *target.mask.shape[1:]), labels)
    expected = mixture.blend(images, images.flip(0))
    if mixed.shape != expected.shape or not torch.allclose(mixed, expected, rtol=1e-3, atol=1e-3):
        raise InputError(
            f"{type(mixer).__name__} does not mix image i with image B − 1 − i by its mask, expected a mixer that "
            "does: tlfx.mix.Mixup, or a mixer with pairing='mirror'"
        )
    return mixture


def _shares(aligned: Mapping[str, nn.Module], mixture: Mixture) -> dict[str, Tensor]:
    """Share of the first image by each rule, (batch,) each."""
    own = {name: share(model, mixture.mixed, mixture.mask)[:, 0] for name, model in aligned.items()}
    return {AREA: mixture.area, **own}


def _kept(mixture: Mixture, by_name: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of mixtures of two classes, on the CPU."""
    return {name: value[mixture.counts].float().cpu() for name, value in by_name.items()}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
