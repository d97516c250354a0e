"""Reads the tokens of a model and their labels at any layer, for any initial label map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from tlfx.analysis.classtoken import class_attention
from tlfx.analysis.layers import Layer, find_layers
from tlfx.analysis.places import centres
from tlfx.graph.nodes import module_stack
from tlfx.propagate import Options, Propagation
from tlfx.propagate.observer import EVERY_MODULE, ObservedLabels
from tlfx.propagate.values import Value
from tlfx.propagate.verbs.base import axis_of_ids
from tlfx.runtime import BatchAxis, split_batch
from tlfx.trace import trace

__all__ = ["Arrival", "Probe", "Reading"]

OUTPUT = ""
"""Stands for the output among the paths of layers."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Tokens and labels of a layer in one call.

    Attributes:
        labels: float32 (batch, tokens, K), the aligned label of each token.
        tokens: floating (batch, tokens, channels).
        class_attention: float32 (batch, K), the initial labels of the patches weighted by the attention of the class
            token in this layer, averaged over heads (TransMix); None if no class token attends to the patches.
    """

    layer: Layer
    labels: Tensor
    tokens: Tensor
    class_attention: Tensor | None

    @property
    def map(self) -> Tensor:
        """Labels of the grid, (batch, height, width, K)."""
        return self.labels[:, self.layer.grid]

    @property
    def share(self) -> Tensor:
        """Label that the classifier would read in this layer, (batch, K)."""
        return self.labels[:, self.layer.readout].mean(1)

    @property
    def read_tokens(self) -> Tensor:
        """The tokens that the classifier would read in this layer, (batch, n, channels)."""
        return self.tokens[:, self.layer.readout]


@dataclass(frozen=True, eq=False)
class Arrival:
    """Labels of the first output with content in one call.

    Attributes:
        label: float32 (batch, K), the aligned label; for a dense output, the mean over its positions.
        class_attention: float32 (batch, K), as in :class:`Reading`, for the last attention of the class token: the
            target of TransMix.
    """

    label: Tensor
    class_attention: Tensor | None


class Probe:
    """Reads tokens and labels of a model in evaluation mode at chosen layers.

    Args:
        model: any module; it is put in evaluation mode and not changed otherwise.
        size: (channels, height, width) of its images.
        at: glob patterns of module paths, such as ``["blocks.*"]``; by default the model's blocks.
        attention: whether to read class attention too.
        batch: number of images at a time, at least 2; the capture is for this size, in half the time of one for any.
        required: whether to raise InputError if no module has tokens on a grid; without it, ``layers`` is then empty.

    Raises InputError if no module matches a pattern or no matching module has tokens on a grid; CaptureError and
    UnknownOperatorError as in :func:`tlfx.align`.

    >>> probe = Probe(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1)), (3, 16, 16))
    >>> [(layer.path, layer.size) for layer in probe.layers]
    [('0', (4, 4)), ('1', (4, 4))]
    >>> mask = torch.zeros(1, 1, 16, 16)
    >>> mask[..., :8] = 1
    >>> readings, arrival = probe(torch.rand(1, 3, 16, 16), mask)
    >>> readings[0].map[0, 0].flatten(), arrival.label.shape
    (tensor([1., 1., 0., 0.]), torch.Size([1, 1]))
    """

    def __init__(
        self,
        model: nn.Module,
        size: Sequence[int],
        at: Sequence[str] | None = None,
        attention: bool = True,
        *,
        batch: int = 2,
        required: bool = True,
    ) -> None:
        parameter = next(model.parameters(), torch.zeros(()))
        self.batch = batch
        images = torch.zeros(batch, *size).to(parameter)
        options = Options(attention="fused", record=(EVERY_MODULE,))
        traced = trace(model.eval(), images, options, any_batch=False)
        propagation = traced.propagation
        places = centres(propagation.labels, propagation.values)
        self.layers = find_layers(propagation, places, at, required)
        self._outputs = propagation.outputs
        self._output = next(i for i, output in enumerate(propagation.outputs) if output is not None)
        attended = _class_attention(propagation, self.layers, places, self._output) if attention else {}
        ids = {layer.path: layer.ids for layer in self.layers}
        self._tokens = _add_outputs(propagation, self.layers)
        self._attended = list(attended)
        observed = {**ids, **{f"class attention in {path}": ids for path, ids in attended.items()}}
        self._graph = traced.rewrite(recorded=ObservedLabels(observed))

    @torch.no_grad()
    def __call__(self, images: Tensor, mask: Tensor) -> tuple[list[Reading], Arrival]:
        """Tokens and labels of each layer, and the label of the output.

        Args:
            images: floating (batch, channels, height, width).
            mask: float (batch or 1, K, height, width), the initial label of every pixel.
        """
        parts = [self._run(*part) for part in _parts(images, mask, self.batch)]
        readings = [_joined(same, len(images)) for same in zip(*(p for p, _ in parts), strict=True)]
        arrivals = [arrival for _, arrival in parts]
        attended = _joined_attention([a.class_attention for a in arrivals], len(images))
        return readings, Arrival(torch.cat([a.label for a in arrivals])[: len(images)], attended)

    def _run(self, images: Tensor, mask: Tensor) -> tuple[list[Reading], Arrival]:
        """One call of the graph. An additional channel of ones measures the attention of class tokens to patches."""
        values, labels = self._graph(images, torch.cat((mask, torch.ones_like(mask[:, :1])), 1))
        output, label = self._outputs[self._output], labels[self._output]
        assert output is not None
        label = label.movedim(output.where.axis, 0).reshape(self.batch, -1, label.shape[-1]).mean(1)
        count = len(self.layers)
        tokens = [layout.of(v) for layout, v in zip(self._tokens, values[len(values) - count :], strict=True)]
        recorded = labels[len(self._outputs) :]
        attended = {p: _over_patches(x) for p, x in zip(self._attended, recorded[count:], strict=True)}
        arrival = Arrival(label[:, :-1], attended.get(OUTPUT))
        layers = zip(self.layers, recorded[:count], tokens, strict=True)
        return [Reading(at, y[..., :-1], t, attended.get(at.path)) for at, y, t in layers], arrival


@dataclass(frozen=True)
class _Layout:
    """The axes of batch and channels of a value."""

    where: BatchAxis
    channel: int
    """Axis of the channels once the batch is split off."""

    def of(self, value: Tensor) -> Tensor:
        """Tokens (batch, tokens, channels)."""
        return split_batch(value, self.where).movedim(self.channel, -1).flatten(1, -2)


def _over_patches(attended: Tensor) -> Tensor:
    """Mean over class tokens (batch, n, K + 1), divided by the attention to patches: (batch, K)."""
    mean = attended.mean(1)
    return mean[:, :-1] / mean[:, -1:]


def _class_attention(
    propagation: Propagation, layers: Sequence[Layer], places: Tensor, output: int
) -> dict[str, Tensor]:
    """Label ids of the class attention, by path: in each layer with a class token, and before the output."""
    read = propagation.outputs[output]
    assert read is not None
    class_tokens = {layer.path: layer.ids[layer.readout] for layer in layers if layer.has_class_token}
    by_path = {**class_tokens, OUTPUT: read.ids.flatten()}
    attended = {p: class_attention(propagation.labels, ids, places, propagation.images) for p, ids in by_path.items()}
    return {path: ids for path, ids in attended.items() if ids is not None}


def _add_outputs(propagation: Propagation, layers: Sequence[Layer]) -> list[_Layout]:
    """Append the outputs of layers to the outputs of the graph; returns the layout of each."""
    graph = propagation.graph_module.graph
    given = _module_outputs(graph, propagation)
    nodes = [given[layer.path] for layer in layers]
    output = graph.output_node()
    output.args = ((*output.args[0], *nodes),)  # type: ignore[misc]
    return [_layout(propagation.values[n], len(layer.ids)) for n, layer in zip(nodes, layers, strict=True)]


def _module_outputs(graph: Graph, propagation: Propagation) -> dict[str, Node]:
    """The last node with content that is used outside its module, by path of the module."""
    given: dict[str, Node] = {}
    for node in graph.nodes:
        value = propagation.values.get(node)
        if isinstance(value, Value) and value.is_content:
            inside = _paths(node)
            outside = [_paths(user) for user in node.users]
            given.update({path: node for path in inside if any(path not in o for o in outside)})
    return given


def _paths(node: Node) -> set[str]:
    """Paths of the modules that a node was captured in, without the numbers of repeated calls."""
    return {path.partition("@")[0] for path, _ in module_stack(node)}


def _layout(value: Value, tokens: int) -> _Layout:
    """The layout of a value; the channel axis is one that leaves ``tokens`` positions, best with constant labels."""
    where, rank = value.batch_axis, len(value.shape)
    total = prod(value.shape) // value.batch
    fits = [a for a in range(rank) if a != where.axis and total // value.shape[a] == tokens]
    channel = max(fits, key=lambda a: (value.map.shape[a] == 1, a))
    return _Layout(where, axis_of_ids(where, channel) + 1)


def _parts(images: Tensor, mask: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Split images into batches of the captured size; the last image fills up the last batch."""
    mask = mask.expand(len(images), -1, -1, -1)
    for first in range(0, len(images), size):
        places = torch.arange(first, first + size).clamp_max(len(images) - 1)
        yield images[places], mask[places]


def _joined(readings: Sequence[Reading], count: int) -> Reading:
    """Concatenate the readings of one layer from several batches."""
    return Reading(
        readings[0].layer,
        torch.cat([r.labels for r in readings])[:count],
        torch.cat([r.tokens for r in readings])[:count],
        _joined_attention([r.class_attention for r in readings], count),
    )


def _joined_attention(parts: Sequence[Tensor | None], count: int) -> Tensor | None:
    known = [p for p in parts if p is not None]
    return torch.cat(known)[:count] if known else None
