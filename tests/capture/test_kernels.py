"""Kernels of attention that a forward chooses are chosen at each aligned call, and the caller's are put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import LABEL, pictures, slow_except
from test_same_model import Net, assert_same_training, raising, target
from torch import Tensor
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import tlfx
from tlfx._torch import attention_state, set_attention_state
from tlfx.capture.kernels import choose_kernels

Body = Callable[[Any, Tensor], Tensor]
MATH, FLASH = SDPBackend.MATH, SDPBackend.FLASH_ATTENTION


@pytest.fixture(autouse=True)
def kernels_restored() -> Iterator[None]:
    """The order of the kernels after a test is that before."""
    before = attention_state()
    yield
    set_attention_state(before)


def attend(x: Tensor) -> Tensor:
    """Attention whose last bits depend on the kernel; the aligned call carries labels in the fused one."""
    x = x[:, None].contiguous()
    return F.scaled_dot_product_attention(x * 1.7, x * 0.9, x * 1.3)[:, 0]


def by_math(net: Any, x: Tensor) -> Tensor:
    with sdpa_kernel(MATH):
        return x + attend(x)


def by_flash(net: Any, x: Tensor) -> Tensor:
    with sdpa_kernel(backends=[FLASH]):
        return x + attend(x)


def by_priority(net: Any, x: Tensor) -> Tensor:
    with sdpa_kernel([MATH, FLASH], set_priority=True):
        a = attend(x)
        with sdpa_kernel([FLASH, MATH], set_priority=True):
            b = attend(x * 2)
        return a + b + attend(x * 3)


def nested(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), sdpa_kernel([MATH, FLASH]):
        a = attend(x)
        with torch.enable_grad(), sdpa_kernel(MATH):
            b = attend(x)
        c = attend(x)
    return x + a * b + c + attend(x)


@sdpa_kernel(MATH)
def decorated(net: Any, x: Tensor) -> Tensor:
    return x + attend(x)


def by_old_name(net: Any, x: Tensor) -> Tensor:
    with torch.backends.cuda.sdp_kernel(enable_flash=False):
        return x + attend(x)


def left_by_an_error(net: Any, x: Tensor) -> Tensor:
    try:
        with sdpa_kernel(MATH):
            raise KeyError
    except KeyError:
        return x + attend(x)


def under_a_checkpoint(net: Any, x: Tensor) -> Tensor:
    return x + checkpoint(lambda x: by_math(net, x) * 2, x, use_reentrant=False)


class Doubled(Function):
    """A function that chooses a kernel itself, which an aligned call runs as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with sdpa_kernel(MATH):
            return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


def in_a_function(net: Any, x: Tensor) -> Tensor:
    doubled: Tensor = Doubled.apply(x)
    return doubled + attend(x)


CHOICES = [
    by_math,
    by_flash,
    by_priority,
    nested,
    decorated,
    by_old_name,
    left_by_an_error,
    under_a_checkpoint,
    in_a_function,
]


@pytest.mark.parametrize(
    "body", slow_except((by_math, by_flash, by_priority, nested), CHOICES), ids=lambda f: f.__name__
)
@pytest.mark.filterwarnings("ignore:.*sdp_kernel.*:FutureWarning")
def test_kernels_are_those_of_the_plain_call(body: Body) -> None:
    before = attention_state()
    Net(body)(pictures())
    after = attention_state()  # sdpa_kernel restores the order of the kernels that it found allowed, not of all
    set_attention_state(before)
    aligned = assert_same_training(body)
    assert attention_state() == after
    with sdpa_kernel([FLASH]):  # allowed by the caller, also where the forward chooses another one
        within, _ = attention_state()
        output, _ = aligned(pictures(), target(3))
        assert attention_state()[0] == within
        assert torch.equal(output, aligned(pictures()))


def test_the_kernels_differ_in_the_last_bits() -> None:
    """Without this, the other tests would hold for any kernel."""
    models = [Net(body) for body in (by_math, by_flash)]
    assert not torch.equal(*(model(pictures()) for model in models))


@pytest.mark.parametrize("body", [by_math, by_flash], ids=lambda f: f.__name__)
@pytest.mark.parametrize("policy", [None, tlfx.Policy(heads="norm")], ids=["mean", "norm"])
def test_labels_do_not_depend_on_the_kernel(body: Body, policy: tlfx.Policy | None) -> None:
    def free(net: Any, x: Tensor) -> Tensor:
        return x + attend(x)

    soft, expected = (tlfx.align(Net(b), policy=policy)(pictures(), target(3))[1] for b in (body, free))
    torch.testing.assert_close(soft, expected, **LABEL)


def test_an_error_leaves_the_kernels_of_the_caller() -> None:
    def failing(net: Any, x: Tensor) -> Tensor:
        with sdpa_kernel([MATH], set_priority=True):
            y: Tensor = net.custom(x)
            return attend(y)

    doubling, fail = raising()
    model = tlfx.align(Net(failing, custom=doubling), example=pictures())
    fail()
    before = attention_state()
    with pytest.raises(RuntimeError, match="as asked"):
        model(pictures(), target(3))
    assert attention_state() == before


def test_a_capture_that_fails_leaves_the_kernels() -> None:
    def failing(net: Any, x: Tensor) -> Tensor:
        with sdpa_kernel(MATH):
            return x * float(x.sum())

    before = attention_state()
    with pytest.raises(tlfx.CaptureError):
        tlfx.align(Net(failing), example=pictures())
    assert attention_state() == before


@pytest.mark.slow
def test_compiled_models_choose_kernels() -> None:
    model = tlfx.align(Net(nested), example=pictures())
    expected = model(pictures(), target(3))
    outputs = torch.compile(model, backend="eager")(pictures(), target(3))
    assert torch.equal(outputs[0], expected[0])
    torch.testing.assert_close(outputs[1], expected[1], rtol=0, atol=1e-6)


def test_a_state_is_set_as_it_was() -> None:
    before = attention_state()
    try:
        choose_kernels((MATH.value,), True)
        assert attention_state() != before
    finally:
        set_attention_state(before)
    assert attention_state() == before
