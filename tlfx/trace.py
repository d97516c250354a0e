"""Capture, propagation and rewriting of a model, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn
from torch.fx import GraphModule

from tlfx._torch import tree_leaves
from tlfx.capture.export import Captured, capture
from tlfx.capture.images import call_for
from tlfx.errors import CaptureError, NoContentError, ProvenanceError
from tlfx.propagate.options import Options
from tlfx.propagate.propagator import Propagation, Propagator, propagate
from tlfx.propagate.values import Value
from tlfx.rewrite.writer import AlignedGraph, rewrite

__all__ = ["Trace", "trace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """A captured model; its labels and its aligned graph are computed when they are first read."""

    captured: Captured
    options: Options

    @cached_property
    def propagation(self) -> Propagation:
        """The effect of every operator on labels. Raises as :func:`tlfx.propagate.propagate`."""
        captured = self.captured
        try:
            propagation = propagate(captured, self.options)
            if captured.batch == 1:
                _refuse_mixed(propagation)
            return propagation
        except (NoContentError, ProvenanceError) as error:
            if captured.batch != 1:
                raise
            raise CaptureError(
                f"{error}\nThis model computes with its batch size, so that it is captured for one size only, and a "
                "batch of 1 cannot be told from other axes of length 1: call it with two images or more "
                "(drop_last=True)."
            ) from error

    @cached_property
    def aligned(self) -> AlignedGraph:
        """The aligned graph and its regions."""
        return rewrite(self.propagation)

    @property
    def graph_module(self) -> GraphModule:
        """The aligned graph."""
        return self.aligned.graph_module

    def rewrite(self, **changes: Any) -> GraphModule:
        """The aligned graph of the propagation with other fields, such as ``outputs`` or ``recorded``."""
        return rewrite(replace(self.propagation, **changes)).graph_module

    def propagator(self) -> Propagator:
        """A propagator that has not visited any node: for one pass, which may stop at an error."""
        return Propagator(self.captured, self.options)


def _refuse_mixed(propagation: Propagation) -> None:
    """Raise ProvenanceError for outputs that seem to be computed over several samples."""
    for node in propagation.graph_module.graph.output_node().all_input_nodes:
        values = [v for v in tree_leaves(propagation.values[node]) if isinstance(v, Value)]
        source = next((v.mixes_samples for v in values if v.mixes_samples is not None), None)
        if source is not None:
            raise ProvenanceError(f"an output is computed by {source.name} over an axis that may be that of the batch")


def trace(
    model: nn.Module,
    example: Any,
    options: Options | None = None,
    *,
    any_batch: bool = True,
    captured: Captured | None = None,
) -> Trace:
    """Capture a model in its present mode for a call, or take what was captured before.

    Args:
        model: any module, aligned or not; of an aligned one the own forward is captured.
        example: a :class:`tlfx.capture.arguments.Call`, images, a tuple of arguments or a dict of keyword arguments.
        options: how labels are propagated, by default as the paper does.
        any_batch: whether the graph must run with any batch size; a capture for the given size takes half the time.
        captured: an earlier capture for such a call.

    Raises InputError without images, CaptureError if the model cannot be captured.

    >>> import torch
    >>> traced = trace(nn.Conv2d(3, 8, 4, 4), torch.zeros(2, 3, 8, 8))
    >>> [operation.value for operation in traced.propagation.operations.values()]
    ['constant', 'constant', 'layout', 'aggregation']
    """
    options = options or Options()
    if captured is None:
        call = call_for(example, model, options.images)
        captured = capture(model, call, any_batch=any_batch, ignore_state=options.ignore_state)
    return Trace(captured, options)
