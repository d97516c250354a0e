"""The entry of a capture: a model's forward as a function of flat tensors, and its side effects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tlfx._torch import TreeSpec, tree_flatten, tree_unflatten
from tlfx.capture.arguments import Call
from tlfx.capture.kernels import recorded_kernels
from tlfx.capture.model_class import class_name, own_forward
from tlfx.capture.modes import ModeRecorder
from tlfx.capture.refused_calls import refused_calls
from tlfx.capture.state.ignoring import is_ignored_state
from tlfx.capture.state.snapshot import Change, Snapshot
from tlfx.capture.tensor_calls import TensorCallRecorder
from tlfx.capture.value_reads import ValueRecorder
from tlfx.errors import CaptureError
from tlfx.graph.shells import MODEL

__all__ = ["Entry", "ForwardRecord"]


class ForwardRecord:
    """What the captured forward does; torch.export ignores an object of a plain class."""

    out_spec: TreeSpec
    changes: list[Change]
    tensor_calls: TensorCallRecorder
    modes: ModeRecorder
    values: ValueRecorder


class Entry(nn.Module):
    """The model's forward as a function of flat tensors; all other arguments are fixed.

    It returns the flat output, then what it computes for the places that the forward changes, which it restores.
    """

    def __init__(self, model: nn.Module, call: Call, ignore_state: Sequence[str] = ()) -> None:
        super().__init__()
        setattr(self, MODEL, model)
        self.call = call
        self.ignore_state = tuple(ignore_state)
        self.caches = torch.is_autocast_cache_enabled()
        self.parameters_of_model = dict(model.named_parameters(remove_duplicate=False))
        self.requires_grad = (False,) * len(call.tensors)
        self.record = ForwardRecord()

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(x, Tensor) else x for x in self.call.leaves]
        args, kwargs = tree_unflatten(leaves, self.call.spec)
        model: nn.Module = getattr(self, MODEL)
        record = self.record
        record.tensor_calls, record.modes, record.values = (
            TensorCallRecorder(),
            ModeRecorder(self.caches),
            ValueRecorder(),
        )
        state = Snapshot(model)
        stand_ins = model.named_parameters(remove_duplicate=False)
        parameters = {id(x): self.parameters_of_model[path] for path, x in stand_ins}
        try:
            with (
                record.modes.recorded(),
                record.tensor_calls.recorded(),
                record.values.recorded(),
                recorded_kernels(),
                refused_calls(model, record.modes.note_read),
            ):
                outputs, record.out_spec = _flatten(own_forward(model)(model, *args, **kwargs))
            changes = [c for c in state.changes(parameters) if not is_ignored_state(c.name, self.ignore_state)]
        finally:
            state.restore()
        if state.advanced() is not None:
            raise CaptureError(
                f"the forward of {class_name(model)} takes values from an iterator, {state.advanced()}, and a captured "
                "graph would take the same at each call: keep a count in a buffer (register_buffer), or pass the value "
                "as an argument"
            )
        record.changes = changes
        return (*outputs, *(x for change in changes for x in change.outputs))


def _flatten(output: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves and structure of an output; dataclasses that torch does not know are registered as pytrees."""
    leaves, spec = tree_flatten(output)
    unknown = {type(x) for x in leaves if dataclasses.is_dataclass(x) and not isinstance(x, type)}
    for kind in unknown:
        torch.export.register_dataclass(kind)
    return _flatten(output) if unknown else (leaves, spec)
