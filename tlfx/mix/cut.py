"""Exact minimisation of a binary labelling of a grid with costs between neighbours, by a minimum cut."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlfx.errors import InputError

__all__ = ["Array", "minimum_cut", "scipy_module"]

Array = NDArray[np.float64]


def minimum_cut(unary: Array, down: Array, right: Array) -> NDArray[np.bool_]:
    """The labelling of a grid with the lowest total cost: bool (rows, columns), True for label 0, False for label 1.

    unary: cost of labels 0 and 1 in each cell, (2, rows, columns).
    down, right: cost of each pair of labels of neighbours, (2, 2, rows − 1, columns) and (2, 2, rows, columns − 1). The
        two pairs of different labels must together cost at least as much as the two pairs of equal labels.

    >>> unary, unlike = np.array([[[0.0, 0.4]], [[1.0, 0.3]]]), (1.0 - np.eye(2))[..., None, None]
    >>> minimum_cut(unary, np.zeros((2, 2, 0, 2)), 0.0 * unlike)
    array([[ True, False]])
    >>> minimum_cut(unary, np.zeros((2, 2, 0, 2)), 0.2 * unlike)
    array([[ True,  True]])
    """
    rows, columns = unary.shape[1:]
    unary, links = unary.copy(), []
    number = np.arange(rows * columns).reshape(rows, columns)
    for cost, of_each, nodes in ((down, unary, number), (right.swapaxes(2, 3), unary.swapaxes(1, 2), number.T)):
        # a pair cost splits into a cost of each label and a cost of different labels
        of_each[:, :-1] += cost.sum(1) / 2
        of_each[:, 1:] += cost.sum(0) / 2
        unlike = np.maximum(cost[0, 1] + cost[1, 0] - cost[0, 0] - cost[1, 1], 0.0) / 2
        links.append(np.stack((nodes[:-1].ravel(), nodes[1:].ravel(), unlike.ravel())))
    one, other, unlike = np.concatenate(links, 1)
    source, sink = rows * columns, rows * columns + 1
    every, low = number.ravel(), unary.min(0).ravel()
    # links in both directions, then from the source to each cell, and from each cell to the sink
    ends = np.concatenate((one, other, np.full_like(every, source), every)).astype(np.int64)
    heads = np.concatenate((other, one, every, np.full_like(every, sink))).astype(np.int64)
    # what both labels of a cell cost alike does not change the minimum
    capacity = np.concatenate((unlike, unlike, unary[1].ravel() - low, unary[0].ravel() - low))
    return _reached_from(source, ends, heads, capacity)[: rows * columns].reshape(rows, columns)


def _reached_from(source: int, ends: NDArray[Any], heads: NDArray[Any], capacity: Array) -> NDArray[np.bool_]:
    """Nodes on the source's side of a minimum cut between source and sink, the last two nodes of a graph."""
    graphs, sparse = scipy_module("sparse.csgraph"), scipy_module("sparse")
    # SciPy's maximum_flow takes integer capacities only.
    # their sum stays below the largest int32
    units = np.round(capacity * (2**30 / max(capacity.sum(), 1e-12))).astype(np.int32)
    graph = sparse.csr_matrix((units, (ends, heads)), shape=(source + 2, source + 2))
    left = graph - graphs.maximum_flow(graph, source, source + 1).flow
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    reached = np.zeros(source + 2, dtype=bool)
    reached[graphs.breadth_first_order(left, source, return_predecessors=False)] = True
    return reached


def scipy_module(name: str) -> Any:
    """Import a module of SciPy. InputError if SciPy is not installed."""
    try:
        return importlib.import_module(f"scipy.{name}")
    except ImportError as error:
        raise InputError(f"PuzzleMix needs SciPy, which is missing ({error}): pip install 'tlfx[saliency]'") from error
