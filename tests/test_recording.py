"""Labels on the way, against the slow twins, and what a recording leaves as it was."""

from __future__ import annotations

import functools
import gc
import weakref
from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers import aligned_graph, assert_same, slow_except
from hypothesis import given
from hypothesis import strategies as st
from rule_harness import several
from test_twins import TOLERANCE, inputs, rectangles, target
from torch import Tensor, nn
from twins import convnet, swin, vit
from twins.arithmetic import convolution, image_share, join, mix, residual, start
from twins.families import FAMILIES
from twins.recorder import outputs_of

import tlfx
from tlfx.aligned import planner_of
from tlfx.recording import labels_of

BATCH = 3


def vit_labels(model: Any, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Labels of a ViT after every attention and every block, (B, N) each."""
    labels = join(convolution(start(mask), model.patch_embed.proj).flatten(1), mask)
    by_module = {"pos_drop": labels}
    for number, weights in enumerate(vit.timm_maps(model, images)):
        by_module[f"blocks.{number}.attn"] = mix(weights, labels)
        by_module[f"blocks.{number}"] = labels = residual(labels, by_module[f"blocks.{number}.attn"])
    return by_module


def swin_labels(model: Any, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Labels of a Swin after every block and every patch merging, (B, H, W) each."""
    named = dict(model.named_modules())
    seen = outputs_of(model, images, [m.norm1 for m in named.values() if isinstance(m, swin.BLOCKS)])
    share, labels, by_module = image_share(mask), start(mask), {}
    for name, layer in named.items():
        if isinstance(layer, nn.Conv2d):
            labels = convolution(labels, layer)
        elif isinstance(layer, swin.MERGINGS):
            labels = swin.merge(labels)
        elif isinstance(layer, swin.BLOCKS):
            labels = residual(labels, swin.window_mixing(layer, seen[layer.norm1], labels, share))
        else:
            continue
        by_module[name] = labels
    return by_module


def convnext_labels(model: Any, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Labels of a ConvNeXt after every block, (B, H, W) each."""
    labels, by_module = convnet.along(start(mask), model.stem), {}
    for i, stage in enumerate(model.stages):
        labels = convnet.along(labels, stage.downsample)
        for j, block in enumerate(stage.blocks):
            by_module[f"stages.{i}.blocks.{j}.conv_dw"] = convolution(labels, block.conv_dw)
            by_module[f"stages.{i}.blocks.{j}"] = labels = residual(labels, convolution(labels, block.conv_dw))
    return by_module


TWINS = {
    "vit": vit_labels,
    "vit-unfused": vit_labels,
    "swin-padded": swin_labels,
    "convnext": convnext_labels,
}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float32
    assert not actual.requires_grad
    torch.testing.assert_close(actual.double(), expected, **TOLERANCE)


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return FAMILIES["vit"].model().train()


@pytest.fixture(scope="module")
def aligned(plain: nn.Module) -> nn.Module:
    return tlfx.align(deepcopy(plain))


@functools.cache
def evaluated(name: str) -> nn.Module:
    """An aligned model of a family in evaluation mode, captured once."""
    return tlfx.align(FAMILIES[name].model().eval())


@pytest.mark.parametrize("name", slow_except(("vit",), TWINS))
def test_every_block_against_its_twin(name: str) -> None:
    """One share, and several channels of which each is followed as if it were alone."""
    family = FAMILIES[name]
    plain = family.model().train()
    model = tlfx.align(deepcopy(plain))
    images, mixed = inputs(BATCH, family.size)
    with tlfx.record(model) as labels:
        logits, _ = model(images, mixed)
    assert torch.equal(logits, plain(images))
    expected = TWINS[name](plain, images, mixed.mask)
    for key, label in expected.items():
        assert_close(labels[key], label)
    masks = [rectangles(BATCH, family.size, seed) for seed in range(3)]
    output, _, several_labels = labels_of(model, images, torch.cat(masks, 1), at=list(expected))
    assert torch.equal(output, logits)
    assert several_labels.keys() == expected.keys()
    for channel, mask in enumerate(masks):
        for key, label in TWINS[name](plain, images, mask).items():
            assert_close(several_labels[key][..., channel], label)


def test_every_module_with_content_is_recorded(aligned: nn.Module) -> None:
    """By default; modules that do nothing, or that fused attention never calls, are not in the graph."""
    with tlfx.record(aligned) as labels:
        aligned(*inputs(BATCH, 32))
    modules = dict(aligned.named_modules())
    silent = {name for name in modules if name not in labels and not name.endswith("attn.attn_drop")}
    assert {type(modules[name]) for name in silent} == {nn.Identity, type(aligned)}
    assert list(labels)[:3] == ["patch_embed.proj", "patch_embed", "pos_drop"]


@pytest.mark.slow
def test_shapes_of_positions() -> None:
    """Grids with channels first or last, windows beside the batch, squares of tokens in the channels, no position."""
    images, mixed = inputs(BATCH, FAMILIES["swin"].size)
    model = evaluated("swin")
    with tlfx.record(model) as labels:
        _, soft = model(images, mixed)
    assert labels["patch_embed.proj"].shape == labels["patch_embed"].shape == (BATCH, 12, 12)
    assert labels["layers.0.blocks.0.attn"].shape == (BATCH, 9, 16)
    assert labels["head"].shape == (BATCH,)
    squares = labels["layers.0"].unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean((2, 4))
    torch.testing.assert_close(labels["layers.1.downsample.norm"], squares, **TOLERANCE)
    windows = labels["layers.0.blocks.0.attn"].view(BATCH, 3, 3, 4, 4).transpose(2, 3).reshape(BATCH, 12, 12)
    together = (labels["patch_embed"] + windows) / 2
    torch.testing.assert_close(labels["layers.0.blocks.0"], together, **TOLERANCE)
    differ = mixed.first != mixed.second
    first = soft.gather(1, mixed.first[:, None])[:, 0]
    torch.testing.assert_close(labels["head"][differ], first[differ], **TOLERANCE)


def test_nodes_by_name(aligned: nn.Module, plain: nn.Module) -> None:
    """A pattern that matches no module is one of nodes; heads are an axis."""
    images, mixed = inputs(BATCH, 32)
    with tlfx.record(aligned, at=["scaled_dot_product_attention*", "blocks.0"]) as labels:
        aligned(images, mixed)
    names = ["scaled_dot_product_attention", "scaled_dot_product_attention_1", "scaled_dot_product_attention_2"]
    assert list(labels) == [*names, "blocks.0"]
    assert set(names) <= {node.name for node in aligned_graph(aligned, images).nodes}
    expected = vit_labels(plain, images, mixed.mask)
    for number, name in enumerate(names):
        assert labels[name].shape == (BATCH, 3, 17)
        assert_close(labels[name], expected[f"blocks.{number}.attn"][:, None].expand(-1, 3, -1))


class Turns(nn.Module):
    """One module used twice, a sum written into what a module gave, and tokens that come before the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.again, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 5, padding=2)
        self.tokens_first = nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.again(x))
        y = self.last(x)
        y += x
        return self.tokens_first(y.flatten(2).permute(2, 0, 1)).permute(1, 0, 2)


def test_the_last_call_before_anything_is_written_to_it() -> None:
    model = Turns()
    mask = rectangles(BATCH, 8)
    twice = convolution(convolution(start(mask), model.again), model.again)
    last = convolution(twice, model.last)
    with tlfx.record(tlfx.align(model)) as labels:
        model(torch.randn(BATCH, 3, 8, 8), target(mask))
    assert_close(labels["again"], twice)
    assert_close(labels["last"], last)
    assert_close(labels["tokens_first"], residual(twice, last).flatten(1))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_outputs_are_those_without(training: bool) -> None:
    """Logits, buffers and gradients bit for bit, with dropout and batch statistics; soft targets to rounding."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(5)
    )
    images, mixed = inputs(BATCH, 8)
    plain(images)
    one, other = (tlfx.align(deepcopy(plain).train(training)) for _ in range(2))
    torch.manual_seed(1)
    logits, soft = one(images, mixed)
    with tlfx.record(other):
        torch.manual_seed(1)
        recorded_logits, recorded_soft = other(images, mixed)
    assert torch.equal(logits, recorded_logits)
    torch.testing.assert_close(soft, recorded_soft, **TOLERANCE)
    logits.sum().backward()
    recorded_logits.sum().backward()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)
    assert_same(list(one.buffers()), list(other.buffers()))


def test_the_latest_aligned_call(aligned: nn.Module) -> None:
    """Plain calls, plain targets and copies leave the mapping as it is; other batch sizes fill it anew."""
    images, mixed = inputs(BATCH, 32)
    with tlfx.record(aligned, at="blocks.1") as labels:
        aligned(images)
        aligned(images, target=torch.arange(BATCH))
        assert not labels
        aligned(images, mixed)
        first = labels["blocks.1"]
        aligned(images)
        deepcopy(aligned)(images, target(1 - mixed.mask))
        assert labels["blocks.1"] is first
        aligned(*inputs(BATCH + 1, 32))
        assert list(labels) == ["blocks.1"]
        assert labels["blocks.1"].shape == (BATCH + 1, 17)
    last = labels["blocks.1"]
    aligned(images, mixed)
    assert labels["blocks.1"] is last


def test_contexts_inside_one_another(aligned: nn.Module) -> None:
    """Each has what it asked for, and a graph with nothing recorded comes back after them."""
    images, mixed = inputs(BATCH, 32)
    aligned(images, mixed)
    code = tlfx.aligned_code(aligned)
    with tlfx.record(aligned, at="blocks.0") as outer:
        with tlfx.record(aligned, at=("blocks.*.attn", "add_1")) as inner:
            aligned(images, mixed)
        assert list(outer) == ["blocks.0"]
        assert set(inner) == {*(f"blocks.{i}.attn" for i in range(3)), "add_1"}
        kept = dict(inner)
        before = outer["blocks.0"]
        aligned(images, target(1 - mixed.mask))
        assert all(inner[name] is kept[name] for name in kept)
        torch.testing.assert_close(outer["blocks.0"], 1 - before, **TOLERANCE)
    aligned(images, mixed)
    assert tlfx.aligned_code(aligned) == code


def test_graphs_are_written_once_and_labels_are_freed(plain: nn.Module) -> None:
    aligned = tlfx.align(deepcopy(plain))
    images, mixed = inputs(BATCH, 32)
    aligned(images, mixed)
    planner = planner_of(aligned)
    for _ in range(2):
        with tlfx.record(aligned) as labels:
            aligned(images, mixed)
    assert len(planner.captures) == 1
    assert len(planner.plans) == 2
    label = weakref.ref(labels["blocks.0"])
    del labels
    gc.collect()
    assert label() is None
    assert not planner.recorders


def test_an_error_ends_the_recording(aligned: nn.Module) -> None:
    with pytest.raises(ZeroDivisionError), tlfx.record(aligned):
        raise ZeroDivisionError
    assert not planner_of(aligned).recorders


def test_under_autocast(aligned: nn.Module, plain: nn.Module) -> None:
    images, mixed = inputs(BATCH, 32)
    with torch.autocast("cpu", torch.bfloat16), tlfx.record(aligned, at="blocks.2") as labels:
        logits, _ = aligned(images, mixed)
        assert torch.equal(logits, plain(images))
    assert labels["blocks.2"].dtype == torch.float32
    expected = vit_labels(plain, images, mixed.mask)["blocks.2"]
    assert (labels["blocks.2"] - expected).abs().max() < 0.05


@pytest.mark.parametrize("name", slow_except(("vit",), ("vit", "swin")))
@several(8)
@given(weight=st.floats(-2, 2, width=32), seed=st.integers(0, 2**16), batch=st.integers(1, 4))
def test_labels_are_linear_in_the_mask(name: str, weight: float, seed: int, batch: int) -> None:
    """Whatever the initial label holds; a constant stays constant, and samples keep to themselves."""
    generator = torch.Generator().manual_seed(seed)
    size = FAMILIES[name].size
    images = torch.randn(batch, 3, size, size, generator=generator)
    one, other = torch.rand(2, batch, 2, size, size, generator=generator)
    other[:, 1] = 0.25

    def labels(mask: Tensor) -> dict[str, Tensor]:
        return labels_of(evaluated(name), images, mask)[2]

    blended, first, second = labels(weight * one + (1 - weight) * other), labels(one), labels(other)
    alone = labels(torch.cat((one[:1], other[1:])))
    for name, label in blended.items():
        torch.testing.assert_close(label, weight * first[name] + (1 - weight) * second[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(second[name][..., 1], torch.full_like(label[..., 1], 0.25), rtol=0, atol=1e-6)
        assert torch.equal(alone[name][0], first[name][0])


def test_one_mask_for_the_batch_and_labels_of_outputs(aligned: nn.Module) -> None:
    images, mixed = inputs(BATCH, 32)
    output, shares, labels = labels_of(aligned, images, mixed.mask[:1])
    assert output.shape == (BATCH, 5)
    assert shares.shape == (BATCH, 1)
    assert labels["head"].shape == (BATCH, 1)
    torch.testing.assert_close(shares, labels["head"])


# errors


def test_a_model_that_is_not_aligned(plain: nn.Module) -> None:
    words = r"VisionTransformer is not aligned: call tlfx.align\(model\) first"
    with pytest.raises(tlfx.InputError, match=words), tlfx.record(plain):
        pass
    with pytest.raises(tlfx.InputError, match=words):
        labels_of(plain, torch.randn(BATCH, 3, 32, 32), torch.rand(BATCH, 1, 32, 32))


@pytest.mark.parametrize("at", [3, [], ["blocks.0", 1]])
def test_at_is_no_pattern(aligned: nn.Module, at: Any) -> None:
    words = r"at=.*: expected patterns of modules or graph nodes such as 'blocks\.\*', or None for all"
    with pytest.raises(tlfx.InputError, match=words), tlfx.record(aligned, at=at):
        pass


def test_a_pattern_that_matches_nothing(aligned: nn.Module) -> None:
    images, mixed = inputs(BATCH, 32)
    words = r"'block.1' matches no module and no graph node that carries labels; near it are 'blocks.1', "
    with tlfx.record(aligned, at=["blocks.0", "block.1"]) as labels:
        with pytest.raises(tlfx.InputError, match=words):
            aligned(images, mixed)
        assert not labels
    with tlfx.record(aligned, at="zzz"), pytest.raises(tlfx.InputError, match=r"near it are 'patch_embed.proj', "):
        aligned(images, mixed)
    with (
        tlfx.record(aligned, at="fc_norm"),
        pytest.raises(tlfx.InputError, match=r"an identity, .* name the module aro"),
    ):
        aligned(images, mixed)
    aligned(images, mixed)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (1, 1, 16, 16), (32, 32)])
def test_a_mask_of_another_shape(aligned: nn.Module, shape: tuple[int, ...]) -> None:
    words = r"mask has shape \(.*\), expected \(3 or 1, channels, 32, 32\): one label for each pixel"
    with pytest.raises(tlfx.TargetError, match=words):
        labels_of(aligned, inputs(BATCH, 32)[0], torch.rand(shape))
