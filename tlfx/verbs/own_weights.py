"""Spatial mixing by weights that a rule computes itself, for operators and modules that never show theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.errors import RuleError
from tlfx.label import Rows
from tlfx.provenance import BatchAxis, Value
from tlfx.taxonomy import Operation
from tlfx.verbs.movement import Movement, with_image

__all__ = ["OWN_WEIGHTS", "OwnWeights"]

OWN_WEIGHTS = "mix_by_"
"""How the names of label functions begin that mix by weights of a rule."""


class OwnWeights(Movement):
    """The verb of operators whose weights are computed beside them."""

    def mix_by(self, weights: Callable[..., Tensor], x: Value, *inputs: Any, axes: Sequence[int] = (1,)) -> Value:
        """Spatial mixing, Y ← Norm(|W|)·Y (eq. 9), with W = weights(*inputs) computed as the model runs.

        Args:
            weights: gives W of shape (batch or 1, out tokens, tokens), outside autograd and autocast.
            x: the value whose tokens are mixed, its batch on the first axis.
            inputs: what W is computed from: values, and anything else as it is (a module, whose parameters it reads).
            axes: where the tokens of ``x`` and of the output lie; several, as (2, 3) of images, count row by row.
        """
        x = self.resolve(x)
        if not x.is_content:
            return self.weight()
        where, rank = x.batch_axis, len(x.shape)
        axes = sorted(a % rank for a in axes)
        rows = x.rows
        beside = [a for a in range(rank) if a not in axes and a != 0]
        if where != BatchAxis(0) or any(rows.shape[a + 1] > 1 for a in beside):
            raise RuleError(
                f"{self.node.name} mixes the axes {axes} of a value of shape {x.shape} whose labels vary along others"
            )
        tokens = rows.expand(1, 1, *(x.shape[a] if a in axes else 1 for a in range(1, rank))).flatten()
        size = [self.shape[a] if a in axes else 1 for a in range(1, len(self.shape))]
        given = [v for v in inputs if isinstance(v, Value)]

        def mixed(rows: Tensor, *tensors: Tensor) -> Tensor:
            found = iter(tensors)
            with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
                weight = weights(*(next(found) if isinstance(v, Value) else v for v in inputs))
                return runtime.mix(weight, rows, "qm,m->q", (0, 1, 1))

        mixed.__qualname__ = mixed.__name__ = f"{OWN_WEIGHTS}{getattr(weights, '__name__', 'weights')}"
        self.record(Operation.SPATIAL_MIX)
        ids = self.label(mixed, Rows(with_image(tokens)), *(v.node for v in given), shape=(torch.Size(size).numel(),))
        return self.from_rows(ids.view(1, 1, *size), BatchAxis(0))
