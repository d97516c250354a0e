"""Rules: what an operator does to provenance, in the verbs of :class:`tlfx.verbs.Op`, and the registry of them.

A rule is a function of the operation and of the operator's own arguments, and returns the value (or values) that come
out::

    @rule(aten.linear)
    def linear(op, x, weight, bias=None):
        return op.contract(x, axis=-1, weight=weight)

Packs of rules are modules named by the entry-point group ``tlfx.rules``; importing one registers its rules.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from tlfx.errors import RuleConflictError, RuleError

__all__ = ["REGISTRY", "Registry", "Rule", "rule"]

F = TypeVar("F", bound=Callable[..., Any])
ENTRY_POINTS = "tlfx.rules"


@dataclass(frozen=True)
class Rule:
    """One entry of the registry: an operator's rule and where it comes from."""

    operator: Any
    function: Callable[..., Any]

    @property
    def name(self) -> str:
        """Name of the operator, such as ``aten.linear``."""
        return operator_name(self.operator)

    @property
    def origin(self) -> str:
        """Module and name of the rule's function."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


class Registry:
    """Rules by operator: one entry for each overload packet, overload or Python function."""

    def __init__(self) -> None:
        self._rules: dict[Any, Rule] = {}
        self._loaded = False

    def add(self, operator: Any, function: Callable[..., Any], override: bool = False) -> None:
        """Register a rule. Raises RuleConflictError if the operator has one already and ``override`` is not set."""
        operator = operator_name(operator) if isinstance(operator, str | OpOverload | OpOverloadPacket) else operator
        entry = Rule(operator, function)
        known = self._rules.get(operator)
        if known is not None and not override:
            raise RuleConflictError(
                f"{entry.name} has two rules: {known.origin} and {entry.origin}. "
                "Remove one of them, or pass override=True to the one that should win."
            )
        self._rules[operator] = entry

    def find(self, operator: Any) -> Rule | None:
        """The rule for an operator: its overload's, its packet's, or that of what it is the in-place form of."""
        self.load()
        return next((self._rules[key] for key in _keys(operator) if key in self._rules), None)

    def load(self) -> None:
        """Import every rule pack that is installed, once. Raises RuleError naming a pack that cannot be imported."""
        if self._loaded:
            return
        self._loaded = True
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
            try:
                entry.load()
            except RuleConflictError:
                raise
            except Exception as error:
                raise RuleError(
                    f"rule pack {entry.name!r} ({entry.value}) cannot be imported: {error}. Mend or uninstall it."
                ) from error

    def __iter__(self) -> Iterator[Rule]:
        self.load()
        return iter(self._rules.values())

    def __len__(self) -> int:
        self.load()
        return len(self._rules)


REGISTRY = Registry()


def rule(*operators: Any, override: bool = False) -> Callable[[F], F]:
    """Register the decorated function as the rule of one or several operators.

    An operator is an overload packet (``torch.ops.aten.linear``, which covers all its overloads and its in-place
    form), a single overload, a Python function found in graphs, or a name such as ``"aten::linear"`` for an operator
    that this torch may not have, or whose library is not loaded yet. Raises RuleConflictError for a second rule.
    """

    def register(function: F) -> F:
        for operator in operators:
            REGISTRY.add(operator, function, override)
        return function

    return register


def operator_name(operator: Any) -> str:
    """Readable name of an operator.

    >>> import torch
    >>> operator_name(torch.ops.aten.linear.default)
    'aten.linear.default'
    """
    if isinstance(operator, OpOverload | OpOverloadPacket | HigherOrderOperator):
        return str(operator)
    if isinstance(operator, str):
        return operator.replace("::", ".")
    return getattr(operator, "__name__", str(operator))


def _keys(operator: Any) -> Iterator[Any]:
    """What to look an operator up by, the most special first; ``add_`` goes by the rule of ``add``."""
    if not isinstance(operator, OpOverload):
        yield operator
        return
    yield operator_name(operator)
    yield operator_name(operator.overloadpacket)
    if operator._schema.is_mutable:
        yield operator_name(operator.overloadpacket).removesuffix("_")
