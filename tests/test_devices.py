"""Aligned models on the CPU, and on a GPU if there is one: outputs of the plain model, and the same targets on both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import helpers
import pytest
import torch
from attention_cases import Case, cases
from helpers import convnext, slow_except
from hypothesis import given, settings
from mixing_cases import Mixing, mixings
from sliding_cases import Sliding, slidings
from torch import nn

import tlfx
from tlfx import mix, runtime
from tlfx.aligned import planner_of
from tlfx.analysis.invariants import rectangles
from tlfx.analysis.speed import Settings, bench
from tlfx.capture.arguments import Call
from tlfx.runtime import BatchAxis, Equation
from tlfx.runtime.kernel_attention import attention_by_kernel

SIDE, CLASSES, BATCH = 32, 5, 4
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
RARELY_CPU = [pytest.param("cpu", marks=pytest.mark.slow), DEVICES[1]]
"""For tests that others make on the CPU by default (test_aligned.py, analysis/test_speed.py)."""
MIXERS: dict[str, Callable[[], mix.Mixer]] = {
    "timm": lambda: mix.Mixup(0.8, 1.0, num_classes=CLASSES),
    "cutmix": lambda: mix.CutMix(num_classes=CLASSES, mode="elem"),
    "patches": lambda: mix.RandomPatchMix(patch_size=8, num_classes=CLASSES),
    "blocks": lambda: mix.BlockMix(patch_size=4, min_block=4, num_classes=CLASSES),
    "grid": lambda: mix.GridMix(images=3, num_classes=CLASSES),
    "resize": lambda: mix.ResizeMix(num_classes=CLASSES),
    "attentive": lambda: mix.AttentiveCutMix(nn.AvgPool2d(8).eval(), patches=3, num_classes=CLASSES),
}


@pytest.fixture(autouse=True)
def deterministic_kernels() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


vit = partial(helpers.vit, img_size=SIDE, patch_size=8, embed_dim=32)


def batch_on(device: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, tlfx.MixedTarget]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    labels = torch.arange(BATCH) % CLASSES
    mask = rectangles(BATCH, (SIDE, SIDE), seed=0)
    target = tlfx.MixedTarget(first=labels, second=labels.flip(0), mask=mask, num_classes=CLASSES)
    return images.to(device, dtype), target.to(device)


@pytest.mark.parametrize("device", RARELY_CPU)
@pytest.mark.parametrize("build", [pytest.param(vit, id="vit"), convnext])
def test_a_step_is_that_of_the_plain_model(build: Callable[[], nn.Module], device: str) -> None:
    """Captured on the CPU first, then moved: the model and its labels follow the device."""
    plain = build()
    aligned = tlfx.align(deepcopy(plain))
    with torch.no_grad():
        _, reference = deepcopy(aligned)(*batch_on("cpu"))
    plain, aligned = plain.to(device), aligned.to(device)
    images, target = batch_on(device)
    logits, soft = aligned(images, target)
    expected = plain(images)
    assert soft.device == logits.device == images.device
    assert torch.equal(logits, expected)
    torch.testing.assert_close(soft.cpu(), reference, rtol=0.0, atol=1e-5)
    for output in (logits, expected):
        nn.functional.cross_entropy(output, soft).backward()
    for ours, theirs in zip(aligned.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", RARELY_CPU)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_channels_last(device: str, dtype: torch.dtype) -> None:
    plain = vit().to(device).to(memory_format=torch.channels_last)
    aligned = tlfx.align(deepcopy(plain))
    images, target = batch_on(device)
    images = images.to(memory_format=torch.channels_last)
    with torch.autocast(device, dtype):
        logits, soft = aligned(images, target)
        expected = plain(images)
    assert logits.dtype == dtype
    assert torch.equal(logits, expected)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(1), torch.ones_like(soft[:, 0]))


@needs_gpu
@pytest.mark.parametrize("name", ["timm", "cutmix", "patches", "grid"])
def test_mixing_and_an_aligned_step_do_not_wait_for_the_gpu(name: str) -> None:
    model = tlfx.align(vit().cuda())
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE, device="cuda"), torch.arange(BATCH, device="cuda")
    model(*MIXERS[name]()(images, labels))  # a capture may wait
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits, soft = model(*MIXERS[name]()(images, labels))
        torch.nn.functional.cross_entropy(logits, soft).backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attention", slow_except(("reuse",), ("auto", "fused", "reuse")))
def test_ways_of_attention_agree(attention: Any, device: str) -> None:
    images, target = batch_on(device)
    model = vit().to(device)
    with torch.no_grad():
        _, reference = tlfx.align(deepcopy(model).cpu(), attention="fused")(*batch_on("cpu"))
        _, soft = tlfx.align(model, attention=attention)(images, target)
    torch.testing.assert_close(soft.cpu(), reference, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("device", RARELY_CPU)
@pytest.mark.parametrize("policy", [tlfx.Policy(heads="norm"), tlfx.Policy(residual="norm"), "influence"])
def test_policies_are_those_of_the_cpu(policy: Any, device: str) -> None:
    images, target = batch_on(device)
    model = vit().to(device)
    with torch.no_grad():
        _, near = tlfx.align(deepcopy(model).cpu(), policy=policy)(*batch_on("cpu"))
        _, soft = tlfx.align(model, policy=policy)(images, target)
    torch.testing.assert_close(soft.cpu(), near, rtol=0.0, atol=1e-5)


@needs_gpu
@settings(max_examples=60)
@given(cases(most=150, width=256))
def test_the_kernel_for_labels_of_attention(case: Case) -> None:
    """Compiled, on all types, strides and masks, against plain float64 arithmetic; tests/runtime interprets it."""
    args, options = case.given("cuda")
    label = attention_by_kernel(*args, **options)
    assert label is not None
    torch.testing.assert_close(label.double().cpu(), case.expected(), rtol=0.0, atol=2e-6)


@needs_gpu
@settings(max_examples=60)
@given(mixings())
def test_the_kernel_for_labels_mixed_by_weights(case: Mixing) -> None:
    label = case.by_kernel("cuda")
    assert label is not None
    torch.testing.assert_close(label.double().cpu(), case.expected(), rtol=0.0, atol=2e-6)


@needs_gpu
@settings(max_examples=60)
@given(slidings())
def test_the_kernel_for_labels_under_a_convolution(case: Sliding) -> None:
    label = case.by_kernel("cuda")
    assert label is not None
    torch.testing.assert_close(label.double().cpu(), case.expected(), rtol=0.0, atol=2e-6)


@needs_gpu
def test_offsets_of_more_than_32_bits() -> None:
    """Queries and keys are rows of a tensor, the last of which begins after more than 2³¹ elements."""
    apart, distance = torch.empty(40 * 2**26, dtype=torch.bfloat16, device="cuda"), 2**26
    query, key = (
        apart.as_strided((1, 1, n, 16), (0, 0, distance, 1), first).normal_() for n, first in ((40, 0), (24, 16))
    )
    labels = torch.rand(1, 1, 1, 24, 1, device="cuda")
    equation = Equation("abhqm", "abm", "abq")
    label = attention_by_kernel(query, key, labels, equation, where=BatchAxis(0))
    assert label is not None
    near = runtime.attention(query.cpu(), key.cpu(), labels.cpu(), equation, where=BatchAxis(0))
    torch.testing.assert_close(label.cpu(), near, rtol=0.0, atol=2e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "heads", "width"), [(torch.float64, 4, 32), (torch.float32, 1, 288)])
def test_attention_that_the_kernel_does_not_take(dtype: torch.dtype, heads: int, width: int, device: str) -> None:
    """float64, and heads wider than 256: labels by torch's operators."""
    plain = vit(num_heads=heads, embed_dim=max(width, 32)).to(device, dtype)
    images, target = batch_on(device, dtype)
    model = tlfx.align(deepcopy(plain))
    with torch.no_grad():
        logits, soft = model(images, target)
        _, near = tlfx.align(deepcopy(plain).cpu(), attention="fused")(*batch_on("cpu", dtype))
        assert torch.equal(logits, plain(images))
    torch.testing.assert_close(soft.cpu(), near, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("device", RARELY_CPU)
@pytest.mark.parametrize("build", [pytest.param(vit, id="vit"), convnext])
def test_a_compiled_step(build: Callable[[], nn.Module], device: str) -> None:
    """By inductor without a break: the labels of the model that is not compiled."""
    torch.compiler.reset()
    images, target = batch_on(device)
    model = tlfx.align(build().to(device), example=images)
    with torch.no_grad():
        _, near = model(images, target)
    logits, soft = torch.compile(model, fullgraph=True)(images, target)
    nn.functional.cross_entropy(logits, soft).backward()
    torch.testing.assert_close(soft, near, rtol=0.0, atol=1e-5)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("device", RARELY_CPU)
@pytest.mark.parametrize("build", [pytest.param(vit, id="vit"), convnext])
def test_deterministic_algorithms(build: Callable[[], nn.Module], device: str) -> None:
    """All operators of labels have one, and each step gives the bits of the first."""
    torch.use_deterministic_algorithms(True)
    try:
        model = tlfx.align(build().to(device))
        steps = [model(*batch_on(device)) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*steps, strict=True))


@needs_gpu
@pytest.mark.parametrize("fused", [True, False])
def test_two_kernels_are_added_for_each_attention_block(fused: bool) -> None:
    models: Any = [vit(depth=depth).cuda() for depth in (2, 4)]
    for block in (block for model in models for block in model.blocks):
        block.attn.fused_attn = fused
    added = [kernels_of_labels(model) for model in models]
    assert added[1] - added[0] <= 2 * 2


@needs_gpu
def test_two_kernels_are_added_for_each_convolution() -> None:
    def model(depth: int) -> nn.Module:
        convolutions = (nn.Conv2d(3, 3, 3, padding=1, groups=3) for _ in range(depth))
        return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES)).cuda()

    assert kernels_of_labels(model(4)) - kernels_of_labels(model(2)) <= 2 * 2


def kernels_of_labels(model: nn.Module) -> int:
    """How many kernels an aligned call launches beside those of the captured graph."""
    model, (images, target) = tlfx.align(model), batch_on("cuda")
    graph = planner_of(model).plan(model, Call.of(images)).captured.graph_module
    return kernels(partial(model, images, target)) - kernels(partial(graph, images))


def kernels(call: Callable[[], Any]) -> int:
    """Number of kernels that a call launches."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type.name == "CUDA"]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MIXERS)
def test_mixers_stay_on_the_device(name: str, device: str) -> None:
    images, target = batch_on(device)
    mixed, mixed_target = MIXERS[name]()(images, target["first"])
    assert {mixed.device, mixed_target.mask.device, mixed_target.area().device} == {images.device}
    model = tlfx.align(nn.Sequential(nn.Conv2d(3, CLASSES, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(device))
    _, soft = model(mixed, mixed_target)
    torch.testing.assert_close(soft, mixed_target.area(), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("device", RARELY_CPU)
def test_steps_are_timed_on_the_device(device: str) -> None:
    model = nn.Sequential(vit(), nn.Linear(CLASSES, 1000)).to(device)
    timings = bench(model, (3, SIDE, SIDE), Settings(batch=BATCH, pairs=2, warm_up=1, device=device))
    assert {"plain", "captured", "aligned"} <= set(timings)
    for timing in timings.values():
        assert len(timing.seconds) == len(timing.plain) == 2
        assert min(timing.seconds + timing.plain) > 0.0
        assert min(timing.memory, timing.plain_memory) > 0
