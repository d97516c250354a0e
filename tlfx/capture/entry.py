"""The entry of a capture: a model's forward as a function of flat tensors, and its side effects."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tlfx._torch import TreeSpec, tree_flatten, tree_unflatten
from tlfx.capture.arguments import Call
from tlfx.capture.foreach import recorded_for_each
from tlfx.capture.kernels import recorded_kernels
from tlfx.capture.known_sizes import KnownSizes
from tlfx.capture.model_class import class_name, own_forward
from tlfx.capture.modes import ModeRecorder
from tlfx.capture.refused_calls import refused_calls
from tlfx.capture.state.ignoring import is_ignored_state
from tlfx.capture.state.rebound import rebound
from tlfx.capture.state.refusals import check_arguments
from tlfx.capture.state.snapshot import Change, Snapshot
from tlfx.capture.tensor_attributes import TensorAttributes, copy_attributes
from tlfx.capture.tensor_calls import TensorCallRecorder
from tlfx.capture.value_reads import ValueRecorder
from tlfx.errors import CaptureError
from tlfx.graph.shells import MODEL

__all__ = ["Entry", "ForwardRecord"]


class ForwardRecord:
    """What the captured forward does; torch.export ignores an object of a plain class."""

    out_spec: TreeSpec
    changes: list[Change]

    def __init__(self, entry: Entry) -> None:
        self.begin(entry, {})

    def begin(self, entry: Entry, stand_ins: Mapping[str, Tensor]) -> None:
        """Forget an earlier call; torch.export would undo the assignment of another record to the entry."""
        self.tensor_calls = TensorCallRecorder()
        self.modes = ModeRecorder(entry.caches, entry.inference, entry.traced)
        self.values = ValueRecorder()
        self.attributes = TensorAttributes(entry.model)
        self.sizes = KnownSizes(self.values, entry.tensors_of_model, stand_ins)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what a forward does in the context. Raises CaptureError where a graph cannot repeat it."""
        with contextlib.ExitStack() as stack:
            for recorder in (self.modes, self.tensor_calls, self.values, self.attributes, self.sizes):
                stack.enter_context(recorder.recorded())
            stack.enter_context(recorded_kernels())
            stack.enter_context(recorded_for_each())
            yield


class Entry(nn.Module):
    """The model's forward as a function of flat tensors; all other arguments are fixed.

    It returns the flat output, then what it computes for the places that the forward changes, which it restores.
    """

    def __init__(self, model: nn.Module, call: Call, ignore_state: Sequence[str] = ()) -> None:
        super().__init__()
        setattr(self, MODEL, model)
        self.call = call
        self.ignore_state = tuple(ignore_state)
        self.caches, self.inference = torch.is_autocast_cache_enabled(), torch.is_inference_mode_enabled()
        self.traced = False
        """Whether a forward that asks if it is traced is told so."""
        self.tensors_of_model = dict(_named_tensors(model))
        self.requires_grad = (False,) * len(call.tensors)
        self.record = ForwardRecord(self)

    @property
    def model(self) -> nn.Module:
        """The model that is captured."""
        model: nn.Module = getattr(self, MODEL)
        return model

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(x, Tensor) else x for x in self.call.leaves]
        args, kwargs = tree_unflatten(leaves, self.call.spec)
        model, record = self.model, self.record
        # torch.export puts tensors without data in the places of parameters and buffers while it traces
        stand_ins = list(_named_tensors(model))
        record.begin(self, dict(stand_ins))
        copy_attributes(self.tensors_of_model, stand_ins)
        state, objects = Snapshot(model.named_modules()), Snapshot(self.call.objects)
        try:
            with (
                record.recorded(),
                refused_calls(model, record.modes.note_read),
                rebound(state.reach.containers),
            ):
                # without hooks of the model itself, which run around its aligned call
                outputs, record.out_spec = _flatten(own_forward(model)(model, *args, **kwargs))
            changes = state.changes(self._parameters_by(stand_ins))
            check_arguments(model, (args, kwargs), (leaves, self.call.spec), objects, changes)
            record.changes = [c for c in changes if not is_ignored_state(c.name, self.ignore_state)]
        finally:
            state.restore()
            objects.restore()
        _check_iterators(model, state, objects)
        kept = [x for change in record.changes for x in change.outputs]
        record.attributes.check([*outputs, *kept, *(x for _, x in stand_ins)])
        return (*outputs, *kept)

    def _parameters_by(self, stand_ins: Iterable[tuple[str, Tensor]]) -> dict[int, nn.Parameter]:
        """The parameters of the model by the identities of those without data that stand for them."""
        own = ((x, self.tensors_of_model.get(path)) for path, x in stand_ins)
        return {id(x): parameter for x, parameter in own if isinstance(parameter, nn.Parameter)}


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers by path, also those under several paths."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _check_iterators(model: nn.Module, *snapshots: Snapshot) -> None:
    """Raise CaptureError for an iterator from which a forward takes values."""
    for name in filter(None, (snapshot.advanced() for snapshot in snapshots)):
        raise CaptureError(
            f"the forward of {class_name(model)} takes values from an iterator, {name}, and a captured graph would "
            "take the same at each call: keep a count in a buffer (register_buffer), or pass the value as an argument"
        )


def _flatten(output: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves and structure of an output; dataclasses that torch does not know are registered as pytrees."""
    leaves, spec = tree_flatten(output)
    unknown = {type(x) for x in leaves if dataclasses.is_dataclass(x) and not isinstance(x, type)}
    for kind in unknown:
        torch.export.register_dataclass(kind)
    # once more, with the fields of dataclasses as leaves
    return _flatten(output) if unknown else (leaves, spec)
