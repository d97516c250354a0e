"""Outputs of a model: where the label of each is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from tlfx._torch import tree_leaves
from tlfx.errors import NoContentError
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.propagate.verbs.base import axis_of_ids
from tlfx.propagate.verbs.movement import with_image
from tlfx.runtime import BatchAxis

__all__ = ["OutputLabel", "is_real", "read_label", "read_outputs"]


@dataclass(frozen=True, eq=False)
class OutputLabel:
    """Where the label of one output is read: ids in the shape of the output without its class axis.

    ``class_axis`` is None for an output (batch,), one logit for each image; ``classes`` is the length of the axis.
    """

    ids: Tensor
    where: BatchAxis
    class_axis: int | None
    classes: int


def read_outputs(op: OpContext, values: Mapping[Node, Any]) -> list[OutputLabel | None]:
    """The labels of a graph's outputs, None for one without; ``op`` is the output node as an operation.

    An output (batch,) has a label only if no other output has one: next to logits, it is a statistic of each image.
    Raises NoContentError if no output has one.
    """
    leaves = tree_leaves(op.node.args)
    real = [values[n] if isinstance(n, Node) and is_real(n) else None for n in leaves]
    labels = [_read(op, value, rank=2) for value in real]
    labels = labels if any(labels) else [_read(op, value, rank=1) for value in real]
    if not any(labels):
        raise NoContentError(
            "no output of the model carries image content, so there is no label to align; "
            "the model must return what it computes from the images (logits, features or maps)."
            + _samples_mixed_by(values[n] for n in leaves if isinstance(n, Node))
        )
    return labels


def _samples_mixed_by(outputs: Iterable[Any]) -> str:
    """A sentence about outputs that are computed over several samples; empty if there are none."""
    sources = dict.fromkeys(v.mixes_samples for v in outputs if isinstance(v, Value) and v.mixes_samples is not None)
    if not sources:
        return ""
    names = ", ".join(source.name for source in sources)
    return f" It returns what {names} computes over several samples of the batch; labels belong to one sample each."


def _read(op: OpContext, value: Any, rank: int) -> OutputLabel | None:
    """The label of an output of at least this rank."""
    if not isinstance(value, Value):
        return None
    value = op.resolve(value)
    if not value.is_content or len(value.shape) < rank:
        return None
    return read_label(op, value, _class_axis(value) if len(value.shape) > 1 else None)


def read_label(op: OpContext, value: Value, axis: int | None) -> OutputLabel:
    """The label of a value with content at each of its positions: the mean over ``axis``, that of its channels."""
    where, ids = value.batch_axis, value.ids
    if axis is None:
        return OutputLabel(with_image(ids).expand(where.split(value.shape)), where, None, 1)
    split_axis = axis_of_ids(where, axis)
    ids = op.uniform_over(ids, [split_axis]).squeeze(split_axis)
    full = [s for i, s in enumerate(value.shape) if i != axis]
    place = BatchAxis(where.axis - (axis < where.axis), where.outer, where.inner)
    return OutputLabel(with_image(ids).expand(place.split(full)), place, axis, int(value.shape[axis]))


def is_real(node: Node) -> bool:
    """Whether a value is of a floating type: integers and truth values are decisions, which no loss is taken of."""
    example = node.meta.get("val")
    return isinstance(example, Tensor) and (example.is_floating_point() or example.is_complex())


def _class_axis(value: Value) -> int:
    """The axis of an output that counts classes or features: labels do not vary along it."""
    where = value.batch_axis.axis
    free = [a for a in range(len(value.shape)) if a != where]
    constant = [a for a in free if value.map.shape[a] == 1 and value.shape[a] > 1] or free
    tokens = len(constant) < len(free) or len(free) == 1
    # labels vary nowhere: (batch, tokens, classes) has its classes last, (batch, classes, *size) first
    return constant[0] if tokens or len(value.shape) != 3 else constant[-1]
