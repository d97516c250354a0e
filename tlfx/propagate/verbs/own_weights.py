"""Spatial mixing by weights that a rule computes itself, for operators and modules that do not expose theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.errors import RuleError
from tlfx.operations import Operation
from tlfx.propagate.labels import Operand
from tlfx.propagate.values import Value
from tlfx.propagate.verbs.movement import Movement, with_image
from tlfx.runtime import BatchAxis, Equation

__all__ = ["OWN_WEIGHTS", "OwnWeights"]

OWN_WEIGHTS = "mix_by_"
"""Prefix of the names of label functions that mix by weights of a rule."""


class OwnWeights(Movement):
    """The verb of operators whose weights the rule computes."""

    def mix_by(self, weights: Callable[..., Tensor], x: Value, *inputs: Any, axes: Sequence[int] = (1,)) -> Value:
        """Spatial mixing, Y ← Norm(|W|)·Y (eq. 9), with W = weights(*inputs) computed as the model runs.

        Args:
            weights: returns W of shape (batch or 1, out tokens, tokens), outside autograd and autocast. Its errors, and
                any other shape, raise RuleError when the model runs.
            x: the value whose tokens are mixed, its batch on the first axis, with or without windows merged into it.
            inputs: the arguments of ``weights``: values, and anything else unchanged (a module whose parameters it
                reads).
            axes: the token axes of ``x`` and of the output; several, such as (2, 3) of images, count row by row.
        """
        if not x.is_content:
            return self.weight()
        where, rank = x.batch_axis, len(x.shape)
        axes = sorted(a % rank for a in axes)
        # axis a of the value is axis a + 1 of its ids, whose batch axis is split in two
        others = [a for a in range(1, rank) if a not in axes and x.ids.shape[a + 1] > 1]
        if where.axis != 0 or others:
            varies = f"vary along {others} too" if others else f"have their batch along {where.axis}"
            raise RuleError(f"mix_by of a value of shape {x.shape} along its axes {axes}, but labels {varies}")
        parts = where.outer, where.inner
        tokens = x.ids.expand(*parts, *(x.shape[a] if a in axes else 1 for a in range(1, rank))).flatten(2)
        size = [self.shape[a] if a in axes else 1 for a in range(1, len(self.shape))]
        mixed = _mixed_by(weights, inputs, (*parts, torch.Size(size).numel(), tokens.shape[-1]), **self.signed)
        given = [v.node for v in inputs if isinstance(v, Value)]
        self.record(Operation.SPATIAL_MIX)
        new = self.label(mixed, Operand(with_image(tokens)), *given, shape=(*parts, torch.Size(size).numel()))
        return self.from_ids(new.view(*parts, *size), BatchAxis(0, *parts))


def _mixed_by(
    weights: Callable[..., Tensor], inputs: Sequence[Any], shape: tuple[int, int, int, int], signed: bool = False
) -> Callable[..., Tensor]:
    """The label function that mixes labels by W, for one sample of ``shape`` (outer, inner, out tokens, tokens)."""
    outer, inner, *size = shape
    name = getattr(weights, "__name__", "weights")

    @runtime.label_arithmetic
    def mixed(labels: Tensor, *tensors: Tensor) -> Tensor:
        values = iter(tensors)
        batch = outer * len(labels) * inner
        try:
            weight = weights(*(next(values) if isinstance(v, Value) else v for v in inputs))
        except Exception as error:
            raise RuleError(f"{name}, the weights of a rule, failed: {type(error).__name__}: {error}") from error
        if tuple(weight.shape) not in ((1, *size), (batch, *size)):
            raise RuleError(
                f"{name}, the weights of a rule, have shape {tuple(weight.shape)}, expected (batch or 1, out "
                f"tokens, tokens): ({batch} or 1, {size[0]}, {size[1]})"
            )
        # outer, inner, out tokens (q), tokens (m)
        equation = Equation("oiqm", "oim", "oiq")
        return runtime.mix(
            weight.expand(batch, *size), labels, equation, where=BatchAxis(0, outer, inner), signed=signed
        )

    # the name that the code of the aligned graph shows
    mixed.__qualname__ = mixed.__name__ = f"{OWN_WEIGHTS}{name}"
    return mixed
