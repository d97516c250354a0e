"""Random calls of attention on labels, and the labels of each by plain float64 arithmetic (eq. 7, 9)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tlfx.runtime import BatchAxis, Equation, split_batch

TYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """The arguments of ``tlfx.runtime.attention``."""

    query: Tensor
    key: Tensor
    labels: Tensor
    equation: Equation
    own: Tensor | None
    options: dict[str, Any]

    def given(self, device: str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments on a device."""
        args = (self.query, self.key, self.labels, self.equation, self.own)
        moved = [x.to(device) if isinstance(x, Tensor) else x for x in args]
        return tuple(moved), {k: x.to(device) if isinstance(x, Tensor) else x for k, x in self.options.items()}

    def expected(self) -> Tensor:
        """Labels (batch, queries, channels), float64."""
        query, key, scale = self.query.double(), self.key.double(), self.options["scale"]
        if key.dim() > 2 and key.shape[-3] != query.shape[-3]:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        mask = self.options["mask"]
        if self.options["causal"]:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
        weight = split_batch(scores.softmax(-1), self.options["where"]).nan_to_num(0.0)
        of_weight, of_labels, out = self.equation
        mixed = torch.einsum(f"B{of_weight},B{of_labels}K->B{out}K", weight, self.labels.double())
        mass = torch.einsum(f"B{of_weight}->B{out}", weight)[..., None]
        mixed = mixed / mass if self.own is None else torch.where(mass > 0, mixed / mass, self.own.double())
        queries = self.options["queries"]
        mixed = (mixed if queries is None else mixed[..., list(queries), :]).flatten(1, -2)
        residual = self.options.get("residual")
        return mixed if residual is None else (mixed + residual.double()) / 2


def strided(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """Random numbers: contiguous, heads beside tokens as a packed projection has them, or every second channel."""
    if layout == "packed":
        return torch.randn(*shape[:-3], shape[-2], shape[-3], shape[-1]).to(dtype).transpose(-2, -3)
    return torch.randn(*shape, 2).to(dtype)[..., 0] if layout == "sparse" else torch.randn(shape).to(dtype)


@st.composite
def cases(draw: st.DrawFn, most: int = 20, width: int = 20) -> Case:
    """Calls with up to ``most`` tokens and heads up to ``width`` wide: windows in the batch, batches behind the heads,
    heads in the batch, grouped queries, masks of both kinds that broadcast, some queries."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    batch, outer, inner = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    heads, shared = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]))
    n, m, d = draw(st.integers(1, most)), draw(st.integers(1, most)), draw(st.integers(1, width))
    channels = draw(st.sampled_from([1, 1, 3]))
    form = draw(st.sampled_from(["windows", "batch behind", "heads in the batch"]))
    lead: tuple[int, ...] = (outer * batch * inner, heads)
    where, equation = BatchAxis(0, outer, inner), Equation("abhqm", "abm", "abq")
    labels: tuple[int, ...] = (outer, inner, m)
    if form == "batch behind":
        lead, where = (3, batch, heads), BatchAxis(1)
        equation, labels = Equation("cabhqm", "cabm", "cabq"), (3, 1, 1, m)
    elif form == "heads in the batch":
        lead, where = (batch * heads,), BatchAxis(0, 1, heads)
        equation, labels = Equation("ahqm", "am", "aq"), (1, m)
    of_key = lead if len(lead) == 1 else (*lead[:-1], shared)
    dtype, layout = draw(st.sampled_from(TYPES)), draw(st.sampled_from(["contiguous", "packed", "sparse"]))
    layout = layout if len(lead) > 1 else "sparse"
    kind = draw(st.sampled_from(["none", "bool", "float", "causal"]))
    mask, own = None, None
    shape = [draw(st.sampled_from([1, size])) for size in lead] + [draw(st.sampled_from([1, n])), m]
    if kind == "bool":
        mask = torch.rand(shape) > draw(st.sampled_from([0.1, 0.9]))  # often no key at all
        own = torch.rand(batch, *labels[:-1], n, channels)
    elif kind == "float":
        mask = torch.randn(shape).to(dtype)
    queries = draw(st.sampled_from([None, tuple(range(n // 2, n)), tuple(sorted({0, n // 2, n - 1}))]))
    rows = math.prod(labels[:-1]) * (n if queries is None else len(queries))
    residual = torch.rand(rows, draw(st.sampled_from([1, batch])), channels).transpose(0, 1)
    options = {
        "where": where,
        "residual": draw(st.sampled_from([None, residual])),
        "mask": mask,
        "causal": kind == "causal",
        "scale": draw(st.sampled_from([None, 0.3])),
    }
    return Case(
        strided((*lead, n, d), dtype, layout),
        strided((*of_key, m, d), dtype, layout),
        torch.rand(batch, *labels, channels),
        equation,
        own,
        {**options, "queries": queries},
    )
