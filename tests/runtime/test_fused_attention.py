"""Labels through the model's own attention: its bits, its gradients, and the labels of a second pass."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tlfx import runtime
from tlfx.runtime import BatchAxis, Equation, fused_attention

ONE = BatchAxis(0)
EQUATION = Equation("abnqm", "abm", "abq")
in_one_pass = partial(runtime.attention_with_labels, any_size=True)
KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def tensors(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as a packed projection leaves them."""
    batch, heads, tokens, width = shape
    packed = torch.randn(batch, tokens, 3, heads, width, generator=torch.Generator().manual_seed(seed))
    query, key, value = packed.requires_grad_().permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def by_hand(query: Tensor, key: Tensor, rows: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """softmax(q·kᵀ) averaged over heads, times labels (batch, 1, 1, m, channels) or (batch, m, channels), in float64
    (eq. 7, 9)."""
    scores = query.double() @ key.double().mT / query.shape[-1] ** 0.5 + bias
    return scores.softmax(-1).mean(1) @ rows.double().view(len(rows), *rows.shape[-2:])


def gradients(output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(output, inputs, seed)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(2, 40), st.sampled_from([8, 16, 24]), st.integers(1, 2),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_bits_gradients_and_labels(
    batch: int, heads: int, tokens: int, width: int, channels: int, masked: bool, causal: bool
) -> None:
    query, key, value = tensors(batch, heads, tokens, width)
    rows = torch.rand(batch, 1, 1, tokens, channels)
    mask = torch.randn(tokens, tokens) if masked and not causal else None
    output, label = in_one_pass(query, key, value, rows, EQUATION, ONE, mask=mask, causal=causal)
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    assert torch.equal(output, plain)
    assert output.stride() == plain.stride()
    inputs = (query, key, value)
    assert all(map(torch.equal, gradients(output, inputs), gradients(plain, inputs)))
    bias: Tensor | float = 0.0 if mask is None else mask.double()
    if causal:
        bias = torch.full((tokens, tokens), -torch.inf, dtype=torch.float64).triu(1)
    torch.testing.assert_close(label.double(), by_hand(query, key, rows, bias), rtol=0, atol=2e-6)
    assert not label.requires_grad


def test_masks_of_truth_values_and_some_queries() -> None:
    query, key, value = tensors(2, 2, 9, 8)
    rows = torch.rand(2, 1, 1, 9, 1)
    mask = torch.rand(9, 9) > 0.3
    mask.fill_diagonal_(True)
    output, label = in_one_pass(query, key, value, rows, EQUATION, ONE, mask=mask, queries=(0, 4, 5))
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    bias = torch.zeros(9, 9).masked_fill(~mask, -torch.inf)
    expected = by_hand(query, key, rows, bias)[:, [0, 4, 5]]
    torch.testing.assert_close(label.double(), expected, rtol=0, atol=2e-6)


def test_windows_in_the_batch() -> None:
    """Labels (batch, outer, inner, m, channels), the batch of the value being outer · batch · inner."""
    outer, batch, inner, tokens = 2, 3, 4, 5
    query, key, value = tensors(outer * batch * inner, 2, tokens, 8)
    rows = torch.rand(batch, outer, inner, tokens, 1)
    output, label = in_one_pass(query, key, value, rows, EQUATION, BatchAxis(0, outer, inner))
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    merged = rows.transpose(0, 1).flatten(0, 2)
    expected = by_hand(query, key, merged).unflatten(0, (outer, batch, inner)).transpose(0, 1)
    torch.testing.assert_close(label.double(), expected.flatten(1, 3), rtol=0, atol=2e-6)


def second_pass(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often labels take a separate pass."""
    seen: list[int] = []

    def counted(*args: Any, **options: Any) -> Tensor:
        seen.append(1)
        return runtime.attention(*args, **options)

    monkeypatch.setattr(fused_attention, "attention", counted)
    return seen


class ExactKernel(TorchDispatchMode):
    """The fused kernel in float64, so that it rounds alike for values of every width but those in `otherwise`."""

    def __init__(self, otherwise: Collection[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.otherwise = otherwise
        self.widths: list[int] = []
        """Of the values that it was called with."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not KERNEL:
            return func(*args, **(kwargs or {}))
        query, key, value = (t.double() for t in args[:3])
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        scores = query @ key.mT * (kwargs.get("scale") or query.shape[-1] ** -0.5)
        output = (scores.softmax(-1) @ value).to(args[0].dtype)
        self.widths.append(value.shape[-1])
        return output + (value.shape[-1] in self.otherwise), scores.logsumexp(-1).float()


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 0), ({"dropout": 0.5}, 1), ({"grouped": True}, 1), ({"channels": 8}, 1), ({"type": torch.bfloat16}, 1)],
)
def test_where_one_pass_cannot_do(options: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, grouped heads, many channels and other types than float32 take a second pass, and the same output."""
    channels, kind = options.pop("channels", 1), options.pop("type", torch.float32)
    query, key, value = (t.detach().to(kind) for t in tensors(2, 4, 19, 8))
    if options.get("grouped"):
        key, value = key[:, :2], value[:, :2]
    seen = second_pass(monkeypatch)
    rate = options.get("dropout", 0.0)
    rows = torch.rand(2, 1, 1, 19, channels)
    with ExactKernel():  # rounding is not what is asked here
        torch.manual_seed(0)
        output, label = in_one_pass(query, key, value, rows, EQUATION, ONE, **options)
        torch.manual_seed(0)
        plain = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, enable_gqa="grouped" in options)
    torch.testing.assert_close(output, plain)
    assert len(seen) == count
    assert label.dtype == torch.float32


def test_a_kernel_that_rounds_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each combination of shapes is tried once, with one column and with four; labels take a second pass."""
    query, key, value = (t.detach() for t in tensors(2, 2, 11, 8))
    rows = torch.rand(2, 1, 1, 11, 1)
    seen = second_pass(monkeypatch)
    with ExactKernel(otherwise=(9, 12)) as kernel:
        in_one_pass(query, key, value, 1 - rows, EQUATION, ONE)
        assert {9, 12} < set(kernel.widths)
        kernel.widths.clear()
        output, label = in_one_pass(query, key, value, rows, EQUATION, ONE)
        assert kernel.widths == [8]
        assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    assert len(seen) == 2
    torch.testing.assert_close(label.double(), by_hand(query, key, rows), rtol=0, atol=2e-6)


def test_columns_are_filled_up_where_the_kernel_wants_whole_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """One column rounds otherwise in long sequences, four do not; labels are those of the one."""
    query, key, value = tensors(2, 2, 50, 32)
    rows = torch.rand(2, 1, 1, 50, 1)
    seen = second_pass(monkeypatch)
    with ExactKernel(otherwise=(33,)) as kernel:
        output, label = in_one_pass(query, key, value, rows, EQUATION, ONE)
        assert not seen
        assert kernel.widths[-1] == 36
        assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(label.double(), by_hand(query, key, rows), rtol=0, atol=2e-6)


@pytest.mark.parametrize("tokens", [33, 65, 577])
@pytest.mark.parametrize("masked", [False, True])
def test_a_last_block_of_one_query(tokens: int, masked: bool) -> None:
    """It rounds by the width of the value, in few places and not for all numbers: it is computed by itself."""
    mask = torch.randn(tokens, tokens) if masked else None
    for seed in range(4):
        inputs = tensors(2, 3, tokens, 64, seed=seed)
        rows = torch.rand(2, 1, 1, tokens, 1)
        output, _ = in_one_pass(*inputs, rows, EQUATION, ONE, mask=mask)
        plain = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
        assert torch.equal(output, plain)
        assert all(map(torch.equal, gradients(output, inputs), gradients(plain, inputs)))


@pytest.mark.parametrize("tokens", [577, 1025])
def test_long_sequences(tokens: int) -> None:
    query, key, value = tensors(1, 2, tokens, 64)
    rows = torch.rand(1, 1, 1, tokens, 1)
    output, label = in_one_pass(query, key, value, rows, EQUATION, ONE)
    plain = F.scaled_dot_product_attention(query, key, value)
    assert torch.equal(output, plain)
    inputs = (query, key, value)
    assert all(map(torch.equal, gradients(output, inputs), gradients(plain, inputs)))
    torch.testing.assert_close(label.double(), by_hand(query, key, rows), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("queries", "count"), [((0,), 1), ((3, 7), 1), (tuple(range(16)), 0)])
def test_few_queries_take_a_second_pass(queries: tuple[int, ...], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (t.detach() for t in tensors(2, 2, 16, 8))
    rows = torch.rand(2, 1, 1, 16, 1)
    seen = second_pass(monkeypatch)
    with ExactKernel():
        _, label = in_one_pass(query, key, value, rows, EQUATION, ONE, queries=queries)
    assert len(seen) == count
    torch.testing.assert_close(label.double(), by_hand(query, key, rows)[:, list(queries)], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("tokens", "count"), [(128, 1), (129, 0)])
def test_few_weights_take_a_second_pass(tokens: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 2¹⁸ of them, 16 · 128 · 128, unless one pass is asked for."""
    query, key, value = (t.detach() for t in tensors(2, 8, tokens, 8))
    rows = torch.rand(2, 1, 1, tokens, 1)
    seen = second_pass(monkeypatch)
    with ExactKernel():
        labels = [f(query, key, value, rows, EQUATION, ONE)[1] for f in (runtime.attention_with_labels, in_one_pass)]
    assert len(seen) == count
    torch.testing.assert_close(*labels, rtol=0, atol=2e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_labels_take_a_second_pass() -> None:
    query, key, value = (t.detach().cuda() for t in tensors(2, 2, 33, 64))
    rows = torch.rand(2, 1, 1, 33, 1, device="cuda")
    output, label = in_one_pass(query, key, value, rows, EQUATION, ONE)
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(label.double(), by_hand(query, key, rows), rtol=0, atol=1e-3)
