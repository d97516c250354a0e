"""Aligned models under what training scripts put around them: checkpoints, hooks, compilation, averages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_step, gradients, vit
from parallel.steps import Transformer, mixed_batch, step
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import tlfx
from tlfx.aligned import planner_of
from tlfx.capture.arguments import Call


class Convolutions(nn.Module):
    """Batch norms and dropout in two stages, which are checkpointed by themselves or not."""

    def __init__(self, run: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.ModuleList(self.stage(*size) for size in ((3, 8), (8, 8)))
        self.head = nn.Linear(8, 5)
        self.run = run

    @staticmethod
    def stage(width: int, out: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = self.run(stage, x) if self.run else stage(x)
        return self.head(x.mean((2, 3)))


class CountingAttention(TorchDispatchMode):
    """Counts how often attention is computed in its context."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return func(*args, **(kwargs or {}))


def checkpointing(model: nn.Module) -> nn.Module:
    model.set_grad_checkpointing()
    return model


def plain_step(model: nn.Module, soft: Tensor) -> Tensor:
    torch.manual_seed(3)
    logits = model(mixed_batch()[0])
    F.cross_entropy(logits, soft).backward()
    return logits.detach()


def same_gradients(one: nn.Module, other: nn.Module) -> bool:
    """Whether all gradients are equal, bit for bit, and none is missing."""
    pairs = zip(gradients(one), gradients(other), strict=True)
    return all(p is not None and q is not None and torch.equal(p, q) for p, q in pairs)


def saved_bytes(model: nn.Module) -> int:
    """Bytes of activations that an aligned step keeps for backward."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    model(*mixed_batch())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = model(*mixed_batch())
    del outputs
    return sum(kept.values())


# gradient checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_torch(reentrant: bool) -> None:
    """Batch norms count each batch once, as without checkpoints; the random state of dropout is kept."""
    aligned, untouched = tlfx.align(Convolutions(partial(checkpoint, use_reentrant=reentrant))), Convolutions()
    images, target = mixed_batch()
    soft = assert_same_step(untouched, aligned, images.requires_grad_(reentrant), target)
    assert torch.equal(soft, tlfx.align(deepcopy(untouched))(*mixed_batch())[1])
    for (name, one), other in zip(aligned.named_buffers(), untouched.buffers(), strict=True):
        assert torch.equal(one, other), name
    assert aligned.stages[0][1].num_batches_tracked == 1


def test_a_reentrant_checkpoint_of_images_without_gradients_has_none() -> None:
    plain, aligned = (Convolutions(partial(checkpoint, use_reentrant=True)) for _ in range(2))
    assert_same_step(plain, tlfx.align(aligned), *mixed_batch())
    assert [p.grad is None for p in aligned.stages.parameters()] == [True] * 8
    assert aligned.head.weight.grad is not None


def test_checkpoints_keep_their_options() -> None:
    """Contexts, which selective checkpoints are made of, around the function and around its recomputation."""
    entered: list[str] = []

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        entered.append(name)
        yield

    run = partial(checkpoint, use_reentrant=False, context_fn=lambda: (noted("forward"), noted("again")))
    model = tlfx.align(Convolutions(run))
    assert_same_step(Convolutions(), model, *mixed_batch())
    assert entered == ["forward", "forward", "again", "again"]
    assert model.stages[1][1].num_batches_tracked == 1


@pytest.mark.slow
def test_checkpoints_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=5, **size)
    torch.manual_seed(0)
    plain = transformers.ViTForImageClassification(config).train()
    aligned = tlfx.align(deepcopy(plain))
    aligned.gradient_checkpointing_enable()
    images, target = mixed_batch()
    output, soft = aligned(images, target=target)
    with CountingAttention() as again:  # type: ignore[no-untyped-call]
        F.cross_entropy(output.logits, soft.logits).backward()
    assert again.count == 2
    expected = plain(images).logits
    F.cross_entropy(expected, soft.logits).backward()
    assert torch.equal(output.logits, expected)
    assert same_gradients(aligned, plain)


@pytest.mark.slow
def test_checkpoints_of_timm() -> None:
    options = {"proj_drop_rate": 0.2, "drop_path_rate": 0.2}
    plain, aligned = vit(**options), checkpointing(tlfx.align(vit(**options)))
    soft = assert_same_step(checkpointing(deepcopy(plain)), aligned, *mixed_batch(), seed=3)
    output, _ = aligned(*mixed_batch())
    with CountingAttention() as again:  # type: ignore[no-untyped-call]
        output.sum().backward()
    assert again.count == 2  # of both blocks, computed once more for backward
    torch.manual_seed(3)
    torch.testing.assert_close(soft, tlfx.align(plain)(*mixed_batch())[1], rtol=0, atol=1e-6)


def test_checkpoints_save_memory() -> None:
    aligned = tlfx.align(vit())
    without = saved_bytes(aligned)
    aligned.set_grad_checkpointing()
    assert 0 < saved_bytes(aligned) < 0.25 * without


@pytest.mark.slow
def test_checkpoints_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_step(checkpointing(vit()), checkpointing(tlfx.align(vit())), *mixed_batch())


@pytest.mark.slow
def test_a_graph_without_regions_is_one_piece() -> None:
    aligned = tlfx.align(Transformer())
    aligned(*mixed_batch())
    plan = planner_of(aligned).latest
    assert plan.program is plan.graph_module


@pytest.mark.slow
def test_labels_are_recorded_inside_checkpoints() -> None:
    recorded = []
    for checkpointed in (False, True):
        model = tlfx.align(Transformer(checkpointed))
        with tlfx.record(model, at="blocks.*") as labels:
            model(*mixed_batch())
        recorded.append(labels)
    assert list(recorded[0]) == list(recorded[1])
    for name, label in recorded[0].items():
        torch.testing.assert_close(label, recorded[1][name], rtol=0, atol=1e-6)


# hooks


def test_hooks_that_look_on_fire_at_every_call() -> None:
    """With the tensors that the plain model shows them, in order, and under no_grad too."""
    seen: dict[str, list[Tensor]] = {"aligned": [], "plain": []}
    models = {"aligned": tlfx.align(Transformer(), example=mixed_batch()[0]), "plain": Transformer()}
    for kind, model in models.items():
        block, note = model.blocks[0], seen[kind].append
        block.register_forward_pre_hook(lambda module, args, note=note: note(args[0].detach().clone()))
        block.mlp.register_forward_hook(lambda module, args, output, note=note: note(output.detach().mean()))
        block.register_forward_hook(lambda module, args, output, note=note: note(output.detach().clone()))
    planner_of(models["aligned"]).plan(models["aligned"], Call.of(mixed_batch()[0]))
    seen["aligned"].clear()
    for _ in range(2):
        assert_same_step(models["plain"], models["aligned"], *mixed_batch())
    assert len(seen["plain"]) == 6
    for one, other in zip(seen["aligned"], seen["plain"], strict=True):
        assert torch.equal(one, other)


def test_backward_hooks_inside() -> None:
    seen: dict[str, list[Tensor]] = {"aligned": [], "plain": []}
    models = {"aligned": tlfx.align(Transformer()), "plain": Transformer()}
    for kind, model in models.items():
        note = seen[kind].append
        model.blocks[1].register_full_backward_hook(lambda m, before, after, note=note: note(before[0].clone()))  # type: ignore[misc]
        model.blocks[0].qkv.register_full_backward_pre_hook(lambda m, after, note=note: note(after[0].clone()))  # type: ignore[misc]
    assert_same_step(models["plain"], models["aligned"], *mixed_batch())
    assert len(seen["plain"]) == 2
    assert all(map(torch.equal, seen["aligned"], seen["plain"]))


def test_a_hook_that_changes_values_is_computed_and_labels_follow() -> None:
    """Beside one that looks on, and one that writes to what it is given; each has its effect once."""

    def moved(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.flip(1)

    def written(module: nn.Module, args: tuple[Tensor]) -> None:
        args[0].mul_(2.0)

    class Flipped(Transformer):
        def forward(self, images: Tensor) -> Tensor:
            x = self.patches(images).flatten(2).transpose(1, 2)
            x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
            x = self.blocks[1](self.blocks[0](x).flip(1) * 2.0)
            return self.head(x[:, 0])

    seen: list[Tensor] = []
    model = Transformer()
    model.blocks[0].register_forward_hook(moved)
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    model.blocks[1].register_forward_pre_hook(written)
    plain = deepcopy(model)
    soft = assert_same_step(plain, tlfx.align(model), *mixed_batch())
    assert torch.equal(soft, step(tlfx.align(Flipped()), *mixed_batch())["soft"])
    assert not torch.equal(soft, step(tlfx.align(Transformer()), *mixed_batch())["soft"])
    assert torch.equal(seen[-1], seen[0])


def test_a_hook_that_counts_counts_once() -> None:
    model = tlfx.align(Transformer())
    model.blocks[0].register_buffer("count", torch.zeros(()))

    def counting(module: Any, args: Any, output: Tensor) -> None:
        module.count += 1

    model.blocks[0].register_forward_hook(counting)
    for _ in range(3):
        model(*mixed_batch())
    assert model.blocks[0].count == 3


def test_hooks_see_outputs_that_nothing_reads() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            weights = (x @ x.mT).softmax(-1)
            return weights @ x, weights.mean(1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x.flatten(2).mT)[0].mean(1)

    seen: list[Tensor] = []
    model = tlfx.align(Model())
    model.attention.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    images, target = mixed_batch()
    model(images, target)
    tokens = images.flatten(2).mT
    assert torch.equal(seen[-1], (tokens @ tokens.mT).softmax(-1).mean(1))


@pytest.mark.slow
def test_a_hook_that_writes_through_a_view_is_computed() -> None:
    def written(module: nn.Module, args: tuple[Tensor]) -> None:
        args[0][:, 2:] = args[0][:, 1:2].clone()

    model, plain = Transformer(), Transformer()
    before = step(tlfx.align(Transformer()), *mixed_batch())["soft"]
    for one in (model, plain):
        one.blocks[1].register_forward_pre_hook(written)
    assert (assert_same_step(plain, tlfx.align(model), *mixed_batch()) - before).abs().max() > 1e-4


def test_hooks_that_read_values_look_on_or_are_refused() -> None:
    seen: list[float] = []
    model = Transformer()
    handle = model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(float(output.mean())))
    plain = deepcopy(model)
    handle = (
        tlfx.align(model)
        .blocks[0]
        .register_forward_hook(lambda module, args, output: output * 2 if float(output.mean()) < 9 else None)
    )
    with pytest.raises(tlfx.TlfxError, match=r"(?s)a hook of Block changes .* cannot be captured .* labels cannot fol"):
        model(*mixed_batch())
    handle.remove()
    handle = model.blocks[1].register_forward_pre_hook(lambda module, args: float(args[0].mul_(2).mean()) and None)
    with pytest.raises(tlfx.TlfxError, match=r"(?s)a hook of Block changes what the module computes.*\.item\(\)"):
        model(*mixed_batch())
    handle.remove()
    seen.clear()
    assert_same_step(plain, model, *mixed_batch())
    assert len(seen) == 2
    assert seen[0] == seen[1]


# compilation


@pytest.mark.parametrize("checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_without_a_graph_break(checkpointed: bool) -> None:
    torch.compiler.reset()
    model, plain = tlfx.align(Transformer(checkpointed, 1), example=mixed_batch()[0]), Transformer(checkpointed, 1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.manual_seed(3)
    result = step(compiled, *mixed_batch())
    assert torch.equal(result["logits"], plain_step(plain, result["soft"]))
    assert same_gradients(model, plain)
    torch.testing.assert_close(result["soft"], model(*mixed_batch())[1], rtol=0, atol=1e-6)
    with torch.no_grad():
        for parameters in (model.parameters(), plain.parameters()):
            next(iter(parameters)).mul_(2.0)
    assert torch.equal(compiled(*mixed_batch())[0], plain(mixed_batch()[0]))


@pytest.mark.parametrize(
    ("mode", "autocast"),
    [
        (None, False),
        pytest.param(None, True, marks=pytest.mark.slow),
        pytest.param("reduce-overhead", False, marks=pytest.mark.slow),
    ],
)
def test_compiled_by_inductor(mode: str | None, autocast: bool) -> None:
    """Without a break, if the capture is made under the autocast of the call."""
    torch.compiler.reset()
    images, target = mixed_batch()
    plain, model = vit(depth=1), vit(depth=1)
    near = partial(torch.testing.assert_close, rtol=0, atol=2e-2 if autocast else 1e-5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tlfx.align(model, example=images)
        logits, soft = torch.compile(model, mode=mode, fullgraph=True)(images, target)
        expected = plain(images)
        near(logits, expected)
        near(soft, model(images, target)[1])
    for output in (logits, expected):
        output.float().logsumexp(1).mean().backward()
    for one, other in zip(gradients(model), gradients(plain), strict=True):
        near(one, other)


@pytest.mark.slow
def test_compiled_before_the_first_capture_and_in_another_mode() -> None:
    """Each capture breaks the graph once; what was compiled for another mode is not used."""
    torch.compiler.reset()
    model, plain = tlfx.align(Convolutions()), Convolutions()
    compiled = torch.compile(model, backend="aot_eager")
    for training in (True, False, True):
        model.train(training), plain.train(training)
        torch.manual_seed(3)
        logits = compiled(*mixed_batch())[0]
        torch.manual_seed(3)
        torch.testing.assert_close(logits, plain(mixed_batch()[0]))
    torch.compiler.reset()
    model.eval(), plain.eval()
    torch.compile(model, backend="aot_eager", fullgraph=True)(*mixed_batch())


@pytest.mark.slow
def test_compiled_with_hooks() -> None:
    """With a break at each block that has one."""
    torch.compiler.reset()
    seen: list[Tensor] = []
    model, plain = tlfx.align(Transformer()), Transformer()
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    compiled = torch.compile(model, backend="eager")
    compiled(*mixed_batch())
    for _ in range(3):
        seen.clear()
        result = step(compiled, *mixed_batch())
        assert torch.equal(result["logits"], plain_step(plain, result["soft"]))
        assert len(seen) == 1
    assert same_gradients(model, plain)


# averages and evaluation


@pytest.mark.slow
def test_averaged_model_of_torch() -> None:
    model = tlfx.align(Transformer(), example=mixed_batch()[0])
    averaged = AveragedModel(model, multi_avg_fn=None, use_buffers=True)
    for value in (0.0, 0.1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(value)
        averaged.update_parameters(model)
    plain = Transformer()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.05)
    with torch.inference_mode():
        logits, soft = averaged(*mixed_batch())
        torch.testing.assert_close(logits, plain(mixed_batch()[0]))
        assert torch.equal(averaged(mixed_batch()[0]), logits)
        torch.testing.assert_close(soft, tlfx.align(plain)(*mixed_batch())[1], rtol=0, atol=1e-5)
