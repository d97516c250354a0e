"""Bad input: every error is a TlfxError that says what was given, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLASSES, SIDE, mixture, pictures, slow_except
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

import tlfx
from tlfx import errors
from tlfx.aligned import planner_of
from tlfx.analysis.invariants import share
from tlfx.rules.registry import Registry

aten = torch.ops.aten


class Net(nn.Module):
    """Patches, a function of them as tokens (batch, 16, 8), their mean, a classifier."""

    def __init__(self, function: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = Inner(function)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).mean(1))


class Inner(nn.Module):
    """Where the function is called, so that messages can name a module and a line."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.function(tokens)  # the line


class Returning(nn.Module):
    """Returns what a function makes of images and features."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.patches(x))


@torch.library.custom_op("tlfx_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """An operator that no rule knows."""
    return x * 2


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("tlfx_tests::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    """An operator that no rule knows and that changes the shape."""
    return x[..., ::2].clone()


@halved.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.custom_op("tlfx_tests::tripled", mutates_args=())
def tripled(x: Tensor) -> Tensor:
    """An operator whose rule is broken."""
    return x * 3


@tripled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


# the family


def test_every_error_is_a_tlfx_error() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__ if name[0].isupper()]
    assert all(issubclass(kind, tlfx.TlfxError) for kind in kinds)
    assert all(getattr(tlfx, kind.__name__) is kind for kind in kinds)
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.TargetError, ValueError)


# models and options


@pytest.mark.parametrize("given", [nn.Linear, "vit_tiny", None, lambda x: x])
def test_not_a_module(given: Any) -> None:
    with pytest.raises(tlfx.InputError, match=rf"takes a torch.nn.Module, got {type(given).__name__}"):
        tlfx.align(given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "skip"}, "'skip' is not a policy: expected 'paper', 'influence' or FIELD=VALUE"),
        ({"on_unknown": "ignore"}, r"on_unknown='ignore' is unknown, expected one of 'error', 'pointwise'"),
        ({"layers": (1.5,)}, r"layers=\(1.5,\): expected module patterns such as 'blocks.0' or numbers"),
    ],
)
def test_unknown_options(options: dict[str, Any], words: str) -> None:
    model = Net()
    with pytest.raises(tlfx.InputError, match=words):
        tlfx.align(model, **options)
    assert type(model) is Net


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_scripted_model() -> None:
    with pytest.raises(tlfx.InputError, match=r"is scripted, and its forward is fixed: align the model before that"):
        tlfx.align(torch.jit.script(nn.Sequential(nn.Flatten())))


def test_a_scripted_part_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), torch.jit.script(nn.ReLU()))
    with pytest.raises(
        tlfx.InputError, match=r"1 is a RecursiveScriptModule, whose code is fixed.*that it was made from"
    ):
        tlfx.align(model)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "DistributedDataParallel": (nn.parallel.DistributedDataParallel, r"use DistributedDataParallel\(tlfx.align\(model"),
    "DataParallel": (
        nn.DataParallel,
        r"use torch.nn.parallel.DistributedDataParallel\(tlfx.align\(model\)\), one",
    ),
    "FullyShardedDataParallel": (
        lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
        r"use tlfx.align\(model\), then torch.distributed.fsdp.fully_shard\(model\)",
    ),
    "OptimizedModule": (torch.compile, r"use torch.compile\(tlfx.align\(model\)\)"),  # type: ignore[dict-item]
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_belong_around_the_aligned_model(name: str) -> None:
    wrap, order = WRAPPERS[name]
    with pytest.raises(tlfx.InputError, match=rf"{name} runs the model that it wraps .*: {order}"):
        tlfx.align(wrap(Net()))


def test_a_graph_module_is_held_by_a_module_to_be_aligned() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(tlfx.InputError, match=r"whose class is rewritten .* such as torch.nn.Sequential\(model\)"):
        tlfx.align(traced)
    holder = tlfx.align(nn.Sequential(traced))
    torch.testing.assert_close(holder(pictures(), mixture())[1].sum(1), torch.ones(len(pictures())))
    assert torch.equal(deepcopy(holder.eval())(pictures()), traced(pictures()))


def test_code_of_models_without_any() -> None:
    with pytest.raises(tlfx.InputError, match=r"Net is not aligned: call tlfx.align\(model\) first"):
        tlfx.aligned_code(Net())
    with pytest.raises(tlfx.InputError, match=r"not been captured yet: call it with a target, or pass example=images"):
        tlfx.aligned_code(tlfx.align(Net()))


# images


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, SIDE, SIDE), r"expected a tensor \(batch, channels, height, width\).* got \(3, 16, 16\)"),
        (torch.zeros(2, 3, 3, 3, SIDE, SIDE), r"no images among the arguments: .* got \(2, 3, 3, 3, 16, 16\)"),
        (
            torch.zeros(3, 3, SIDE, SIDE, dtype=torch.uint8),
            r"torch.uint8, expected .*: use images.float\(\) / 255",
        ),
        (torch.zeros(3, 3, SIDE, SIDE, dtype=torch.int64), r"images have dtype torch.int64"),
        (np.zeros((3, 3, SIDE, SIDE)), r"no images among the arguments: .* got no tensor"),
    ],
)
def test_images_of_the_wrong_kind(images: Any, words: str) -> None:
    for labels in (mixture(), torch.tensor([0, 1, 2])):
        with pytest.raises(tlfx.InputError, match=words):
            tlfx.align(Net())(images, target=labels)
    with pytest.raises(tlfx.InputError, match=words):
        tlfx.align(Net(), example=images)


def test_no_images_at_all() -> None:
    with pytest.raises(tlfx.InputError, match="got no tensor"):
        tlfx.align(Net())(mixture())


# targets


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (mixture(side=8), r"mask has shape \(3, 1, 8, 8\), expected \(3 or 1, 1, 16, 16\); resize"),
        (mixture(mask=torch.ones(3, 3, SIDE, SIDE)), r"mask has shape \(3, 3, 16, 16\)"),
        (mixture(mask=torch.ones(3, 1, SIDE, SIDE, dtype=torch.bool)), r"mask has dtype torch.bool, .*use mask.float"),
        (mixture(mask=torch.full((3, 1, SIDE, SIDE), 255.0)), r"mask holds values from 255 to 255, expected shares"),
        (mixture(mask=None), r"mask is missing"),
        (mixture(batch=4), r"a target of 4 labels was given with 3 images; it seems to come from another batch"),
        (mixture(second=torch.tensor([0, 1])), r"first has 3 labels and second 2"),
        (mixture(first=torch.tensor([0, 1, 2])), r"first holds labels from 0 to 2, expected 0 to 1; check the labels"),
        (mixture(second=torch.tensor([0, -1, 1])), r"second holds labels from -1 to 1"),
        (mixture(first=torch.rand(3)), r"first is torch.float32 of shape \(3,\), expected soft labels \(batch, 2\)"),
        (mixture(num_classes=0), r"num_classes is 0, expected at least 1"),
        (mixture(smoothing=1.0), r"smoothing is 1.0, expected a number in \[0, 1\)"),
    ],
)
def test_mixed_targets_that_do_not_fit(target: tlfx.MixedTarget, words: str) -> None:
    model = tlfx.align(Net())
    with pytest.raises(tlfx.TargetError, match=words):
        model(pictures(), target)
    assert not planner_of(model).plans


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            torch.tensor([0, 1]),
            r"target of shape \(2,\) was given with 3 images, expected one label .* from another batch",
        ),
        (torch.rand(2, 5), r"target of shape \(2, 5\) was given with 3 images"),
        (torch.tensor([0, 1, 5]), r"target holds labels from 0 to 5, expected 0 to 4; check the labels"),
        (torch.tensor([0, 1, -1]), r"target holds labels from -1 to 1"),
        (torch.tensor(1), r"target is torch.int64 of shape \(\), expected integer labels \(batch,\) or soft labels"),
        (
            torch.zeros(3, 4, 4, dtype=torch.int64),
            r"target is torch.int64 of shape \(3, 4, 4\), expected .*; for maps of labels, mix them with the images",
        ),
        (
            torch.zeros(3),
            r"target is torch.float32 of shape \(3,\), .*soft labels \(batch, classes\)",
        ),
        (torch.tensor([True, False, True]), r"target has dtype torch.bool"),
        ([0, 1, 2], r"the target is a list, expected a tlfx.MixedTarget from a mixer, integer labels \(batch,\)"),
        ({"mask": torch.ones(3, 1, 8, 8)}, r"the target is a dict, expected a tlfx.MixedTarget"),
        (np.array([0, 1, 2]), r"the target is a ndarray"),
        (3, r"the target is an int"),
    ],
)
def test_plain_targets_that_do_not_fit(target: Any, words: str) -> None:
    with pytest.raises(tlfx.TargetError, match=words):
        tlfx.align(Net())(pictures(), target=target)


def test_several_targets() -> None:
    model = tlfx.align(Net())
    with pytest.raises(tlfx.TargetError, match="2 targets were given, expected one"):
        model(pictures(), mixture(), mixture())
    with pytest.raises(tlfx.TargetError, match="2 targets were given, expected one"):
        model(pictures(), mixture(), target=torch.tensor([0, 1, 2]))


# operators without a rule


def the_line() -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, start=1) if line.endswith("# the line"))


def test_an_operator_without_a_rule() -> None:
    model = tlfx.align(Net(doubled).eval())
    with pytest.raises(tlfx.UnknownOperatorError) as caught:
        model(pictures(), mixture())
    message = str(caught.value)
    assert "no rule for the operator tlfx_tests.doubled.default" in message
    assert "node:   doubled" in message
    assert "module: inner (Inner)" in message
    assert f'source: File "{__file__}", line {the_line()}, in forward return self.function(tokens)' in message
    assert "shapes: (2, 16, 8) -> (2, 16, 8)" in message
    assert "Write one with tlfx.rules.rule, or pass on_unknown='pointwise'" in message


def test_a_model_stays_usable_after_an_error() -> None:
    model = Net(doubled).eval()
    expected = model(pictures())
    tlfx.align(model)
    with pytest.raises(tlfx.UnknownOperatorError):
        model(pictures(), mixture())
    assert torch.equal(model(pictures()), expected)
    assert torch.equal(tlfx.align(model, on_unknown="pointwise")(pictures(), mixture())[0], expected)


def test_unknown_operators_as_point_wise_ones() -> None:
    model, like = Net(doubled).eval(), Net(lambda x: x * 2).eval()
    shares = share(tlfx.align(model, on_unknown="pointwise"), pictures(), mixture().mask)
    assert torch.equal(shares, share(tlfx.align(like), pictures(), mixture().mask))


def test_an_unknown_operator_that_changes_the_shape_carries_no_label() -> None:
    model = Net(lambda x: halved(x).repeat_interleave(2, -1)).eval()
    with pytest.raises(tlfx.NoContentError, match="no output of the model carries image content"):
        tlfx.align(model, on_unknown="pointwise")(pictures(), mixture())


def test_an_operator_at_the_top_of_the_model() -> None:
    model = tlfx.align(Returning(lambda x, features: doubled(features)).eval())
    with pytest.raises(tlfx.UnknownOperatorError, match=r"module: the model itself \((Aligned)?Returning\)"):
        model(pictures(), mixture())


# content that cannot be followed


@pytest.mark.parametrize(
    "function",
    [
        lambda x, features: torch.zeros(x.shape[0], 10),
        lambda x, features: torch.rand(x.shape[0], 10),
        lambda x, features: features.mean(),
        lambda x, features: (features.mean(0), features.argmax(1)),
        lambda x, features: None,
    ],
    ids=["zeros", "noise", "loss", "batch", "nothing"],
)
def test_outputs_without_image_content(function: Callable[[Tensor, Tensor], Any]) -> None:
    with pytest.raises(tlfx.NoContentError, match=r"(?s)no output .* must return what it computes from the images"):
        tlfx.align(Returning(function))(pictures(), mixture())


def attended(x: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(x, x, x)


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x + x.flip(0),
    "roll": lambda x: x + 0.5 * x.roll(1, 0),
    "contraction": lambda x: torch.einsum("bnc,bmc->nmc", x, x)[: x.shape[0]],
    "attention": lambda x: x + attended(x.transpose(0, 1)).transpose(0, 1),
    "reshape": lambda x: x.reshape(-1, x.shape[0], 8).transpose(0, 1),
}


@pytest.mark.parametrize("name", MIXING)
def test_samples_of_a_batch_that_are_mixed(name: str) -> None:
    with pytest.raises(tlfx.ProvenanceError) as caught:
        tlfx.align(Net(MIXING[name]))(pictures(), mixture())
    message = str(caught.value)
    assert "batch" in message
    assert "labels belong to one sample each" in message
    assert "  module: " in message
    assert f'  source: File "{__file__}", line ' in message


def scores(x: Tensor) -> Tensor:
    return x @ x.transpose(1, 2)


OVER_THE_BATCH: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(0),
    "mean with other axes": lambda x: x - x.mean((0, 1)),
    "mean of all": lambda x: x / x.mean(),
    "std": lambda x: x / x.std((0, 1), keepdim=True),
    "amax": lambda x: x - x.amax(0, keepdim=True),
    "norm": lambda x: nn.functional.normalize(x, dim=0),
    "softmax": lambda x: x.softmax(0) * x,
    "cumsum": lambda x: x + x.cumsum(0),
    "sort": lambda x: x + x.sort(0)[0],
    "flip as a gate": lambda x: x * x.flip(0).mean(1, keepdim=True),
    "layer_norm": lambda x: nn.functional.layer_norm(x.movedim(0, -1), x.shape[:1]).movedim(-1, 0),
    "instance_norm": lambda x: nn.functional.instance_norm(x.movedim(0, -1)).movedim(-1, 0),
    "weights": lambda x: scores(x).softmax(0) @ x,
    "weights from the mean of scores": lambda x: scores(x).mean(0).softmax(-1) @ x,
    "weights less their maximum": lambda x: (scores(x) - scores(x).amax(0)).softmax(-1) @ x,
    "cumulated weights": lambda x: scores(x).cumsum(0) @ x,
    "indices": lambda x: x.gather(1, x.argmax(0, keepdim=True).expand_as(x)),
    "buffer": lambda x: x - torch.zeros(x.shape[1:]).copy_(x.mean(0)),
    "where": lambda x: x.where(x > x.mean(0), torch.zeros_like(x)),
    "fft": lambda x: torch.fft.fft(x, dim=0).real,
}
EVERY_RUN = ("mean", "norm", "softmax", "cumsum", "flip as a gate", "instance_norm", "weights", "indices", "where")
"""One of each kind; the others are tested by ``make slow``."""


@pytest.mark.parametrize("name", slow_except(EVERY_RUN, OVER_THE_BATCH))
def test_what_is_computed_over_the_batch_and_reaches_content(name: str) -> None:
    with pytest.raises(tlfx.TlfxError) as caught:
        tlfx.align(Net(OVER_THE_BATCH[name]))(pictures(), mixture())
    message = str(caught.value)
    assert "labels belong to one sample each" in message
    assert "batch" in message


def test_what_is_computed_over_the_batch_and_reaches_no_content() -> None:
    def logits_and_usage(x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features.softmax(-1).mean(0).square().sum()

    _, soft = tlfx.align(Returning(logits_and_usage))(pictures(), mixture())
    assert soft[1] is None


def test_statistics_of_batch_normalisation_mix_no_labels() -> None:
    def normalised(x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2)

    shares = share(tlfx.align(Net(normalised)), pictures(), mixture().mask)
    assert torch.equal(shares, share(tlfx.align(Net()), pictures(), mixture().mask))


# rules


def one(op: Any, x: Any) -> Any:
    """A rule."""
    return x


def another(op: Any, x: Any) -> Any:
    """Another rule for the same operator."""
    return x


def test_two_rules_for_one_operator() -> None:
    registry = Registry()
    registry.add(aten.relu, one)
    with pytest.raises(tlfx.RuleConflictError) as caught:
        registry.add(aten.relu, another)
    message = str(caught.value)
    assert "aten.relu has two rules" in message
    assert f"{__name__}.one" in message
    assert f"{__name__}.another" in message
    assert "override=True" in message
    registry.add(aten.relu, another, override=True)
    registry.add(aten.relu_, one)
    registry.add(aten.relu.default, one)
    assert isinstance(caught.value, tlfx.RuleError)


def test_a_rule_that_fails_is_named() -> None:
    def broken(op: Any, x: Any) -> Any:
        raise KeyError("nothing there")

    model = tlfx.align(Net(tripled).eval())
    message = r"(?s)broken failed: KeyError: 'nothing there'.*module: inner \(Inner\)"
    with tlfx.use_rules({torch.ops.tlfx_tests.tripled: broken}), pytest.raises(tlfx.RuleError, match=message):
        model(pictures(), mixture())
