"""The shared state of a propagation, one collaborator for each job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.fx import Node

from tlfx.capture.regions import RegionTree
from tlfx.graph.branch_scales import BranchScales
from tlfx.graph.constants import Constants
from tlfx.operations import Operation
from tlfx.propagate.contexts import LinearContexts
from tlfx.propagate.labels import LabelTable
from tlfx.propagate.layers import LayerSelection
from tlfx.propagate.options import Options
from tlfx.propagate.subsets import SampleSubsets, Subset
from tlfx.propagate.tokens import LearnedTokens

__all__ = ["PropagationState"]


@dataclass(frozen=True, eq=False)
class PropagationState:
    """The state that all operators share; rules see it through :class:`tlfx.propagate.OpContext`."""

    batch: int
    """Batch size of the analysis."""
    device: torch.device
    options: Options
    operations: Mapping[Node, Operation]
    regions: RegionTree
    labels: LabelTable
    constants: Constants
    contexts: LinearContexts
    layers: LayerSelection
    scales: BranchScales
    tokens: LearnedTokens
    subsets: SampleSubsets = field(default_factory=SampleSubsets)
    samples: Node | None = None
    """The index of the samples that the operators of a branch see; None for all."""
    scores: dict[Node, tuple[Tensor, ...]] = field(default_factory=dict)
    """Nodes that join scores of queries with content, by the maps that they have as mixing weights, which a softmax
    makes of them."""

    def on(self, subset: Subset | None) -> PropagationState:
        """The state that operators on some samples see; the same for all samples."""
        if subset is None:
            return self
        return replace(self, batch=subset.batch, samples=subset.index, contexts=subset.contexts)
