"""Aligned models in real use: what a call returns, and what a model goes through between calls."""

from __future__ import annotations

import inspect
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import helpers
import pytest
import timm
import torch
from helpers import (
    CLASSES,
    LABEL,
    aligned_graph,
    assert_same,
    assert_same_step,
    assert_target,
    convnext,
    gradients,
    mixture,
    pair,
    pictures,
    plans,
    seeded,
    slow_except,
    total,
)
from timm.layers import DropPath
from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, one_hot, scaled_dot_product_attention
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.models.googlenet import BasicConv2d, GoogLeNetOutputs, InceptionAux  # type: ignore[import-untyped]
from twins.arithmetic import mix, residual
from twins.vit import timm_maps

import tlfx
from tlfx.analysis.invariants import share
from tlfx.mix import ShareTarget

vit = partial(helpers.vit, qkv_std=0.7, depth=1)


def convnet(drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> nn.Module:
    """Convolutions, batch norms in a residual block, pooling."""
    torch.manual_seed(0)
    parts = {
        "stem": nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        "norm": nn.BatchNorm2d(8),
        "relu": nn.ReLU(inplace=True),
        "block": BasicBlock(8, 8, drop_path=DropPath(drop_path_rate)),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "drop": nn.Dropout(drop_rate),
        "head": nn.Linear(8, CLASSES),
    }
    return nn.Sequential(OrderedDict(parts))


class Head(nn.Module):
    """Patches and a classifier; what it makes of features (batch, 8, 4, 4) and logits is up to the test."""

    def __init__(self, made: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.head = nn.Linear(8, CLASSES)
        self.made = made

    def forward(self, x: Tensor) -> Any:
        features = self.patches(x)
        return self.made(self.head(features.mean((2, 3))), features)


# in place


def test_the_same_object_of_a_subclass() -> None:
    model = vit()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    aligned = tlfx.align(model)
    assert aligned is model
    assert isinstance(model, VisionTransformer)
    assert isinstance(model, tlfx.Aligned)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_repr_shows_the_modules_of_the_model() -> None:
    plain, aligned = pair(vit())
    assert repr(aligned) == "Aligned" + repr(plain)


def test_the_class_has_the_name_of_its_base() -> None:
    aligned = tlfx.align(convnet())
    assert type(aligned).__name__ == type(convnet()).__name__  # Hugging Face writes it into config.json
    assert repr(type(aligned)) != repr(type(convnet()))


def test_a_mixed_target_under_any_keyword_is_the_target() -> None:
    aligned = tlfx.align(convnet())
    target = mixture()
    assert_same(seeded(aligned, pictures(), labels=target), seeded(aligned, pictures(), target))
    with pytest.raises(tlfx.TargetError, match="2 targets were given, expected one"):
        aligned(pictures(), target=target, labels=target)


@pytest.mark.parametrize(
    ("build", "training"), slow_except([(vit, True), (convnet, False)], product((vit, convnet), (True, False)))
)
def test_without_a_target_it_is_the_untouched_model(build: Callable[..., nn.Module], training: bool) -> None:
    plain, aligned = pair(build(drop_rate=0.3, drop_path_rate=0.3).train(training))
    aligned(pictures(), mixture())
    aligned.load_state_dict(plain.state_dict())
    assert_same(seeded(aligned, pictures()), seeded(plain, pictures()))
    assert_same(list(aligned.buffers()), list(plain.buffers()))


def test_unalign_restores_the_class() -> None:
    model = vit()
    attributes = set(vars(model))
    aligned = tlfx.align(model)
    aligned(pictures(), mixture())
    assert tlfx.unalign(aligned) is model
    assert type(model) is VisionTransformer
    assert set(vars(model)) == attributes
    with pytest.raises((TypeError, AttributeError)):
        model(pictures(), mixture())


def test_unalign_leaves_other_models_alone() -> None:
    model = vit()
    assert tlfx.unalign(model) is model
    assert type(model) is VisionTransformer


def test_aligning_twice_takes_the_new_options() -> None:
    model = tlfx.align(vit())
    before = share(model, pictures(), mixture().mask)
    again = tlfx.align(model, layers=())
    assert again is model
    assert tlfx.unalign(deepcopy(again)).__class__ is VisionTransformer
    assert (share(model, pictures(), mixture().mask) - before).abs().max() > 1e-3


def test_models_of_one_class_share_the_aligned_class() -> None:
    assert type(tlfx.align(vit())) is type(tlfx.align(vit(depth=2)))


def test_an_aligned_part_of_an_aligned_model() -> None:
    model = nn.Sequential(convnext(), nn.Linear(CLASSES, CLASSES))
    plain = deepcopy(model)
    tlfx.align(model[0])
    assert_same_step(plain, tlfx.align(model), pictures())
    assert_same(model[0](pictures(), mixture())[0], plain[0](pictures()))


# how a target is passed


class Scaled(nn.Module):
    """A forward with an argument behind the images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Head(lambda logits, features: logits)

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: float = 0.0) -> Tensor:
        return self.net(x) * scale + shift


def test_forward_shows_the_target_in_its_signature() -> None:
    plain, aligned = pair(Scaled())
    before, after = (list(inspect.signature(m.forward).parameters) for m in (plain, aligned))
    assert after == [*before, "target"]
    assert inspect.signature(aligned.forward).parameters["target"].default is None


def test_the_target_in_any_place() -> None:
    plain, aligned = pair(Scaled())
    images, mixed = pictures(), mixture()
    expected = plain(images, 2.0, shift=1.0)
    calls = [
        aligned(images, 2.0, mixed, shift=1.0),
        aligned(images, mixed, 2.0, shift=1.0),
        aligned(mixed, images, 2.0, shift=1.0),
        aligned(images, 2.0, shift=1.0, target=mixed),
        aligned(target=mixed, shift=1.0, scale=2.0, x=images),
    ]
    for output, soft in calls:
        assert_same(output, expected)
        assert_same(soft, calls[0][1])


def test_other_arguments_make_captures_of_their_own() -> None:
    plain, aligned = pair(Scaled())
    for scale in (1.0, 2.0, 3, True, 1, 2.0):
        assert_same(aligned(pictures(), mixture(), scale)[0], plain(pictures(), scale))
    assert plans(aligned) == 5


def test_attention_mask_of_timm() -> None:
    plain, aligned = pair(vit())
    images, mixed = pictures(), mixture()
    only = torch.full((17, 17), float("-inf"))
    only[:, 6] = 0.0
    output, soft = aligned(images, mixed, attn_mask=only)
    assert_same(output, plain(images, attn_mask=only))
    patch = mixed.mask.unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5)).flatten(1)[:, 5]
    torch.testing.assert_close(soft[:, 0], (mixed.mask.mean((1, 2, 3)) + patch) / 2, **LABEL)


class HuggingFace(nn.Module):
    """A classifier that is called by keyword and returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = vit()

    def forward(self, pixel_values: Any = None, labels: Tensor | None = None, dense: bool = False) -> Any:
        features = self.vit.forward_features(pixel_values)
        out = {"loss": None, "logits": self.vit.forward_head(features)}
        return out | {"hidden_states": (features,)} if dense else out


@pytest.mark.slow
def test_keywords_of_hugging_face() -> None:
    plain, aligned = pair(HuggingFace())
    output, soft = aligned(pixel_values=pictures(), dense=True, target=mixture())
    assert_same(output, plain(pictures(), dense=True))
    assert soft["loss"] is None
    assert soft["logits"].shape == (3, 2)
    assert soft["hidden_states"][0].shape == (3, 17, 2)
    assert list(soft) == ["loss", "logits", "hidden_states"]
    assert list(aligned(pixel_values=pictures(), target=mixture())[1]) == ["loss", "logits"]
    graph = aligned_graph(aligned, {"pixel_values": pictures()})
    assert [node.name for node in graph.find_nodes(op="placeholder")] == ["pixel_values", "mask"]


def test_example_captures_at_once() -> None:
    for example in (pictures(), (pictures(),), {"input": pictures()}):
        model = tlfx.align(convnet(), example=example)
        assert plans(model) == 1
        call = partial(model, **example) if isinstance(example, dict) else partial(model, pictures())
        assert_target(call(target=mixture())[1])
        assert plans(model) == 1
    model = tlfx.align(convnet(), example=pictures(2))
    model(pictures(5), mixture(5))
    assert plans(model) == 1


# plain targets


def test_plain_labels_come_back_as_soft_targets() -> None:
    plain, aligned = pair(vit())
    labels = torch.tensor([3, 0, 4])
    soft_labels = torch.rand(3, CLASSES).softmax(-1).half()
    for given, expected in ((labels, one_hot(labels, CLASSES).float()), (soft_labels, soft_labels.float())):
        output, soft = aligned(pictures(), target=given)
        assert_same(output, plain(pictures()))
        torch.testing.assert_close(soft, expected, rtol=0, atol=1e-7)


def test_plain_labels_at_every_position_of_dense_outputs() -> None:
    aligned = tlfx.align(Head(lambda logits, features: {"map": features, "logits": logits}))
    labels = torch.tensor([3, 0, 4])
    _, soft = aligned(pictures(), target=labels)
    assert_same(soft["logits"], one_hot(labels, CLASSES).float())
    assert_same(soft["map"], one_hot(labels, 8).float()[:, :, None, None].expand(3, 8, 4, 4).contiguous())
    _, soft = aligned(pictures(), target=soft["logits"])
    assert soft["map"].shape == (3, CLASSES, 4, 4)
    assert_same(soft["map"].mean((2, 3)), soft["logits"])


def test_smoothing_is_that_of_the_target() -> None:
    aligned = tlfx.align(vit())
    mixed = mixture()
    _, sharp = aligned(pictures(), mixed)
    _, smooth = aligned(pictures(), ShareTarget(mixed | {"smoothing": 0.2}))
    torch.testing.assert_close(smooth, sharp * 0.8 + 0.1, **LABEL)


# output structures


class Heads(NamedTuple):
    logits: Any
    extra: Any


@dataclass
class Output:
    logits: Any
    extra: Any = None


@dataclass
class Inner:
    """Occurs inside another structure only."""

    value: Any


STRUCTURES = {
    "tuple": lambda y, f: (y, f),
    "list": lambda y, f: [y, f],
    "dict": lambda y, f: {"logits": y, "features": f},
    "named tuple": lambda y, f: Heads(y, f),
    "dataclass": lambda y, f: Output(y, f),
    "None leaves": lambda y, f: (None, y, Output(f, None)),
    "nested": lambda y, f: {"a": [y, (f, None)], "b": Output({"c": f}, y)},
    "dataclass inside": lambda y, f: [Inner(y), {"b": Inner(f)}],
    "twice": lambda y, f: (y, y, f),
    "other values": lambda y, f: (y, 3, "name", f, 0.5),
}


@pytest.mark.parametrize("name", slow_except(STRUCTURES.keys() - {"tuple", "dict", "dataclass"}, STRUCTURES))
def test_targets_have_the_structure_of_the_output(name: str) -> None:
    made = STRUCTURES[name]
    plain, aligned = pair(Head(made))
    output, soft = aligned(pictures(), mixture())
    assert_same(output, plain(pictures()))
    share_of_image = mixture().mask.mean((1, 2, 3))
    patches = mixture().mask.unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5))
    logits = torch.stack((share_of_image, 1 - share_of_image), 1)
    expected = made(logits, torch.stack((patches, 1 - patches), 1))  # type: ignore[no-untyped-call]
    expected = tree_map(lambda leaf: leaf if isinstance(leaf, Tensor) else None, expected)
    assert tree_map(type, soft) == tree_map(type, expected)
    for one, other in zip(tree_leaves(soft), tree_leaves(expected), strict=True):
        assert one is other is None or torch.allclose(one, other, **LABEL)


def test_outputs_without_content_have_no_target() -> None:
    plain, aligned = pair(Head(lambda logits, features: (logits, torch.ones(2, 3), logits.mean(), logits[:, 0])))
    output, soft = aligned(pictures(), mixture())
    assert_same(output, plain(pictures()))
    assert soft[1:] == (None, None, None)


class Auxiliary(nn.Module):
    """Two heads in training, one in evaluation, as the Inception networks have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.early = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.aux = InceptionAux(8, CLASSES, BasicConv2d, dropout=0.5)
        self.late = nn.Sequential(nn.Conv2d(8, 8, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Any:
        x = self.early(x)
        return GoogLeNetOutputs(self.late(x), None, self.aux(x)) if self.training else self.late(x)


def test_auxiliary_heads() -> None:
    plain, aligned = pair(Auxiliary())
    soft = assert_same_step(plain, aligned, pictures())
    assert isinstance(soft, GoogLeNetOutputs)
    assert soft.aux_logits2 is None
    torch.testing.assert_close(soft.aux_logits1[:, 0], mixture().mask.mean((1, 2, 3)), **LABEL)
    assert (soft.logits - soft.aux_logits1).abs().max() > 1e-3
    alone = assert_same_step(plain.eval(), aligned.eval(), pictures())
    torch.testing.assert_close(alone, soft.logits, **LABEL)


@pytest.mark.slow
def test_feature_lists_of_timm() -> None:
    model = timm.create_model("resnet18", features_only=True)
    soft = assert_same_step(*pair(model), pictures(2, 32))
    assert isinstance(soft, list)
    assert [leaf.shape for leaf in soft] == [(2, 2, side, side) for side in (16, 8, 4, 2, 1)]
    constant = ShareTarget(mixture(2, 32) | {"mask": torch.full((1, 1, 32, 32), 0.3)})
    for leaf in model(pictures(2, 32), constant)[1]:
        torch.testing.assert_close(leaf[:, 0], torch.full_like(leaf[:, 0], 0.3), **LABEL)


class Decoder(nn.Module):
    """Semantic segmentation: patches, a block of attention between them, and their classes at full size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.classify = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return interpolate(self.classify(self.patches(x)), scale_factor=4.0, mode="nearest")


def test_dense_outputs_have_a_target_at_every_position() -> None:
    soft = assert_same_step(*pair(Decoder()), pictures())
    kernel = torch.full((1, 1, 4, 4), 1 / 16)
    expected = interpolate(conv2d(mixture().mask, kernel, stride=4), scale_factor=4.0)
    torch.testing.assert_close(soft, torch.cat((expected, 1 - expected), 1), **LABEL)


# numbers


@pytest.mark.parametrize("dtype", slow_except([torch.bfloat16], [torch.float16, torch.bfloat16, torch.float64]))
def test_models_of_other_types(dtype: torch.dtype) -> None:
    plain, aligned = pair(vit())
    before = aligned(pictures(), mixture())[1]
    soft = assert_same_step(plain.to(dtype), aligned.to(dtype), pictures().to(dtype))
    assert plans(aligned) == 2
    torch.testing.assert_close(soft, before, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("build", "weights"),
    slow_except(
        [(convnext, torch.channels_last)], product((convnet, convnext), (torch.contiguous_format, torch.channels_last))
    ),
)
def test_channels_last(build: Callable[[], nn.Module], weights: torch.memory_format) -> None:
    plain, aligned = pair(build())
    assert_same_step(plain, aligned, pictures(side=32))
    plain.to(memory_format=weights), aligned.to(memory_format=weights)
    images = pictures(side=32)
    assert_same_step(plain, aligned, images)
    assert_same_step(plain, aligned, images.contiguous(memory_format=torch.channels_last))
    assert_same_step(plain, aligned, images.transpose(2, 3))


class ByType(nn.Module):
    """A forward whose types follow autocast, as hand-written mixed precision does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mixed = scaled_dot_product_attention(tokens, tokens, tokens)
        kept = self.norm(mixed.float()).to(tokens.dtype).mean(1)
        with torch.autocast("cpu", enabled=False):
            doubled = kept.float() * 2
        return self.head(kept) + doubled.to(mixed.dtype)[:, :CLASSES]


@pytest.mark.parametrize(
    ("build", "dtype"),
    slow_except(
        [(ByType, torch.float16)],
        product((vit, convnet, ByType), (torch.bfloat16, torch.float16)),
    ),
)
def test_autocast(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    plain, aligned = pair(build())
    assert_same_step(plain, aligned, pictures())
    with torch.autocast("cpu", dtype):
        assert_same_step(plain, aligned, pictures())
        assert aligned(pictures()).dtype == plain(pictures()).dtype == dtype
    assert_same_step(plain, aligned, pictures())
    assert plans(aligned) == 2


@pytest.mark.slow
def test_steps_with_a_gradient_scaler() -> None:
    weights = []
    for model in pair(vit()):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for seed in range(2):
            with torch.autocast("cpu", torch.float16):
                images = pictures(seed=seed)
                output = model(images, mixture())[0] if isinstance(model, tlfx.Aligned) else model(images)
            scaler.scale(total(output)).backward()
            scaler.unscale_(optimiser)
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad()
        weights.append(list(model.state_dict().values()))
    assert_same(*weights)
    assert not torch.equal(weights[0][0], next(iter(vit().state_dict().values())))


# training


def test_gradients_accumulate() -> None:
    plain, aligned = pair(vit())
    for seed in range(3):
        assert_same_step(plain, aligned, pictures(seed=seed))
    assert plans(aligned) == 1


def test_a_training_loop_learns_from_the_aligned_target() -> None:
    model = tlfx.align(vit(num_classes=2))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        logits, soft = model(pictures(), mixture())
        loss = nn.functional.cross_entropy(logits, soft)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_parameters_frozen_after_capture() -> None:
    plain, aligned = pair(vit())
    aligned(pictures(), mixture())
    for model in (plain, aligned):
        model.requires_grad_(False)
        model.head.requires_grad_(True)
    assert_same_step(plain, aligned, pictures())
    frozen = [p.grad for n, p in aligned.named_parameters() if not n.startswith("head")]
    assert frozen == [None] * len(frozen)
    for model in (plain, aligned):
        model.requires_grad_(True)
    assert_same_step(plain, aligned, pictures())
    assert all(g is not None for g in gradients(aligned))


def test_gradient_checkpointing() -> None:
    plain, aligned = pair(vit(proj_drop_rate=0.3))
    for model in (plain, aligned):
        model.set_grad_checkpointing()
    assert_same_step(plain, aligned, pictures())


@pytest.mark.parametrize("mode", slow_except([torch.inference_mode], [torch.no_grad, torch.inference_mode]))
def test_calls_without_gradients(mode: Callable[[], Any]) -> None:
    plain, aligned = pair(vit().eval())
    with mode():
        output, soft = aligned(pictures(), mixture())
        assert_same(output, plain(pictures()))
    assert not output.requires_grad
    assert_same(assert_same_step(plain, aligned, pictures()), soft.clone())
    assert plans(aligned) == 1


# what makes a new capture, and what does not


def test_one_capture_serves_all_batch_sizes() -> None:
    plain, aligned = pair(convnet())
    for batch in (2, 1, 7, 3):
        assert_same_step(plain, aligned, pictures(batch))
    assert plans(aligned) == 1


def test_a_first_call_with_one_image() -> None:
    plain, aligned = pair(vit())
    _, alone = aligned(pictures(1), mixture(1))
    _, beside = aligned(pictures(1).repeat(4, 1, 1, 1), ShareTarget(mixture(4) | {"mask": mixture(1).mask}))
    torch.testing.assert_close(beside, alone.expand(4, -1), **LABEL)
    assert plans(aligned) == 1
    assert_same_step(plain, aligned, pictures(5))


def test_another_image_size_captures_again() -> None:
    plain, aligned = pair(convnet())
    for side in (16, 24, 16):
        assert_same_step(plain, aligned, pictures(side=side))
    assert plans(aligned) == 2


def test_another_mode_captures_again() -> None:
    plain, aligned = pair(convnet(drop_rate=0.5))
    for training in (True, False, True):
        assert_same_step(plain.train(training), aligned.train(training), pictures())
    assert plans(aligned) == 2


def test_one_module_in_evaluation_mode_captures_again() -> None:
    plain, aligned = pair(convnet())
    assert_same_step(plain, aligned, pictures())
    for model in (plain, aligned):
        model.block.bn1.eval()
    before = plain.block.bn1.running_mean.clone()
    assert_same_step(plain, aligned, pictures(seed=5))
    assert torch.equal(aligned.block.bn1.running_mean, before)
    assert plans(aligned) == 2


@pytest.mark.slow
def test_settings_changed_between_calls() -> None:
    plain, aligned = pair(vit(proj_drop_rate=0.1, drop_path_rate=0.1))
    assert_same_step(plain, aligned, pictures())
    for model in (plain, aligned):
        model.blocks[0].mlp.drop1.p = 0.9
        model.blocks[0].drop_path1.drop_prob = 0.8
    assert_same_step(plain, aligned, pictures())


@pytest.mark.slow
def test_hooks_on_inner_modules() -> None:
    plain, aligned = pair(vit())
    calls: list[Callable[[nn.Module], Any]] = [
        lambda m: m.blocks[0].register_forward_hook(lambda module, args, out: out * 2),
        lambda m: m.blocks[0].attn.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:])),
    ]
    for count, register in enumerate(calls, start=1):
        hooks = [register(model) for model in (plain, aligned)]
        assert_same_step(plain, aligned, pictures())
        assert plans(aligned) == count
    changed = seeded(aligned, pictures(), mixture())[0]
    for hook in hooks:
        hook.remove()
    assert_same_step(plain, aligned, pictures())
    assert plans(aligned) == 2
    assert not torch.equal(seeded(aligned, pictures(), mixture())[0], changed)


# parameters are read from the model at every call


def other(model: nn.Module) -> dict[str, Tensor]:
    """State of another model of the same shape."""
    return {k: v + 0.1 * torch.rand_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}


def reset(classes: int, pool: str) -> Callable[[nn.Module], Any]:
    def change(model: nn.Module) -> None:
        torch.manual_seed(3)
        model.reset_classifier(classes, pool)

    return change


def replace_parameter(model: nn.Module) -> None:
    model.blocks[0].attn.qkv.weight = nn.Parameter(torch.full_like(model.blocks[0].attn.qkv.weight, 0.1))


def replace_module(model: nn.Module) -> None:
    torch.manual_seed(3)
    model.blocks[0].mlp.fc1 = nn.Linear(16, 64, bias=False)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "load": lambda m: m.load_state_dict(deepcopy(STATE)),  # type: ignore[has-type]
    "assign": lambda m: m.load_state_dict(deepcopy(STATE), assign=True),  # type: ignore[has-type]
    "parameter": replace_parameter,
    "module": replace_module,
    "classes": reset(7, "token"),
    "pool": reset(CLASSES, "avg"),
    "double": lambda m: m.double(),
}
STATE = other(vit())


@pytest.mark.parametrize("name", slow_except(("assign", "module"), CHANGES))
def test_changes_between_calls(name: str) -> None:
    plain, aligned = pair(vit())
    before = aligned(pictures(), mixture())[0].detach()
    for model in (plain, aligned):
        CHANGES[name](model)
    images = pictures().double() if name == "double" else pictures()
    assert_same_step(plain, aligned, images)
    after = aligned(images, mixture())[0]
    assert after.shape != before.shape or after.dtype != before.dtype or not torch.equal(after, before)


def test_an_optimiser_made_before_aligning() -> None:
    model = vit()
    plain = deepcopy(model)
    optimisers = [torch.optim.SGD(m.parameters(), lr=1.0) for m in (plain, model)]
    aligned = tlfx.align(model, example=pictures())
    assert_same_step(plain, aligned, pictures())
    for optimiser in optimisers:
        optimiser.step()
    assert_same(list(aligned.parameters()), list(plain.parameters()))
    plain.zero_grad(), aligned.zero_grad()  # type: ignore[func-returns-value]
    assert_same_step(plain, aligned, pictures())


# copies


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": saved,
}


@pytest.mark.parametrize("name", slow_except(("pickle",), COPIES))
def test_copies_are_aligned_and_apart(name: str) -> None:
    aligned = tlfx.align(vit(), layers=())
    labels = share(aligned, pictures(), mixture().mask)
    copy = COPIES[name](aligned)
    assert type(copy) is type(aligned)
    assert plans(copy) == 0
    with torch.no_grad():
        aligned.head.bias.add_(1)
    plain = tlfx.unalign(deepcopy(copy))
    assert_same_step(plain, copy, pictures())
    assert_same(share(copy, pictures(), mixture().mask), labels)
    assert not torch.equal(aligned.head.bias, copy.head.bias)  # type: ignore[arg-type]


@pytest.mark.slow
def test_state_dicts_go_between_plain_and_aligned_models() -> None:
    plain, aligned = pair(vit())
    aligned.load_state_dict(STATE)
    plain.load_state_dict(aligned.state_dict())
    assert_same_step(plain, aligned, pictures())


def test_averaged_model_of_timm() -> None:
    model = tlfx.align(vit(), example=pictures())
    averaged = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    averaged.update(model)
    expected = {k: (v + model.state_dict()[k]) / 2 for k, v in vit().state_dict().items()}
    for name, value in averaged.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    plain = tlfx.unalign(deepcopy(averaged.module))
    assert_same_step(plain, averaged.module, pictures())
    assert_same(averaged(pictures()), plain(pictures()))


# options


def blocks(model: Any, images: Tensor, mask: Tensor, aligned: tuple[int, ...], skip: bool = False) -> Tensor:
    """Share of the class token of a ViT in which only some blocks are aligned, with or without the skip's label."""
    patches = mask.double().unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5)).flatten(1)
    labels = torch.cat((mask.double().mean((1, 2, 3))[:, None], patches), 1)
    for number, weights in enumerate(timm_maps(model, images)):
        branch = mix(weights, labels) if number in aligned else labels
        labels = branch if skip else residual(labels, branch)
    return labels[:, 0]


@pytest.mark.parametrize(
    ("layers", "aligned"),
    slow_except(
        [(("blocks.0",), (0,)), ((), ())],
        [
            (None, (0, 1)),
            ("blocks.*", (0, 1)),
            (("blocks.0",), (0,)),
            (("blocks.1",), (1,)),
            (["blocks.[0-5].attn"], (0, 1)),
            (("blocks.0.attn", 1), (0, 1)),
            ((0,), (0,)),
            ((1,), (1,)),
            ((), ()),
        ],
    ),
)
def test_layers(layers: Any, aligned: tuple[int, ...]) -> None:
    assert_layers(layers, aligned, fused=True)


@pytest.mark.parametrize(
    ("layers", "aligned"), slow_except([((0,), (0,))], [(("blocks.1",), (1,)), ((0,), (0,)), ((), ())])
)
def test_layers_of_attention_that_is_written_out(layers: Any, aligned: tuple[int, ...]) -> None:
    assert_layers(layers, aligned, fused=False)


def assert_layers(layers: Any, aligned: tuple[int, ...], fused: bool) -> None:
    """The class token's label is that of a twin with only these blocks aligned."""
    plain = vit(depth=2)
    for block in plain.blocks:
        block.attn.fused_attn = fused
    model = tlfx.align(deepcopy(plain), layers=layers)
    mask = mixture().mask
    shares = share(model, pictures(), mask)[:, 0]
    torch.testing.assert_close(shares.double(), blocks(plain, pictures(), mask, aligned), **LABEL)
    assert_same(model(pictures(), mixture())[0], plain(pictures()))


@pytest.mark.slow
def test_without_aligned_attention_the_class_token_keeps_the_area() -> None:
    aligned = tlfx.align(vit(), layers=())
    torch.testing.assert_close(aligned(pictures(), mixture())[1], mixture().area(), **LABEL)


def test_layers_leave_linear_attention_in_place() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.patches, self.qkv = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = self.qkv(self.patches(x).flatten(2).transpose(1, 2)).chunk(3, -1)
            return query.softmax(-1) @ (key.softmax(1).transpose(1, 2) @ value)

    plain = Linear()
    patches = mixture().mask.unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5)).flatten(1)
    mixed = share(tlfx.align(deepcopy(plain)), pictures(), mixture().mask)
    assert (mixed - patches).abs().max() > 0.1
    torch.testing.assert_close(share(tlfx.align(plain, layers=()), pictures(), mixture().mask), patches, **LABEL)


@pytest.mark.slow
def test_residual_without_the_skip() -> None:
    plain = vit(depth=2)
    mask = mixture().mask
    policies = {r: tlfx.Policy(residual=r) for r in ("average", "skip")}
    shares = {r: share(tlfx.align(deepcopy(plain), policy=p), pictures(), mask)[:, 0] for r, p in policies.items()}
    for name, label in shares.items():
        expected = blocks(plain, pictures(), mask, (0, 1), skip=name == "skip")
        torch.testing.assert_close(label.double(), expected, **LABEL)
    assert (shares["skip"] - shares["average"]).abs().max() > 1e-3


class Downsampling(nn.Module):
    """A residual block whose skip has a convolution."""

    def __init__(self, skip_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branch = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.skip = nn.Conv2d(3, 4, 4, 4)
        self.skip_first = skip_first

    def forward(self, x: Tensor) -> Tensor:
        if self.skip_first:
            shortcut = self.skip(x)
            return self.branch(x) + shortcut
        out = self.branch(x)
        return out + self.skip(x)


@pytest.mark.parametrize("skip_first", [True, False])
def test_residual_without_a_skip_that_downsamples(skip_first: bool) -> None:
    model = Downsampling(skip_first)
    weight = model.branch[0].weight.detach().abs().mean((0, 1), keepdim=True)
    mask = mixture().mask
    expected = conv2d(mask, weight, stride=4, padding=1) / conv2d(torch.ones_like(mask), weight, stride=4, padding=1)
    shares = share(tlfx.align(model, policy=tlfx.Policy(residual="skip")), pictures(), mask)
    torch.testing.assert_close(shares, expected.flatten(1), **LABEL)


def test_code_reads_as_python() -> None:
    aligned = tlfx.align(vit())
    code = tlfx.aligned_code(aligned, example=pictures())
    compile(code, "aligned", "exec")
    assert "def forward(self, x, mask):" in code
    assert "tlfx_runtime_attention" in code
    assert tlfx.aligned_code(aligned) == code
