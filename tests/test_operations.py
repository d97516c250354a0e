"""The operations of Table 10."""

from __future__ import annotations

import pytest

from tlfx import Operation

TABLE_10 = {
    "spatial_mix": "Y ← Norm(W)·Y",
    "channel_mix": "Y ← Y",
    "pointwise": "Y ← Y",
    "residual": "Y ← Norm(Y + g(Y))",
    "aggregation": "Y ← Norm(Σ Yᵢ)",
}


@pytest.mark.parametrize("name", TABLE_10)
def test_formulas_of_the_paper(name: str) -> None:
    assert Operation(name).formula == TABLE_10[name]


def test_every_node_of_a_graph_has_a_class() -> None:
    """Three beside the table: movement, mixing weights, constants."""
    assert {o.value for o in Operation} - set(TABLE_10) == {"layout", "weight", "constant"}
    assert all(o.formula for o in Operation)


def test_what_may_compute_new_rows() -> None:
    """Just the rules that change Y."""
    assert {o for o in Operation if o.has_label_arithmetic} == {o for o in Operation if "Norm" in o.formula}
