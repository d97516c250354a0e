"""Plans of an aligned model: an aligned graph for each kind of call, and how a call runs through it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tlfx._torch import disable_dynamo, outside_transforms, tree_flatten, tree_unflatten
from tlfx.calls.targets import check_classes, check_mixed, check_plain, soft_mixed, soft_plain
from tlfx.capture.arguments import Call
from tlfx.capture.export import Captured
from tlfx.capture.images import call_for, choose_images
from tlfx.capture.model_class import class_name, own_forward
from tlfx.capture.modes import gradients_of, restored_after_error
from tlfx.capture.settings import ModelSettings
from tlfx.graph.constants import Decision
from tlfx.mix.target import MixedTarget
from tlfx.propagate.observer import LabelRecorder, ObservedLabels
from tlfx.propagate.options import Options
from tlfx.propagate.outputs import OutputLabel
from tlfx.rewrite.segments import segmented
from tlfx.rules.registry import REGISTRY
from tlfx.trace import trace

__all__ = ["MOST_PLANS", "Capture", "Plan", "Planner"]

MOST_PLANS = 16
"""Most plans that a model keeps; the least recently used plan is dropped first."""
_FEW_CHANGES = 4
"""Captures because of one attribute before a warning says so."""
_LOG = logging.getLogger("tlfx")


@dataclass(frozen=True, eq=False)
class Capture:
    """A captured graph, and the rules, the kind of call and the settings of the model that it was captured for."""

    captured: Captured
    rules: object
    call: Hashable
    settings: list[ModelSettings]
    """Those before the first call and, if a call changes them and the graph stays the same, those that it leaves."""

    def fits(self, model: nn.Module, call: Call) -> bool:
        """Whether a new capture for this call would give the same graph."""
        return (
            self.is_like(call)
            and (self.captured.gradients is None or self.captured.gradients == gradients_of(model, call.tensors))
            and any(settings.are_current(model) for settings in self.settings)
            and self.captured.watched.are_current()
            and self.captured.readings.are_current()
        )

    def note_call(self, model: nn.Module, ignore_state: Sequence[str]) -> None:
        """Accept the settings that a call leaves, if the graph is the same in that state."""
        if torch.compiler.is_compiling():
            return
        if self.captured.watched.is_stable and len(self.settings) == 1 and not self.settings[0].are_current(model):
            self.settings.append(ModelSettings(model, ignore_state))

    def is_like(self, call: Call) -> bool:
        """Whether it was captured for a call like this one, by the same rules."""
        captured = self.captured
        return self.rules == REGISTRY.generation and captured.batch in (None, call.batch) and self.call == call.key


@dataclass(frozen=True, eq=False)
class Plan:
    """An aligned graph, and the labels of its outputs and of observed modules."""

    graph_module: GraphModule
    captured: Captured
    outputs: list[OutputLabel | None]
    observed: ObservedLabels
    program: GraphModule
    """The graph as it runs: regions are segments, which run through modules or under a checkpoint."""
    capture: Capture
    record: tuple[str, ...]
    decisions: tuple[Decision, ...]
    """Values of parameters and buffers that labels were placed by."""

    def fits(self, model: nn.Module, call: Call, record: tuple[str, ...]) -> bool:
        """Whether a new plan for this call would be the same."""
        return (
            self.record == record
            and self.capture.fits(model, call)
            and all(decision.is_current() for decision in self.decisions)
        )

    def run(self, call: Call, mask: Tensor) -> tuple[Any, list[Any], list[Tensor]]:
        """The model's output, the share of the first image at each position of it (a flat list, None where an output
        has none, channels last), and the observed labels."""
        # the mask is on the device of the images; a compiled graph has no handlers of errors
        compiling = torch.compiler.is_compiling()
        with contextlib.nullcontext() if compiling else restored_after_error(mask.device.type):
            outputs, shares = self.program(*call.tensors, mask)
        count = len(self.outputs)
        return self.structured(outputs), list(shares[:count]), list(shares[count:])

    def structured(self, leaves: Iterable[Any]) -> Any:
        """A flat list with one item for each output, in the structure of the model's output."""
        return tree_unflatten(list(leaves), self.captured.out_spec)


class Planner:
    """The options of an aligned model, a plan for each kind of call, and open recorders.

    At most :data:`MOST_PLANS` plans are kept, in the order of their last use.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.plans: list[Plan] = []
        self.captures: list[Capture] = []
        self.latest: Plan | None = None
        self.recorders: list[LabelRecorder] = []
        self._changes: Counter[str] = Counter()
        self._warnings: set[str] = set()

    def run(self, model: nn.Module, call: Call, target: Any) -> tuple[Any, Any]:
        """The model's output and the target that reaches it."""
        if not isinstance(target, MixedTarget):
            return self._plain(model, call, target)
        mask = target.get("mask")
        call = self.chosen(model, call, mask if isinstance(mask, Tensor) else None)
        check_mixed(target, call.images, call.size)
        plan = self.plan(model, call, tuple(dict.fromkeys(p for r in self.recorders for p in r.patterns)))
        self._check_classes(model, target, plan)
        mask = target.mask
        output, shares, labels = plan.run(call, mask if mask.stride(0) else mask[:1])  # one for all samples
        plan.capture.note_call(model, self.options.ignore_state)
        for recorder in self.recorders:
            recorder.take(plan.observed, labels)
        soft = [None if o is None else soft_mixed(target, s, o) for s, o in zip(shares, plan.outputs, strict=True)]
        return output, plan.structured(soft)

    def _check_classes(self, model: nn.Module, target: Any, plan: Plan) -> None:
        """Raise TargetError for another number of classes than the model declares; log one that its outputs lack."""
        warning = check_classes(model, target, plan.outputs)
        if warning is not None and not torch.compiler.is_compiling():
            self.warn_once(warning)

    def warn_once(self, warning: str) -> None:
        """Log a warning, unless this model has logged it before."""
        if warning not in self._warnings:
            _LOG.warning(warning)
            self._warnings.add(warning)

    def _plain(self, model: nn.Module, call: Call, target: Any) -> tuple[Any, Any]:
        """An unmixed target: the model's own forward, and the target as soft labels in the structure of the output."""
        call = self.chosen(model, call)
        check_plain(target, call.images)
        plan = self.plan(model, call)
        self._check_classes(model, target, plan)
        output = own_forward(model)(model, *call.args, **call.kwargs)
        plan.capture.note_call(model, self.options.ignore_state)
        leaves, spec = tree_flatten(output)
        soft = [
            None if o is None else soft_plain(target, leaf, o) for leaf, o in zip(leaves, plan.outputs, strict=True)
        ]
        return output, tree_unflatten(soft, spec)

    def chosen(self, model: nn.Module, call: Call, mask: Tensor | None = None) -> Call:
        """The call with the images that are mixed, by the mask if it is given: see :func:`choose_images`."""
        return choose_images(call, model, self.options.images, mask)

    def plan_example(self, model: nn.Module, example: Any) -> Plan:
        """The plan for a call with an example: images, a tuple of arguments or a dict of keyword arguments."""
        return self.plan(model, call_for(example, model, self.options.images))

    def plan(self, model: nn.Module, call: Call, record: tuple[str, ...] = ()) -> Plan:
        """The plan for a call like this one that reads the labels ``record``, made now if there is none."""
        plan = self._find(model, call, record) or self._make(model, call, record)
        if self.latest is not plan:
            self.latest = plan
            if not torch.compiler.is_compiling():  # torch.compile guards on the list and would recompile at each change
                self._put_last(plan)
        return plan

    def _find(self, model: nn.Module, call: Call, record: tuple[str, ...]) -> Plan | None:
        for plan in reversed(self.plans):
            if plan.fits(model, call, record):
                return plan
        return None

    def _put_last(self, plan: Plan) -> None:
        """Move a plan and its capture to the end, and drop those beyond the limit."""
        self.plans = [*(p for p in self.plans if p is not plan), plan][-MOST_PLANS:]
        self.captures[:] = [*(c for c in self.captures if c is not plan.capture), plan.capture][-MOST_PLANS:]

    @disable_dynamo
    def _make(self, model: nn.Module, call: Call, record: tuple[str, ...]) -> Plan:
        """A new plan, of a new capture if there is none for calls like this one."""
        with outside_transforms():  # torch.func.grad would wrap even constants
            return self._make_outside(model, call, record)

    def _make_outside(self, model: nn.Module, call: Call, record: tuple[str, ...]) -> Plan:
        REGISTRY.load()
        plan = self._find(model, call, record)  # a compiled call may not have found it
        if plan is not None:
            return plan
        kept = next((c for c in reversed(self.captures) if c.fits(model, call)), None) or self._capture(model, call)
        traced = trace(model, call, replace(self.options, record=record), captured=kept.captured)
        propagation, program = traced.propagation, segmented(traced.aligned)
        plan = Plan(
            traced.graph_module,
            kept.captured,
            propagation.outputs,
            propagation.recorded,
            program,
            kept,
            record,
            propagation.decisions,
        )
        self._put_last(plan)
        return plan

    def _capture(self, model: nn.Module, call: Call) -> Capture:
        self._tell(model, call)
        captured = trace(model, call, self.options).captured
        settings = [ModelSettings(model, self.options.ignore_state)]
        kept = Capture(captured, REGISTRY.generation, call.key, settings)
        self.captures.append(kept)  # kept even if planning fails, as it does for a pattern that matches nothing
        del self.captures[:-MOST_PLANS]
        return kept

    def _tell(self, model: nn.Module, call: Call) -> None:
        """Log why the model is captured, and warn once if the same attribute keeps causing captures."""
        last = next((c for c in reversed(self.captures) if c.is_like(call)), None)
        name = None if last is None else last.settings[-1].change() or last.captured.readings.change()
        if name is None:
            _LOG.info("%s is captured for images %s", class_name(model), tuple(call.images.shape))
            return
        _LOG.info("%s is captured again: %s has changed", class_name(model), name)
        self._changes[name] += 1
        if self._changes[name] == _FEW_CHANGES:
            warnings.warn(
                f"{class_name(model)} was captured {_FEW_CHANGES} times because {name} had changed, which takes "
                "seconds each time. Keep a value that changes while training in a buffer (register_buffer), which is "
                "read at every call, or change it less often.",
                stacklevel=2,
            )
