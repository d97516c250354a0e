"""Labels, tokens and class attention of layers, against attention rollout written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import slow_except
from rollout import initial, mixing_matrices
from timm.models.cait import Cait
from torch import Tensor, nn
from twins.arithmetic import attention, uniform
from twins.families import FAMILIES, randomise
from twins.recorder import outputs_of
from twins.vit import timm_maps

from tlfx.analysis.probe import Arrival, Probe, Reading

CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-6}


def read(name: str, count: int = 3, at: list[str] | None = None) -> tuple[Any, Tensor, Tensor, list[Reading], Arrival]:
    """A model, images, masks of two channels, what its layers hold, and the label of its output."""
    family = FAMILIES[name]
    model = family.model().eval()
    chance = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, family.size, family.size, generator=chance)
    mask = torch.rand(count, 2, family.size, family.size, generator=chance)
    readings, arrival = Probe(model, images.shape[1:], at)(images, mask)
    return model, images, mask, readings, arrival


@pytest.fixture(scope="module")
def read_vit() -> tuple[Any, Tensor, Tensor, list[Reading], Arrival]:
    """The small vision transformer, on three images: an odd number for a graph of two."""
    return read("vit")


def test_labels_are_those_of_rollout(read_vit: tuple[Any, Tensor, Tensor, list[Reading], Arrival]) -> None:
    model, images, mask, readings, arrival = read_vit
    assert [r.layer.path for r in readings] == ["blocks.0", "blocks.1", "blocks.2"]
    start = torch.stack([initial(model, mask[:, k : k + 1]) for k in range(2)], -1)
    for reading, matrix in zip(readings, mixing_matrices(model, images), strict=True):
        expected = matrix @ start
        torch.testing.assert_close(reading.labels.double(), expected, **CLOSE)
        torch.testing.assert_close(reading.map.double(), expected[:, 1:].unflatten(1, (4, 4)), **CLOSE)
        torch.testing.assert_close(reading.share.double(), expected[:, 0], **CLOSE)
    torch.testing.assert_close(arrival.label, readings[-1].share, **CLOSE)


def test_tokens_are_those_of_the_model(read_vit: tuple[Any, Tensor, Tensor, list[Reading], Arrival]) -> None:
    model, images, _, readings, _ = read_vit
    seen = outputs_of(model, images, model.blocks)
    for reading, block in zip(readings, model.blocks, strict=True):
        torch.testing.assert_close(reading.tokens, seen[block], rtol=0, atol=1e-5)
        torch.testing.assert_close(reading.read_tokens, seen[block][:, :1], rtol=0, atol=1e-5)


def test_class_attention_is_that_of_transmix(
    read_vit: tuple[Any, Tensor, Tensor, list[Reading], Arrival],
) -> None:
    """Attention of the class token to the patches, normalised over them, on labels that stay where they were."""
    model, images, mask, readings, _ = read_vit
    for reading, weights in zip(readings, timm_maps(model, images), strict=True):
        to_patches = weights[:, 0, 1:] / weights[:, 0, 1:].sum(1, keepdim=True)
        for k in range(2):
            expected = (to_patches * initial(model, mask[:, k : k + 1])[:, 1:]).sum(1)
            torch.testing.assert_close(reading.class_attention[:, k].double(), expected, **CLOSE)


def test_two_class_tokens_are_averaged() -> None:
    model, images, mask, readings, arrival = read("deit-distilled", count=2)
    weights = timm_maps(model, images)[-1]
    to_patches = weights[:, :2, 2:].mean(1)
    patches = initial(model, mask[:, :1])[:, 2:]
    expected = (to_patches * patches).sum(1) / to_patches.sum(1)
    assert readings[-1].layer.readout.tolist() == [0, 1]
    torch.testing.assert_close(readings[-1].class_attention[:, 0].double(), expected, **CLOSE)
    torch.testing.assert_close(readings[-1].share, arrival.label, **CLOSE)


def test_a_class_token_that_is_joined_last() -> None:
    """CaiT's blocks have no class token; it attends to the patches and to itself in separate layers."""
    torch.manual_seed(0)
    model = randomise(Cait(img_size=32, patch_size=8, embed_dim=24, depth=1, depth_token_only=2, num_heads=3)).eval()
    images, mask = torch.randn(2, 3, 32, 32), torch.rand(2, 1, 32, 32)
    readings, arrival = Probe(model, (3, 32, 32))(images, mask)
    assert [(r.layer.path, r.class_attention) for r in readings] == [("blocks.0", None)]
    last = model.blocks_token_only[-1]
    tokens = outputs_of(model, images, [last.norm1])[last.norm1]
    q, k = (layer(tokens).detach().unflatten(2, (3, 8)).transpose(1, 2) for layer in (last.attn.q, last.attn.k))
    to_patches = attention(q[:, :, :1], k, last.attn.scale)[:, 0, 1:]
    patches = uniform(mask.double()[:, 0], (8, 8), (8, 8), (0, 0)).flatten(1)
    expected = (to_patches * patches).sum(1) / to_patches.sum(1)
    torch.testing.assert_close(arrival.class_attention[:, 0].double(), expected, **CLOSE)
    assert (expected - patches.mean(1)).abs().max() > 1e-3


@pytest.mark.parametrize("name", slow_except(("vit-unfused",), ("vit-unfused", "vit-registers")))
def test_class_token_whatever_the_attention(name: str) -> None:
    model, images, mask, readings, _ = read(name, count=2)
    prefix = model.num_prefix_tokens
    to_patches = timm_maps(model, images)[-1][:, 0, prefix:]
    expected = (to_patches * initial(model, mask[:, :1])[:, prefix:]).sum(1) / to_patches.sum(1)
    assert readings[-1].layer.readout.tolist() == [0]
    torch.testing.assert_close(readings[-1].class_attention[:, 0].double(), expected, **CLOSE)


@pytest.mark.parametrize(
    "name", slow_except(("vit-average-with-class-token",), ("vit-average-with-class-token", "swin"))
)
def test_averages_read_all_of_the_grid(name: str) -> None:
    """A class token that the classifier does not read is none."""
    *_, readings, arrival = read(name, count=2)
    last = readings[-1]
    assert not last.layer.has_class_token
    assert last.class_attention is None
    torch.testing.assert_close(last.share, last.map.mean((1, 2)), **CLOSE)
    torch.testing.assert_close(last.share, arrival.label, **CLOSE)


@pytest.mark.parametrize("name", slow_except(("convnext",), ("swin", "convnext")))
def test_maps_are_upright(name: str) -> None:
    """A mask that rises from top to bottom does so in the first layer's map, one from left to right likewise; and the
    label of the output is that of the slow reference."""
    family = FAMILIES[name]
    model = family.model().eval()
    images = torch.randn(2, 3, family.size, family.size, generator=torch.Generator().manual_seed(1))
    down = torch.linspace(0, 1, family.size).view(1, 1, -1, 1).expand(2, 1, -1, family.size)
    masks = torch.cat((torch.rand(2, 1, family.size, family.size), down, down.transpose(2, 3)), 1)
    readings, arrival = Probe(model, images.shape[1:])(images, masks)
    torch.testing.assert_close(arrival.label[:, 0].double(), family.twin(model, images, masks[:, :1]), **CLOSE)
    patch = (family.size // readings[0].layer.size[0],) * 2
    for k in (1, 2):
        both = (readings[0].map[..., k].double(), uniform(masks[:, k].double(), patch, patch, (0, 0)))
        assert torch.corrcoef(torch.stack(both).flatten(1))[0, 1] > 0.9


def test_tokens_that_are_flattened_or_averaged() -> None:
    """Channels are found where labels vary along all axes, and where there are as many of them as tokens."""
    model = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), nn.Flatten(), nn.Linear(256, 5))
    images = torch.randn(3, 3, 16, 16)
    readings, _ = Probe(model, (3, 16, 16), ["[0-2]"])(images, torch.rand(3, 1, 16, 16))
    assert [r.layer.size for r in readings] == [(4, 4), (4, 4), (1, 1)]
    patches = model[0](images).flatten(2).transpose(1, 2)
    for reading in readings[:2]:
        torch.testing.assert_close(reading.tokens, patches, rtol=0, atol=1e-5)
    torch.testing.assert_close(readings[2].tokens, model[:3](images)[:, None], rtol=0, atol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = FAMILIES["vit"].model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kind = type(model)
    probe = Probe(model, (3, 32, 32))
    probe(torch.randn(1, 3, 32, 32), torch.rand(1, 1, 32, 32))
    assert type(model) is kind
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
