"""The reason for the class of a node, derived from the label arithmetic that its rule made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from tlfx import runtime
from tlfx.capture.regions import CallRegion
from tlfx.operations import Operation
from tlfx.propagate.labels import LabelTensor
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.own_weights import OWN_WEIGHTS

__all__ = ["reason"]

_PLAIN = {
    Operation.CHANNEL_MIX: "contracts channels of one token",
    Operation.POINTWISE: "acts on each element separately",
    Operation.LAYOUT: "moves elements, and their labels with them",
}
_SPATIAL = {
    runtime.attention: "mixes tokens by softmax(q·kᵀ), averaged over heads",
    runtime.attention_with_labels: "mixes tokens by softmax(q·kᵀ), averaged over heads",
    runtime.convolve: "slides a kernel over tokens",
    runtime.resample: "averages neighbouring tokens",
    runtime.resample_at: "samples tokens at positions that depend on the image",
    runtime.convolve_at: "slides a kernel over positions that depend on the image",
    runtime.context: "contracts tokens between two values with content (kᵀv)",
    runtime.scan: "lets each token see the previous ones",
    runtime.uniform: "lets each token see all others",
}


def reason(
    node: Node,
    operation: Operation,
    given: Sequence[Value],
    labels: Sequence[LabelTensor],
    value: Any,
    call: CallRegion | None = None,
) -> str:
    """A short reason for a class, from the inputs of a node, the labels that it makes, its output value, and the call
    with a rule that contains it."""
    if operation is Operation.CONSTANT:
        return _constant(node, call)
    if operation is Operation.WEIGHT:
        return _weight(given, value)
    if node.op == "placeholder":
        return "the images: each pixel starts with its own label"
    if operation is Operation.AGGREGATION:
        return _aggregation(given, labels)
    if operation is Operation.SPATIAL_MIX:
        return _spatial(labels)
    if operation is Operation.RESIDUAL:
        same = "" if any(label.function is runtime.average for label in labels) else " that have the same labels"
        return f"sums two values with content{same}"
    if operation is Operation.LAYOUT and len(node.all_input_nodes) > 1 and len([v for v in given if v.is_content]) > 1:
        return "joins values, and their labels with them"
    return _PLAIN[operation]


def _constant(node: Node, call: CallRegion | None) -> str:
    if node.op == "get_attr":
        return "a parameter, buffer or constant of the model"
    return f"inside {call.name}, {call.as_ruled}" if call is not None else "computed without image content"


def _weight(given: Sequence[Value], value: Any) -> str:
    content = [v for v in given if v.is_content]
    if len(content) > 1:
        return "contracts channels of two values with content: a mixing weight W(Z)"
    if any(v.role in (Role.WEIGHT, Role.CONTEXT) for v in given):
        return "changes a mixing weight"
    return "depends on the image, but not on single tokens"


def _aggregation(given: Sequence[Value], labels: Sequence[LabelTensor]) -> str:
    parameters = [v for v in given if v.is_constant and len(v.shape) > 1]
    if any(label.function is runtime.resample for label in labels):
        return "kernel = stride: gathers each patch into one token" if parameters else "pools windows of tokens"
    if any(label.function is runtime.scatter_labels for label in labels):
        return "merges tokens at positions that depend on the image"
    if parameters:
        return "contracts an axis that holds several tokens"
    return "sums over tokens, each with the same weight"


def _spatial(labels: Sequence[LabelTensor]) -> str:
    functions = [label.function for label in labels]
    if runtime.mix in functions:
        weight = next(label.args[0] for label in labels if label.function is runtime.mix)
        learned = isinstance(weight, Node) and weight.op == "get_attr"
        return "contracts tokens, with weights" if learned else "contracts tokens, with weights W(Z)"
    if any(getattr(function, "__name__", "").startswith(OWN_WEIGHTS) for function in functions):
        return "mixes tokens by weights that its rule computes"
    return next((text for function, text in _SPATIAL.items() if function in functions), "contracts tokens")
