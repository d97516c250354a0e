"""What an aligned model keeps: an aligned graph for each kind of call, and how a call is run through it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from tlfx.capture.arguments import images_of, key_of, tensors_of
from tlfx.capture.export import Captured, capture
from tlfx.errors import CaptureError, NoContentError, ProvenanceError, TargetError
from tlfx.mix.target import MixedTarget, check_labels
from tlfx.propagate import Options, Propagation, propagate
from tlfx.propagate.observer import Recorded, Recording
from tlfx.propagate.outputs import OutputLabel
from tlfx.rewrite.segments import segmented
from tlfx.rewrite.writer import rewrite_with_regions
from tlfx.rules.registry import REGISTRY

__all__ = ["Alignment", "Plan", "own_forward"]


@dataclass(frozen=True, eq=False)
class Plan:
    """An aligned graph, and what its outputs and recorded labels are."""

    graph_module: GraphModule
    captured: Captured
    outputs: list[OutputLabel | None]
    recorded: Recorded
    program: GraphModule
    """The graph as it is run: parts that must go through modules or be checkpointed are segments."""

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], mask: Tensor) -> tuple[Any, list[Any], list[Tensor]]:
        """The model's output, the share of the first image at each position of it (a flat list, None where an output
        has none, channels last), and the recorded labels."""
        outputs, shares = self.program(*tensors_of(args, kwargs), mask)
        count = len(self.outputs)
        return self.structured(outputs), list(shares[:count]), list(shares[count:])

    def structured(self, leaves: Iterable[Any]) -> Any:
        """One thing for each output, in the structure of the model's output."""
        return pytree.tree_unflatten(list(leaves), self.captured.out_spec)


class Alignment:
    """What an aligned model keeps beside its own state: options, a plan for each kind of call, and open recordings."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.plans: dict[Hashable, Plan] = {}
        self.captures: dict[Hashable, Captured] = {}
        self.latest: Plan | None = None
        self.recordings: list[Recording] = []

    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any) -> tuple[Any, Any]:
        """The model's output and the target that reaches it."""
        images = images_of(args, kwargs)
        if not isinstance(target, MixedTarget):
            return self._plain(model, args, kwargs, target, images.shape[0])
        _check(target, images)
        plan = self.plan(model, args, kwargs, tuple(dict.fromkeys(p for r in self.recordings for p in r.patterns)))
        mask = target.mask
        output, shares, labels = plan.run(args, kwargs, mask if mask.stride(0) else mask[:1])  # one for all samples
        for recording in self.recordings:
            recording.take(plan.recorded, labels)
        soft = [None if o is None else _soft(target, s, o) for s, o in zip(shares, plan.outputs, strict=True)]
        return output, plan.structured(soft)

    def _plain(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any, batch: int
    ) -> tuple[Any, Any]:
        """An unmixed target: the model's own forward, and the target as soft labels in the structure of the output."""
        if not isinstance(target, Tensor):
            raise TargetError(
                f"the target is a {type(target).__name__}, expected a tlfx.MixedTarget from a mixer, integer labels "
                "(batch,) or soft labels (batch, classes)"
            )
        if target.dim() != (2 if target.is_floating_point() else 1):
            raise TargetError(
                f"the target is {target.dtype} of shape {tuple(target.shape)}, expected integer labels (batch,) or "
                "soft labels (batch, classes)"
            )
        if target.shape[0] != batch:
            raise TargetError(
                f"a target of shape {tuple(target.shape)} was given with {batch} images; it seems to come from "
                "another batch"
            )
        plan = self.plan(model, args, kwargs)
        output = own_forward(model)(model, *args, **kwargs)
        leaves, spec = pytree.tree_flatten(output)
        soft = [
            None if o is None else _soft_plain(target, leaf, o) for leaf, o in zip(leaves, plan.outputs, strict=True)
        ]
        return output, pytree.tree_unflatten(soft, spec)

    def plan(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], record: tuple[str, ...] = ()
    ) -> Plan:
        """The plan for a call like this one that reads the labels ``record``, made now if there is none."""
        images = images_of(args, kwargs)
        call = (REGISTRY.generation, key_of(model, args, kwargs, images))
        found = self.plans.get((call, record)) or self.plans.get(((call, images.shape[0]), record))
        if found is None:
            found = self._make(model, args, kwargs, record)
        self.latest = found
        return found

    @_disable_dynamo  # as torch.compiler.disable, which takes a second to load
    def _make(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], record: tuple[str, ...]) -> Plan:
        """A new plan, of a new capture if there is none for calls like this one."""
        images = images_of(args, kwargs)
        REGISTRY.load()
        call = (REGISTRY.generation, key_of(model, args, kwargs, images))
        captured = self.captures.get(call) or self.captures.get((call, images.shape[0]))
        if captured is None:
            captured = capture(model, own_forward(model), args, kwargs, images)
        key = call if captured.batch is None else (call, captured.batch)
        propagation = _propagate(captured, replace(self.options, record=record))
        graph_module, regions = rewrite_with_regions(propagation)
        program = segmented(graph_module, regions)
        found = Plan(graph_module, captured, propagation.outputs, propagation.recorded, program)
        self.captures[key], self.plans[key, record] = captured, found
        return found


def _propagate(captured: Captured, options: Options) -> Propagation:
    """What propagation finds; a batch of one is found only where it comes first."""
    try:
        return propagate(captured, options)
    except (NoContentError, ProvenanceError) as error:
        if captured.batch != 1:
            raise
        raise CaptureError(
            f"{error}\nThis model computes with its batch size, so that it is captured for one size only, and a batch "
            "of 1 cannot be told from other axes of length 1: call it with two images or more (drop_last=True)."
        ) from error


def own_forward(model: nn.Module) -> Callable[..., Any]:
    """The forward of the class that was aligned."""
    base: Any = model._tlfx_base
    forward: Callable[..., Any] = base.forward
    return forward


def _check(target: MixedTarget, images: Tensor) -> None:
    """The target against the images."""
    mask = target.get("mask")
    flat = isinstance(mask, Tensor) and images.dim() == 5 and target.mask.dim() == 4
    target.check(images.shape[0], tuple(images.shape[3:] if flat else images.shape[2:]), values=_is_readable(images))
    if target.mask.device != images.device:
        raise TargetError(
            f"the target lies on {target.mask.device}, the images on {images.device}: use target.to(images.device)"
        )


def _is_readable(tensor: Tensor) -> bool:
    """Whether values may be checked: to read them waits for a GPU, and breaks a compiled graph."""
    return not tensor.is_cuda and not torch.compiler.is_compiling()


def _soft(target: MixedTarget, share: Tensor, output: OutputLabel) -> Tensor:
    """Soft targets of an output from the share of the first image, or of each of K, at each of its positions."""
    batch = output.where.axis
    soft = target.soften((share if "labels" in target else share[..., 0]).movedim(batch, 0))
    return soft.movedim(0, batch).movedim(-1, output.class_axis)


def _soft_plain(target: Tensor, leaf: Tensor, output: OutputLabel) -> Tensor:
    classes = target.shape[-1] if target.is_floating_point() else leaf.shape[output.class_axis]
    check_labels(target, classes, values=_is_readable(target))
    same = MixedTarget(first=target, second=target, mask=torch.ones(1, 1, 1, 1), num_classes=classes)
    positions = [s for i, s in enumerate(leaf.shape) if i != output.class_axis]
    return _soft(same, torch.ones(*positions, 1, device=target.device), output)
