"""What an aligned graph launches on a GPU, by fake tensors: they have the device of a GPU and no data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from residual_blocks import attention, residuals
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tlfx.propagate import Options
from tlfx.rewrite.segments import segmented
from tlfx.trace import trace

pytest.importorskip("triton")
SIDE, BATCH = 16, 2
GPU = torch.device("cuda", 0)


class Launches(TorchDispatchMode):
    """Counts operators, but for views, empty tensors and questions, which launch nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.namespace != "prim" and "empty" not in str(func):
            self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "fused attention": lambda depth: attention(depth, fused=True),
    "written attention": lambda depth: attention(depth, fused=False),
    "convolution": residuals(lambda: nn.Conv2d(3, 3, 3, padding=1)),
    "dilated convolution": residuals(lambda: nn.Conv2d(3, 3, 3, padding="same", dilation=2, groups=3)),
    "pool": residuals(lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
}
ADDED = {
    "fused attention": {"tlfx.attention_labels.default": 1},
    "written attention": {"tlfx.mix_labels.default": 1},
    "convolution": {"tlfx.convolve_labels.default": 1, "aten.linalg_vector_norm.default": 1},
    "dilated convolution": {"tlfx.convolve_labels.default": 1, "aten.linalg_vector_norm.default": 1},
    "pool": {"tlfx.convolve_labels.default": 1},
}


def launched(model: nn.Module) -> tuple[Counter[str], list[Tensor]]:
    """What labels launch, beside what the captured graph launches, and the labels."""
    traced = trace(model.eval(), torch.randn(BATCH, 3, SIDE, SIDE), Options(attention="fused"))
    program, plain = segmented(traced.aligned), traced.captured.graph_module
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for module in (*model.modules(), *program.modules()):
            for held in (module._parameters, module._buffers):
                held.update({name: on_gpu(x) for name, x in held.items() if x is not None})
        images, mask = (torch.empty(BATCH, channels, SIDE, SIDE, device=GPU) for channels in (3, 1))
        with Launches() as of_both:
            _, labels = program(images, mask)
        with Launches() as of_model:
            plain(images)
    return of_both.count - of_model.count, labels


def on_gpu(x: Tensor) -> Any:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=GPU)


@pytest.mark.parametrize("kind", MODELS)
def test_what_a_block_launches(kind: str) -> None:
    (few, labels), (many, _) = (launched(MODELS[kind](depth)) for depth in (2, 4))
    assert {name: n // 2 for name, n in (many - few).items()} == ADDED[kind]
    assert all(label.device == GPU for label in labels)
