"""Every operator that vision models are made of has a rule."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._ops import OpOverload

from tlfx import RuleConflictError
from tlfx.rules.registry import REGISTRY, Registry, rule

aten = torch.ops.aten
NAMES = (Path(__file__).parent.parent / "data" / "operators.txt").read_text().splitlines()
"""The operators that torch.export leaves in the smallest model of each of timm's families in training mode."""
BEYOND = (
    "ge",
    "where",
    "eq",
    "ne",
    "lt",
    "masked_fill",
    "floor",
    "clamp",
    "embedding",
    "bmm",
    "unflatten",
    "max",
    "argsort",
    "gather",
    "topk",
    "fill_",
    "zero_",
    "new_zeros",
    "uniform_",
    "tile",
    "var",
    "sqrt",
    "clone",
    "alias",
    "lift_fresh_copy",
    "detach",
    "reciprocal",
    "fft_fft2",
    "view_as_real",
    "swapaxes",
    "tanh",
    "tensor_split",
    "conv3d",
    "max_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool3d",
    "einsum",
)
"""Operators seen in Hugging Face's, vit-pytorch's and torchvision's models beside those."""
WITHOUT_RULE = {
    "<built-in function mul>": "arithmetic on sizes",
    "aten._assert_tensor_metadata.default": "a check, erased at capture",
    "aten.meshgrid.indexing": "positions, made from constants",
    "wrap_with_autocast": "inlined at capture",
    "wrap_with_set_grad_enabled": "inlined at capture",
}


def resolve(name: str) -> Any:
    """The operator of a name such as ``aten.add.Tensor``."""
    if name.startswith("<built-in function"):
        return getattr(operator, name.split()[-1].rstrip(">"))
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def takes_tensors(target: Any) -> bool:
    """Whether an operator has any tensor argument; one without makes constants."""
    return not isinstance(target, OpOverload) or any("Tensor" in str(a.type) for a in target._schema.arguments)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in WITHOUT_RULE])
def test_operators_of_timm_have_a_rule(name: str) -> None:
    target = resolve(name)
    assert REGISTRY.find(target) is not None or not takes_tensors(target)


@pytest.mark.parametrize("name", BEYOND)
def test_operators_beyond_timm_have_a_rule(name: str) -> None:
    packet = getattr(aten, name)
    overloads = [getattr(packet, o) for o in packet.overloads() if "out" not in o and "dimname" not in o.lower()]
    rules = [REGISTRY.find(o) for o in overloads if takes_tensors(o)]
    assert rules
    assert None not in rules


def test_exceptions_are_needed() -> None:
    assert set(WITHOUT_RULE) <= set(NAMES)
    resolvable = [n for n in WITHOUT_RULE if not n.startswith("wrap_")]
    assert [n for n in resolvable if REGISTRY.find(resolve(n)) is not None] == []


def test_every_rule_says_what_it_does() -> None:
    """A docstring each, and a name that leads to its file."""
    for entry in REGISTRY:
        assert entry.function.__doc__, entry.origin
        assert entry.name in str(entry.operator) or callable(entry.operator)


def test_one_rule_for_each_operator() -> None:
    registry = Registry()
    registry.add(aten.relu, test_one_rule_for_each_operator)
    with pytest.raises(RuleConflictError, match=r"aten.relu has two rules: .*test_one_rule_for_each_operator"):
        registry.add(aten.relu, resolve)
    registry.add(aten.relu, resolve, override=True)
    assert next(r for r in registry if r.name == "aten.relu").function is resolve


def test_a_second_rule_raises_where_it_is_written() -> None:
    with pytest.raises(RuleConflictError, match=r"tlfx_rules\.pointwise\.activation"):
        rule(aten.relu)(resolve)


def test_the_most_special_rule_wins() -> None:
    """An overload before its operator, an operator before what it is the in-place form of."""
    registry = Registry()
    registry.add(aten.add, takes_tensors)
    assert registry.find(aten.add_.Tensor).function is takes_tensors
    registry.add(aten.add_, resolve)
    assert registry.find(aten.add_.Tensor).function is resolve
    registry.add(aten.add.Scalar, test_exceptions_are_needed)
    assert registry.find(aten.add.Scalar).function is test_exceptions_are_needed
    assert registry.find(aten.add.Tensor).function is takes_tensors
    assert registry.find(aten.mul.Tensor) is None
