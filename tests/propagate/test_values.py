"""Values: their shape, their role and their maps."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph

from tlfx.propagate.values import Role, Value
from tlfx.runtime import BatchAxis


def test_a_value_knows_its_ids() -> None:
    """(tokens, batch, channels) with two tokens and a batch of two."""
    node = Graph().placeholder("x")
    content = torch.tensor([[6, 7], [8, 9]]).view(2, 2, 1)
    value = Value(node, (2, 2, 5), 2, Role.CONTENT, (content,))
    assert value.is_content
    assert value.batch_axis == BatchAxis(1)
    assert value.ids.flatten().tolist() == [3, 4]
    assert value.expanded()[0].shape == (2, 2, 5)
    moved = value.with_maps(content + 2)
    assert moved.ids.flatten().tolist() == [4, 5]
    assert value.ids.flatten().tolist() == [3, 4]


def test_a_constant_has_no_map() -> None:
    value = Value(Graph().placeholder("x"), (2, 3), 2)
    assert value.is_constant
    assert value.expanded() == ()
    with pytest.raises(ValueError, match="not enough values"):
        _ = value.map
