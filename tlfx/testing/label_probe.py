"""Functions of images whose labels can be read at every element of what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from tlfx._torch import tree_leaves, tree_map
from tlfx.operations import Operation
from tlfx.propagate.maps import NONE
from tlfx.propagate.options import Options
from tlfx.propagate.outputs import OutputLabel
from tlfx.propagate.values import Value
from tlfx.trace import trace

__all__ = ["LabelProbe"]


class _Net(nn.Module):
    """A function of images and of named parts: modules, parameters, and buffers for other tensors."""

    def __init__(self, function: Callable[..., Any], parts: Mapping[str, Any]) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.names = list(parts)

    def forward(self, images: Tensor) -> Any:
        outputs = self.function(images, **{name: getattr(self, name) for name in self.names})
        return tree_map(_as_real, outputs)


def _as_real(output: Tensor) -> Tensor:
    """Decisions as numbers, since only outputs of a numeric type have labels that are read."""
    return output if output.is_floating_point() or output.is_complex() else output.float()


class LabelProbe:
    """A captured function ``function(images, **parts)``, its labels readable at every element of its outputs.

    Args:
        function: of images (batch, channels, *size) and of ``parts``, returning a tensor or several.
        images: what it is captured with.
        parts: modules, parameters, and other tensors by name.

    Raises what capture and propagation raise.

    >>> probe = LabelProbe(lambda images: images.mean((2, 3)), torch.rand(2, 3, 4, 4))
    >>> probe.labels(torch.full((2, 1, 4, 4), 0.25))[0].shape
    torch.Size([2, 3, 1])
    """

    def __init__(self, function: Callable[..., Any], images: Tensor, parts: Mapping[str, Any] | None = None) -> None:
        self.net = _Net(function, parts or {})
        self.images = images
        traced = trace(self.net, images, Options(keep=True))
        self.propagation = traced.propagation
        end = self.propagation.graph_module.graph.output_node()
        self.values: list[Value] = [self.propagation.values[n] for n in tree_leaves(end.args) if isinstance(n, Node)]
        """The value of each output."""
        outputs = [_elements(v) if v.is_content else None for v in self.values]
        self.graph_module = traced.rewrite(outputs=outputs)

    def labels(self, mask: Tensor) -> list[Tensor]:
        """The label (*shape, channels) at every element of each output with content, NaN where an element has none.

        ``mask`` (batch or 1, channels, *size) may have any number of channels.
        """
        shares = self.graph_module(self.images, mask)[1]
        return [self._read(s, v) for s, v in zip(shares, self.values, strict=True) if v.is_content]

    def operation(self, *names: str) -> Operation:
        """The operation of the last call of an operator, by its name without overload (``"linear"``)."""
        nodes = [n for n in self.propagation.graph_module.graph.nodes if n.op == "call_function" and _name(n) in names]
        return self.propagation.operations[nodes[-1]]

    def code(self) -> str:
        """Code of the aligned graph."""
        return str(self.graph_module.code)

    def _read(self, share: Tensor, value: Value) -> Tensor:
        where = value.batch_axis
        channels = share.shape[-1]
        full = [*where.split(value.shape, len(self.images)), channels]
        blank = (value.ids == NONE).unsqueeze(where.axis + 1).unsqueeze(-1).expand(full)
        return share.double().view(full).masked_fill(blank, torch.nan).flatten(where.axis, where.axis + 2)


def _name(node: Node) -> str:
    packet: Any = getattr(node.target, "overloadpacket", node.target)
    return str(packet.__name__)


def _elements(value: Value) -> OutputLabel:
    """The label of an output at every element, its class axis being no axis at all."""
    rows = value.ids.clamp_min(0).expand(value.batch_axis.split(value.shape))
    return OutputLabel(rows, value.batch_axis, class_axis=rows.dim(), classes=1)
