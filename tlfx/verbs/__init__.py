"""The verbs that rules speak: what an operator can do to provenance, one idea a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from tlfx.opaque import ModuleCall
from tlfx.source import shapes
from tlfx.verbs.attend import Attention
from tlfx.verbs.frequency import Frequency
from tlfx.verbs.indexed import Indexed
from tlfx.verbs.own_weights import OwnWeights

if TYPE_CHECKING:
    from tlfx.propagate import Walk

__all__ = ["ModuleOp", "Op"]


class Op(Attention, Frequency, Indexed, OwnWeights):
    """One call of an operator: its shapes, and every verb a rule can use."""


class ModuleOp(Op):
    """One call of a module, of which nothing but arguments and outputs is seen."""

    def __init__(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any], walk: Walk) -> None:
        super().__init__(call.last, args, kwargs, walk)
        self.call = call

    @property
    def target(self) -> nn.Module:
        """The module itself."""
        return self.call.module

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all tensors that the module returns."""
        return [shape for node in self.call.outputs for shape in shapes(node)]
