"""The aligned graph: label arithmetic where it is read, and nowhere else."""

from __future__ import annotations

import re
from functools import partial

import helpers
import pytest
import torch
import torch.nn.functional as F
from rule_harness import Probe, calls, check, random_mask, tokens
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import tlfx
from tlfx import runtime
from tlfx.propagate import Options, Propagation
from tlfx.trace import trace

SIZE = (4, 4, 6)
BATCH = 3
TOKENS = 17


small_vit = partial(helpers.vit, embed_dim=12, depth=3)


def align(model: nn.Module, images: Tensor, attention: str = "fused") -> tuple[Propagation, GraphModule]:
    traced = trace(model, images, Options(attention=attention))
    return traced.propagation, traced.graph_module


def shapes_of(graph_module: GraphModule, function: object, *inputs: Tensor) -> list[tuple[int, ...]]:
    """Shapes of what every call of a function returns."""
    seen: list[tuple[int, ...]] = []

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Node) -> object:
            out = super().run_node(n)
            if n.target is function:
                seen.append(tuple(out.shape))
            return out

    Recorder(graph_module).run(*inputs)
    return seen


@pytest.fixture(scope="module")
def aligned_vit() -> tuple[Propagation, GraphModule, Tensor, Tensor]:
    images = torch.randn(BATCH, 3, 16, 16)
    return *align(small_vit(), images), images, random_mask((3, 16, 16), seed=1)


def test_the_last_block_computes_one_query(aligned_vit: tuple[Propagation, GraphModule, Tensor, Tensor]) -> None:
    """The class token alone is read, so the last attention and its residual connection make one row."""
    _, graph_module, images, mask = aligned_vit
    assert shapes_of(graph_module, runtime.attention, images, mask) == [
        (BATCH, TOKENS, 1),
        (BATCH, TOKENS, 1),
        (BATCH, 1, 1),
    ]
    assert all("residual" in node.kwargs for node in calls(graph_module, runtime.attention))
    last = calls(graph_module, runtime.attention)[-1]
    assert last.kwargs["queries"] == (0,)
    assert all("queries" not in node.kwargs for node in calls(graph_module, runtime.attention)[:-1])


def test_mean_pooling_reads_every_query() -> None:
    images = torch.randn(BATCH, 3, 16, 16)
    _, graph_module = align(small_vit(global_pool="avg", class_token=False), images)
    assert all("queries" not in node.kwargs for node in calls(graph_module, runtime.attention))
    assert len(calls(graph_module, runtime.attention)) == 3


def test_labels_that_nothing_reads_are_not_written() -> None:
    """A branch whose output is not returned leaves no trace among the labels."""

    def function(x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, 1, 1)
        return x.mean((2, 3)) + 0.0 * (pooled @ pooled.mT).sum((1, 2, 3))[:, None]

    probe = Probe(function, SIZE)
    assert len(probe.propagation.labels.tensors) > len(calls(probe.graph_module, runtime.pixels)) + 1
    assert not probe.calls(runtime.resample)
    assert not probe.calls(runtime.mix)


def test_the_share_of_the_image_is_computed_where_tokens_have_it(
    aligned_vit: tuple[Propagation, GraphModule, Tensor, Tensor],
) -> None:
    assert len(calls(aligned_vit[1], runtime.share)) == 1
    assert not calls(Probe(lambda x: x * 2, SIZE).graph_module, runtime.share)


def test_unchanged_labels_need_no_code() -> None:
    """Point-wise and channel mixing: the pixels go straight to the output."""
    probe = check(lambda x, conv: conv(x).relu(), lambda y, x: y, SIZE, conv=nn.Conv2d(4, 4, 1))
    own = [n.target for n in probe.graph_module.graph.nodes if getattr(n.target, "__module__", "") == runtime.__name__]
    assert own == [runtime.pixels, runtime.spread, runtime.view, runtime.output]


def test_names_and_order_of_the_graph(aligned_vit: tuple[Propagation, GraphModule, Tensor, Tensor]) -> None:
    """Images and mask in, labels next to what they follow, outputs and their labels out; the model's nodes in order."""
    propagation, graph_module, _, _ = aligned_vit
    nodes = list(graph_module.graph.nodes)
    assert [n.name for n in nodes if n.op == "placeholder"] == ["x", "mask"]
    own = [n.name for n in propagation.graph_module.graph.nodes if n.op != "output"]
    assert [n.name for n in nodes if n.name in own] == own
    for node in calls(graph_module, runtime.attention):
        before = nodes[: nodes.index(node)]
        model = [n for n in before if n.name in own]
        assert model[-1].target is torch.ops.aten.scaled_dot_product_attention.default
    graph_module.graph.lint()


def test_code_reads_like_the_model(aligned_vit: tuple[Propagation, GraphModule, Tensor, Tensor]) -> None:
    code = str(aligned_vit[1].code)
    assert "def forward(self, x, mask):" in code
    assert re.search(r"\bblocks\b.*\b0\b.*\battn\.qkv\.weight", code)
    assert "runtime_attention" in code


def test_the_captured_graph_stays_as_it_was(aligned_vit: tuple[Propagation, GraphModule, Tensor, Tensor]) -> None:
    propagation, _, images, _ = aligned_vit
    assert "mask" not in [n.name for n in propagation.graph_module.graph.nodes]
    plain = propagation.graph_module(images)
    assert torch.equal(plain[0], small_vit()(images))


def test_parameters_are_those_of_the_model() -> None:
    """The graph reads the model itself at every call; its state is indices and weights."""
    model, images = small_vit(), torch.randn(BATCH, 3, 16, 16)
    _, graph_module = align(model, images)
    with torch.no_grad():
        model.head.bias.add_(1.0)
    assert torch.equal(graph_module(images, random_mask((3, 16, 16), 1))[0][0], model(images))
    assert all(not isinstance(b, nn.Parameter) for b in graph_module.buffers(recurse=False))


def test_several_outputs_share_their_labels() -> None:
    """Features and logits: what both depend on is computed once, and outputs without content have no label."""

    def function(x: Tensor, conv: nn.Module) -> tuple[Tensor, ...]:
        features = conv(x)
        return features, features.mean((2, 3)), torch.ones(2)

    probe = Probe(function, SIZE, conv=nn.Conv2d(4, 5, 3, padding=1))
    assert len(calls(probe.graph_module, runtime.convolve)) == 1
    outputs, labels = probe.graph_module(probe.images, random_mask(SIZE, 1))
    assert [label is not None for label in labels] == [True, True, False]
    assert len(outputs) == 3


def test_labels_of_outputs_are_the_mean_over_their_classes() -> None:
    """An output whose channels carry different labels has their mean at every position."""
    mask = random_mask((4, 4, 6), seed=1)

    class Fused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((x, x.flip(3)), 1)

    zeros = torch.zeros(BATCH, dtype=torch.int64)
    target = tlfx.MixedTarget(first=zeros, second=zeros + 1, mask=mask, num_classes=2, smoothing=0.0)
    _, soft = tlfx.align(Fused())(torch.randn(BATCH, *SIZE), target)
    assert soft.shape == (BATCH, 2, 4, 6)
    torch.testing.assert_close(soft[:, 0], ((mask + mask.flip(3)) / 2)[:, 0])


def test_labels_ride_on_the_model_s_own_attention() -> None:
    """In its place, under its name, and with the same bits; the last block still keeps one query."""
    images, mask = torch.randn(BATCH, 3, 16, 16), random_mask((3, 16, 16), seed=1)
    propagation, joint = align(small_vit(), images, "reuse")
    _, fused = align(small_vit(), images)
    assert len(calls(joint, runtime.attention_with_labels)) == 3
    assert not calls(joint, torch.ops.aten.scaled_dot_product_attention.default)
    own = [n.name for n in propagation.graph_module.graph.nodes if n.op != "output"]
    assert [n.name for n in joint.graph.nodes if n.name in own] == own
    assert calls(joint, runtime.attention_with_labels)[-1].kwargs["queries"] == (0,)
    (output, label), (expected, other) = joint(images, mask), fused(images, mask)
    assert torch.equal(output[0], expected[0])
    torch.testing.assert_close(label[0], other[0], rtol=0, atol=1e-6)


def test_attention_that_is_an_output_itself() -> None:
    """Where nothing else reads the operator that labels take the place of."""

    def function(x: Tensor) -> Tensor:
        z = tokens(x)[:, None]
        return F.scaled_dot_product_attention(z, z, z)

    probe = Probe(function, SIZE)
    assert calls(probe.graph_module, runtime.attention_with_labels)
    (output,), (label,) = probe.graph_module(probe.images, random_mask(SIZE, 1))
    assert torch.equal(output, function(probe.images))
    assert label.shape[:3] == output.shape[:3]


def test_regular_rows_are_views_and_equal_reads_happen_once() -> None:
    """Windows are a view of the labels of a grid; a shift of the grid is a copy by index, written once for two uses."""

    def windows(x: Tensor) -> Tensor:
        return x.unflatten(2, (2, 2)).unflatten(4, (3, 2)).permute(0, 2, 4, 3, 5, 1).mean((3, 4))

    probe = Probe(lambda x: windows(x), SIZE)
    assert calls(probe.graph_module, runtime.view)
    assert not [b for b in probe.graph_module.buffers(recurse=False) if b.dtype == torch.int64]

    def rolled(x: Tensor, conv: nn.Module) -> tuple[Tensor, Tensor]:
        shifted = x.roll(1, 3)
        return conv(shifted), F.avg_pool2d(shifted, 3, 1, 1)

    probe = Probe(rolled, SIZE, conv=nn.Conv2d(4, 4, 3, padding=1))
    index = [b for b in probe.graph_module.buffers(recurse=False) if b.dtype == torch.int64]
    assert len(index) == 1
    assert len([n for n in calls(probe.graph_module, runtime.gather) if len(n.args) == 2]) == 1


def test_labels_of_a_mask_that_all_samples_share_are_computed_once() -> None:
    """Up to where the labels depend on the image; then for each sample."""

    def function(x: Tensor, conv: nn.Module) -> Tensor:
        z = tokens(conv(x))
        return (z @ z.mT).softmax(-1) @ z

    probe = Probe(function, SIZE, conv=nn.Conv2d(4, 4, 3, padding=1))
    one = random_mask(SIZE, seed=1)[:1]
    assert shapes_of(probe.graph_module, runtime.convolve, probe.images, one) == [(1, 24, 1)]
    assert shapes_of(probe.graph_module, runtime.mix, probe.images, one) == [(BATCH, 24, 1)]
    torch.testing.assert_close(probe.shares(one)[0], probe.shares(one.expand(BATCH, -1, -1, -1))[0], equal_nan=True)


def test_the_weights_of_a_shared_kernel_are_averaged_once() -> None:
    probe = Probe(lambda x, conv: conv(conv(x)), SIZE, conv=nn.Conv2d(4, 4, 3, padding=1))
    assert len(calls(probe.graph_module, runtime.convolve)) == 2
    assert len(calls(probe.graph_module, runtime.kernel_weights)) == 1


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_size(batch: int) -> None:
    """Rows are read by index, whatever the batch: windows merged with it come out sample by sample."""

    def cut(x: Tensor) -> Tensor:
        return tokens(x).reshape(-1, 6, 4)

    probe = Probe(lambda x: cut(x) + cut(x.flip(2)), SIZE)
    mask = torch.rand(batch, 1, 4, 6)
    (label,) = probe.graph_module(torch.randn(batch, *SIZE), mask)[1]
    expected = (cut(mask.expand(-1, 4, -1, -1)) + cut(mask.flip(2).expand(-1, 4, -1, -1))) / 2
    torch.testing.assert_close(label[..., 0], expected)


def test_labels_are_float32_and_without_gradient() -> None:
    """Outside autograd and autocast (eq. 12)."""
    probe = Probe(lambda x, conv: conv(x) + x, SIZE, conv=nn.Conv2d(4, 4, 3, padding=1))
    mask = random_mask(SIZE, 1)
    plain = probe.shares(mask)[0]
    with torch.autocast("cpu", torch.bfloat16):
        (label,) = probe.graph_module(probe.images.requires_grad_(), mask)[1]
    assert label.dtype == torch.float32
    assert not label.requires_grad
    torch.testing.assert_close(label[..., 0].double().view(plain.shape), plain, rtol=0, atol=1e-6)


class Convolved(nn.Module):
    """Two convolutions; the kernel of the first may be written to after it was read."""

    kernel: Tensor

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
        self.last = nn.Conv2d(4, 5, 4)
        self.writes = writes

    def forward(self, images: Tensor) -> Tensor:
        x = F.conv2d(images, self.kernel, stride=2).relu()
        if self.writes:
            self.kernel.copy_(self.kernel.square())
        return self.last(x).mean((2, 3))


def test_labels_of_the_mask_are_one_stretch() -> None:
    """At the end, so that they do not take turns with the operators of the model."""
    _, graph_module = align(Convolved(writes=False), torch.randn(2, 3, 16, 16))
    nodes = [n for n in graph_module.graph.nodes if n.op == "call_function"]
    by_model = [isinstance(n.target, torch._ops.OpOverload) for n in nodes]
    assert by_model == sorted(by_model, reverse=True)
    assert not by_model[-1]


def test_labels_of_a_kernel_that_is_written_to_are_those_of_the_kernel_that_was_read() -> None:
    images, mask = torch.randn(BATCH, 3, 16, 16), random_mask((3, 16, 16), seed=1)
    label = []
    for writes in (False, True):
        torch.manual_seed(0)
        _, graph_module = align(Convolved(writes), images)
        label.append(graph_module(images, mask)[1][0])
    torch.testing.assert_close(label[1], label[0], rtol=0, atol=0)
