"""Graph modules that run a graph on modules and buffers that other modules own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.fx import Graph, GraphModule

__all__ = ["MODEL", "graph_module_of"]

MODEL = "_m"
"""Name under which a captured graph holds its model: the graph reads ``_m.<path>`` at every call."""


def graph_module_of(
    graph: Graph, modules: Mapping[str, nn.Module | None], buffers: Mapping[str, Tensor | None], name: str
) -> GraphModule:
    """A graph module that runs ``graph`` and holds just these modules and (not persistent) buffers, themselves.

    >>> import torch
    >>> graph = Graph()
    >>> _ = graph.output(graph.get_attr("inner.weight"))
    >>> linear = nn.Linear(2, 2)
    >>> module = graph_module_of(graph, {"inner": linear}, {}, "Weight")
    >>> linear.weight = nn.Parameter(torch.eye(2))
    >>> module() is linear.weight
    True
    """
    root = nn.Module()
    root._modules.update(modules)
    for key, buffer in buffers.items():
        root.register_buffer(key, buffer, persistent=False)
    module = GraphModule(root, graph, class_name=name)
    # GraphModule copies what the graph reads, path by path, into empty modules that it makes: parameters replaced in
    # the model later would not be seen. So it is given the live modules once more.
    module._modules = dict(root._modules)
    module._parameters, module._buffers = {}, dict(root._buffers)  # a parameter among the buffers stays there
    return module
