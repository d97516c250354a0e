"""Some samples of the batch: chosen at an index that is drawn at random, and added back to all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tlfx import runtime
from tlfx.errors import ProvenanceError
from tlfx.propagate.labels import Operand
from tlfx.propagate.maps import map_of_ids
from tlfx.propagate.subsets import is_permutation
from tlfx.propagate.values import Value
from tlfx.propagate.verbs.movement import with_image
from tlfx.propagate.verbs.residual import Residual
from tlfx.runtime import BatchAxis

__all__ = ["Samples"]

_FIRST = BatchAxis(0)


class Samples(Residual):
    """Verbs of branches that run on some samples."""

    def chooses_samples(self, x: Value, axis: int, index: Value) -> bool:
        """Whether an index along an axis takes each sample of content once at most, in any order."""
        is_choice = len(index.shape) == 1 and index.is_constant and is_permutation(index.node)
        return is_choice and axis == 0 and x.is_content and x.batch_axis == _FIRST

    def choose_samples(self, x: Value, index: Value) -> Value:
        """The samples at an index; labels are computed for these alone, until :meth:`add_samples`."""
        batch = self.shape[0]
        if batch < 2 or self._state.samples is not None or x.pending is not None:
            raise ProvenanceError(
                f"{self.node.name} takes {batch} of {self.batch} samples: the layout of a branch on some samples is "
                "known only where it takes two or more of all. Capture the model with a larger batch first."
            )
        self._state.subsets.enter(self.node, index.node, batch, self._state.contexts)
        return replace(self._of_samples(x, batch), node=self.node)

    def holds_samples(self, x: Value) -> bool:
        """Whether a value holds some samples only."""
        return self._state.subsets.of(x.node) is not None

    def add_samples(self, x: Value, axis: int, index: Value, part: Value, scale: Any) -> Value:
        """What a branch computes of some samples, added to them: a residual connection (eq. 11) for these samples;
        all others keep their labels."""
        subset = self._state.subsets.of(part.node)
        fits = axis == 0 and x.is_content and x.batch_axis == _FIRST and x.pending is None
        if subset is None or subset.index is not index.node or not fits:
            raise ProvenanceError(
                f"{self.node.name} adds samples of the batch at another index than they were chosen by; labels belong "
                "to one sample each. Use the same index for both."
            )
        if self.policy.residual not in ("average", "skip"):
            raise self._without_summands()
        step = self.step(part.shape)
        step._state = self._state.on(subset)
        total = step.residual(self._of_samples(x, subset.batch), part, (1, scale))
        before, after = torch.broadcast_tensors(x.ids, total.ids)
        # (pairs, 2): the label of a place in all samples, and in those of the branch
        pairs, place = torch.stack((before, after), -1).flatten(0, -2).unique(dim=0, return_inverse=True)
        new = self.label(
            runtime.put_samples,
            Operand(with_image(pairs[:, 0])),
            Operand(with_image(pairs[:, 1]), index.node),
            index.node,
            shape=(len(pairs),),
            elementwise=True,
            by_sample=True,
        )
        return self.from_ids(new[place].view(before.shape), _FIRST)

    def _of_samples(self, x: Value, batch: int) -> Value:
        """Content in the layout of some samples."""
        ids = map_of_ids(x.ids, batch, _FIRST)
        return Value(x.node, (batch, *x.shape[1:]), batch, x.role, (ids,), origin=x.source)
