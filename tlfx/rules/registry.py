"""The registry of rules: what each operator does to provenance, in the verbs of :class:`tlfx.propagate.OpContext`.

A rule is a function of the operation and of the operator's own arguments, and returns the value (or values) that come
out::

    @rule(aten.linear)
    def linear(op, x, weight, bias=None):
        return op.contract(x, axis=-1, weight=weight)

Packs of rules are modules named by the entry-point group ``tlfx.rules``; importing one registers its rules.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from tlfx._torch import (
    CustomOpDef,
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    custom_op_name,
    overload_name,
    schema,
)
from tlfx.errors import InputError, RuleConflictError, a_type

__all__ = ["REGISTRY", "Registry", "Rule", "rule"]

F = TypeVar("F", bound=Callable[..., Any])
ENTRY_POINTS = "tlfx.rules"


@dataclass(frozen=True)
class Rule:
    """One entry of the registry: an operator's rule and where it comes from."""

    operator: Any
    function: Callable[..., Any]
    override: bool = False
    contexts: bool = False
    """Whether it takes products kᵀv that may wait for a query (linear attention) as such, and not as content."""

    @property
    def name(self) -> str:
        """Name of the operator, such as ``aten.linear``."""
        return operator_name(self.operator)

    @property
    def origin(self) -> str:
        """Module and name of the rule's function."""
        known = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return f"{known.__module__}.{known.__qualname__}"

    @property
    def file(self) -> str | None:
        """Source file of the rule's function, if it is one of Python."""
        code = getattr(self.function, "__code__", None)
        return None if code is None else str(code.co_filename)


class Registry:
    """Rules by operator: one entry for each overload packet, overload, Python function, or class of modules or of
    autograd functions."""

    def __init__(self) -> None:
        self._rules: dict[Any, Rule] = {}
        self._loaded = self._loading = False
        self._conflict: RuleConflictError | None = None
        self.broken: dict[str, str] = {}
        """Plugins that could not be imported, and why."""
        self.generation = object()
        """Changes with the rules: results that were derived with another generation are stale."""

    def add(self, operator: Any, function: Callable[..., Any], override: bool = False, contexts: bool = False) -> None:
        """Register a rule. One with ``override`` wins over those of plugins, whichever comes first.

        Raises RuleConflictError if the operator has a rule already and ``override`` is not set, InputError for
        arguments other than an operator and a function.
        """
        if not callable(function) or not (callable(operator) or isinstance(operator, str)):
            raise InputError(f"a rule from {operator!r} to {function!r}: expected an operator and a function")
        if isinstance(operator, nn.Module):
            raise InputError(f"a rule for {a_type(operator)} that exists: expected its class, or an operator")
        named = isinstance(operator, str | OpOverload | OpOverloadPacket | CustomOpDef)
        operator = operator_name(operator) if named else operator
        entry = Rule(operator, function, override, contexts)
        known = self._rules.get(operator)
        if known is not None and known.override and self._loading and not override:
            return
        if known is not None and not override:
            raise RuleConflictError(
                f"{entry.name} has two rules: {known.origin} and {entry.origin}. "
                "Remove one of them, or pass override=True to the one that should win."
            )
        self._rules[operator] = entry
        self.generation = object()

    def find(self, operator: Any) -> Rule | None:
        """The rule for an operator: its overload's, its packet's, or that of its out-of-place form."""
        self.load()
        return next((self._rules[key] for key in _keys(operator) if key in self._rules), None)

    def find_class(self, kind: type) -> Rule | None:
        """The rule for a class of modules or of autograd functions, or for the nearest class that it derives from."""
        self.load()
        return next((self._rules[base] for base in kind.__mro__ if base in self._rules), None)

    def load(self) -> None:
        """Import every rule plugin that is installed, once. One that cannot be imported is named in a warning and in
        :attr:`broken`, and does not take the others down; two rules for one operator raise RuleConflictError, now and
        at every later use."""
        if self._conflict is not None:
            raise self._conflict
        if self._loaded:
            return
        self._loaded = self._loading = True
        try:
            self._load_plugins()
        except RuleConflictError as error:
            self._conflict = error
            raise
        finally:
            self._loading = False

    def _load_plugins(self) -> None:
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
            try:
                entry.load()
            except RuleConflictError:
                raise
            except Exception as error:
                self.broken[entry.name] = f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"rule plugin {entry.name!r} ({entry.value}) cannot be imported: {self.broken[entry.name]}. "
                    "Its operators have no rule: fix or uninstall it.",
                    stacklevel=2,
                )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Take back, at the end of the context, what was registered in it."""
        self.load()
        before = dict(self._rules), self.generation
        try:
            yield
        finally:
            self._rules, self.generation = before

    def __iter__(self) -> Iterator[Rule]:
        self.load()
        return iter(self._rules.values())

    def __len__(self) -> int:
        self.load()
        return len(self._rules)


REGISTRY = Registry()


def rule(*operators: Any, override: bool = False, contexts: bool = False) -> Callable[[F], F]:
    """Register the decorated function as the rule of one or several operators.

    An operator is an overload packet (``torch.ops.aten.linear``, which covers all its overloads and its in-place
    form), a single overload, what ``torch.library.custom_op`` makes, a Python function found in graphs, or a name such
    as ``"aten::linear"`` for an operator that this torch may not have, or whose library is not loaded yet. The rule is
    called with the operation (:class:`tlfx.propagate.OpContext`) and the operator's own arguments, a
    :class:`tlfx.propagate.Value` in place of each tensor.

    A class of modules is an operator too: the module is then a leaf, its inner graph is not followed, and the rule is
    called with the operation, the module and the arguments of its forward. So is a class of autograd functions
    (:class:`torch.autograd.Function`): its rule is called with the operation, the class and the arguments of ``apply``.

    Tokens that are contracted before their query is known, kᵀv, are a context of linear attention if a query reads
    them, and content if anything else does. A rule sees them as content, unless it is one of those that pass them on
    (``contexts``), such as that of a transposition.

    Raises RuleConflictError for a second rule, naming both, unless ``override`` is set, and InputError for what is no
    operator.

    >>> @rule("my_lib::sharpen")
    ... def sharpen(op, x, amount):
    ...     '''Y ← Y.'''
    ...     return op.pointwise(x)
    >>> REGISTRY.find("my_lib.sharpen").name
    'my_lib.sharpen'
    """

    def register(function: F) -> F:
        for operator in operators:
            REGISTRY.add(operator, function, override, contexts)
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
    if isinstance(operator, str | CustomOpDef):
        return (operator if isinstance(operator, str) else custom_op_name(operator)).replace("::", ".")
    return getattr(operator, "__name__", str(operator))


def _keys(operator: Any) -> Iterator[Any]:
    """What to look an operator up by, the most special first; ``add_.Scalar`` goes by the rules of ``add.Scalar`` and
    ``add``."""
    if isinstance(operator, HigherOrderOperator):
        yield operator_name(operator)
    if not isinstance(operator, OpOverload):
        yield operator
        return
    yield operator_name(operator)
    yield operator_name(operator.overloadpacket)
    if schema(operator).is_mutable:
        functional = operator_name(operator.overloadpacket).removesuffix("_")
        yield f"{functional}.{overload_name(operator)}"
        yield functional
