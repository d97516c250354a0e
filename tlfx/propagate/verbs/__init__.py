"""The verbs of rules: everything that an operator can do to provenance, one idea a file."""

from __future__ import annotations

from typing import Any

from tlfx.capture.regions import CallRegion
from tlfx.graph.nodes import shapes
from tlfx.propagate.state import PropagationState
from tlfx.propagate.verbs.attend import Attention
from tlfx.propagate.verbs.frequency import Frequency
from tlfx.propagate.verbs.own_weights import OwnWeights
from tlfx.propagate.verbs.samples import Samples
from tlfx.propagate.verbs.scattered import Scattered

__all__ = ["CallContext", "OpContext"]


class OpContext(Attention, Frequency, Scattered, OwnWeights, Samples):
    """One call of an operator as its rule sees it: its shapes, and every verb that a rule can use."""


class CallContext(OpContext):
    """One call of a module or autograd function as its rule sees it: arguments and outputs only."""

    def __init__(
        self, call: CallRegion, args: tuple[Any, ...], kwargs: dict[str, Any], state: PropagationState
    ) -> None:
        super().__init__(call.last, args, kwargs, state)
        self.call = call

    @property
    def target(self) -> Any:
        """The module itself, or the class of the function."""
        return self.call.subject

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all tensors that the call returns."""
        return [shape for node in self.call.results for shape in shapes(node)]
