"""Learned tokens: constants that join tokens with content (class, register and mask tokens, eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node

from tlfx.graph.nodes import shapes
from tlfx.propagate.values import Role, Value

__all__ = ["LearnedTokens"]


class LearnedTokens:
    """Constants that a concatenation joins to tokens, and so have the image-level label wherever else they are read.

    A graph may read such a constant before the concatenation shows that it is a token. Propagation then runs a second
    pass, which knows the tokens of the first.
    """

    def __init__(self, known: Mapping[Node, Tensor] | None = None) -> None:
        self._known = dict(known or {})
        self._joined: dict[Node, Tensor] = {}

    def note(self, x: Value, content: Tensor) -> None:
        """Note a constant that joins tokens, and the map that it has as one of them."""
        # stack joins a constant with one axis more than its node has, so that the map does not fit the node
        if shapes(x.node) == [x.shape]:
            self._joined[x.node] = content

    def as_token(self, value: Value) -> Value:
        """A constant with its map as a token, if an earlier pass found that it is one."""
        content = self._known.get(value.node)
        return value if content is None else value.with_maps(content, role=Role.CONTENT)

    def joined(self, values: Mapping[Node, Any]) -> dict[Node, Value]:
        """The values, as tokens, of all constants that joined tokens."""
        constants = {n: values[n] for n in self._joined if isinstance(values[n], Value) and values[n].is_constant}
        return {n: value.with_maps(self._joined[n], role=Role.CONTENT) for n, value in constants.items()}

    def for_next_pass(self) -> dict[Node, Tensor]:
        """The tokens that another pass has to know; empty if this pass read none of them as a constant."""
        # a constant with one user is read by the concatenation alone
        new = {node: content for node, content in self._joined.items() if len(node.users) > 1}
        return {} if new.keys() <= self._known.keys() else {**self._known, **new}
