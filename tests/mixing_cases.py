"""Random weights that mix labels, and the labels of each by plain float64 arithmetic (eq. 9)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import Tensor

from tlfx.runtime import Equation
from tlfx.runtime.kernel_mixing import mix_by_kernel

EQUATIONS = [
    Equation("hqm", "m", "q"),  # attention
    Equation("qm", "m", "q"),  # token mixing by parameters
    Equation("mq", "m", "q"),
    Equation("ahqm", "am", "aq"),  # windows
    Equation("aqbm", "abm", "abq"),
    Equation("qm", "cm", "cq"),  # channels whose labels differ
    Equation("cqm", "m", "cq"),  # one weight for each channel
]
LENGTHS = {"h": 3, "q": 5, "m": 6, "a": 2, "b": 3, "c": 2}
Size = Literal["absolute", "signed", "softmax"]


@dataclass(frozen=True)
class Mixing:
    """A weight, labels, those of queries without weights and of a skip path, and the size of a weight."""

    weight: Tensor
    labels: Tensor
    equation: Equation
    own: Tensor | None
    residual: Tensor | None
    size: Size

    def by_kernel(self, device: str = "cpu") -> Tensor | None:
        """Labels by the kernel."""
        weight, labels = self.weight.to(device), self.labels.to(device)
        own, residual = (None if x is None else x.to(device) for x in (self.own, self.residual))
        is_softmax, signed = self.size == "softmax", self.size == "signed"
        given: Any = {"is_softmax": is_softmax, "signed": signed, "residual": residual}
        return mix_by_kernel(weight, labels, self.equation, own, **given)

    def expected(self) -> Tensor:
        """Y ← Norm(Σ W)·Y in float64, labels (batch, queries, channels)."""
        of_weight, of_labels, out = self.equation
        w = self.weight.double().expand(len(self.labels), *self.weight.shape[1:])
        w = w if self.size == "softmax" else w.clamp_min(0) if self.size == "signed" else w.abs()
        ones = torch.ones_like(self.labels[..., 0]).double()
        mass = torch.einsum(f"B{of_weight},B{of_labels}->B{out}", w, ones)[..., None]
        if self.size == "softmax":  # rows sum to 1, but for rounding
            mass = torch.full_like(mass, math.prod(LENGTHS[c] for c in self.equation.heads))
        mixed = torch.einsum(f"B{of_weight},B{of_labels}K->B{out}K", w, self.labels.double()) / mass
        mixed = (mixed if self.own is None else torch.where(mass > 0, mixed, self.own.double())).flatten(1, -2)
        return mixed if self.residual is None else (mixed + self.residual.double()) / 2


def operands(
    equation: Equation, dtype: torch.dtype, channels: int = 2, batch: int = 2, shared: bool = False, **lengths: int
) -> tuple[Tensor, Tensor]:
    """A weight, every second of whose elements is used, and labels that sum to 1."""
    length = LENGTHS | lengths
    of_weight, of_labels = ([length[c] for c in subscripts] for subscripts in (equation.weight, equation.labels))
    weight = torch.randn(1 if shared else batch, *of_weight, 2).to(dtype)[..., 0]
    return weight, torch.rand(batch, *of_labels, channels).softmax(-1)


@st.composite
def mixings(draw: st.DrawFn) -> Mixing:
    """Up to 40 queries and 140 keys; sometimes the first query has no weights."""
    equation = draw(st.sampled_from(EQUATIONS))
    size: Size = draw(st.sampled_from(["absolute", "signed", "softmax"]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    channels, q, m = draw(st.sampled_from([1, 3])), draw(st.integers(1, 40)), draw(st.integers(1, 140))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    weight, labels = operands(equation, dtype, channels, shared=draw(st.booleans()), q=q, m=m)
    own = None
    if size == "softmax":
        weight = weight.float().softmax(equation.weight.index("m") + 1).to(dtype)
    elif draw(st.booleans()):
        weight.select(equation.weight.index("q") + 1, 0).zero_()
        own = torch.rand(len(labels), *((LENGTHS | {"q": q})[c] for c in equation.out), channels)
    elif size == "signed":  # some of each row is positive
        weight = weight.abs() + 0.1 * weight
    rows = math.prod((LENGTHS | {"q": q})[c] for c in equation.out)
    residual = torch.rand(rows, draw(st.sampled_from([1, len(labels)])), channels).transpose(0, 1)
    return Mixing(weight, labels, equation, own, draw(st.sampled_from([None, residual])), size)
