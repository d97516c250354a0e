"""Label policies against their twins, and the laws of labels under each of them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from helpers import aligned_graph, mixture, pictures, slow_except, vit
from test_twins import TOLERANCE, inputs, rectangles, soft_rows, target
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from twins.families import CLASSES, randomise, small_convnext, small_mixer, small_swin, unfused  # type: ignore[attr-defined]
from twins.policies import aligned_share

import tlfx
from tlfx import runtime
from tlfx.policy import check_policy
from tlfx.recording import labels_of

BATCH = 4

small_vit = partial(
    VisionTransformer, img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=CLASSES
)
gated_vit = partial(small_vit, init_values=1.0, drop_path_rate=0.6)
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (gated_vit, 32),
    "vit-unfused": (partial(unfused, gated_vit), 32),
    "swin": (small_swin, 48),
    "mixer": (partial(small_mixer, num_blocks=2), 32),
    "convnext": (partial(small_convnext, ls_init_value=1.0), 64),
}
SINGLE = {
    "norm": tlfx.Policy(residual="norm"),
    "gated": tlfx.Policy(residual="gated"),
    "skip": tlfx.Policy(residual="skip"),
    "heads": tlfx.Policy(heads="norm"),
    "signed": tlfx.Policy(weights="signed"),
    "weighted": tlfx.Policy(aggregation="weighted"),
    "values": tlfx.Policy(values="norm"),
    "deviation": tlfx.Policy(values="deviation"),
}
ALL = {
    "all-norm": tlfx.Policy("norm", "norm", "signed", "weighted"),
    "all-gated": tlfx.Policy("gated", "norm", "signed", "weighted"),
    "all-deviation": tlfx.Policy("norm", "mean", "signed", "weighted", "deviation"),
}
slow = pytest.mark.slow
TOGETHER = [("vit-unfused", "all-gated"), ("mixer", "all-deviation"), ("convnext", "values")]
APART = [
    ("vit", "all-norm"),
    *(("vit", name) for name in ("norm", "gated", "skip", "heads", "weighted")),
    ("vit-unfused", "heads"),
    *(("vit", name) for name in ("values", "deviation")),
    ("vit-unfused", "all-deviation"),
    *(("swin", name) for name in ("heads", "weighted", "all-norm", "values", "all-deviation")),
    *(("mixer", name) for name in ("signed", "weighted", "all-norm", "values")),
    *(("convnext", name) for name in ("norm", "gated", "signed", "weighted", "all-gated", "all-deviation")),
]


def model_of(name: str) -> tuple[nn.Module, int]:
    build, size = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(build()).train(), size


@pytest.mark.parametrize(("name", "policy"), [*TOGETHER, *(pytest.param(*case, marks=slow) for case in APART)])
def test_policies_equal_their_twins(name: str, policy: str) -> None:
    """Targets of the twin, and logits of the plain model bit for bit, paths dropped at random."""
    plain, size = model_of(name)
    chosen = (SINGLE | ALL)[policy]
    aligned = tlfx.align(deepcopy(plain), policy=chosen)
    images, mixed = inputs(BATCH, size)
    torch.manual_seed(3)
    expected = aligned_share(plain, images, mixed.mask, chosen)
    torch.manual_seed(3)
    logits, soft = aligned(images, mixed)
    torch.manual_seed(3)
    assert torch.equal(logits, plain(images))
    torch.testing.assert_close(soft, soft_rows(expected, mixed.first, mixed.second, CLASSES), **TOLERANCE)
    torch.manual_seed(3)
    paper = aligned_share(plain, images, mixed.mask, tlfx.Policy())
    assert (paper - expected).abs().max() > 3e-5


@pytest.mark.slow
def test_dropped_paths_are_dropped_from_labels() -> None:
    """Where a sample skips every attention, its class token keeps the share of the image."""
    plain, size = model_of("vit")
    images, mixed = inputs(32, size)
    torch.manual_seed(3)
    dropped = [m for m in plain.modules() if getattr(m, "drop_prob", 0)]
    assert len(dropped) == 2
    for residual in ("norm", "gated"):
        aligned = tlfx.align(deepcopy(plain), policy=tlfx.Policy(residual=residual))
        torch.manual_seed(3)
        with tlfx.record(aligned, at=["blocks.0", "blocks.1"]) as labels:
            aligned(images, mixed)
        still = (labels["blocks.0"] == labels["blocks.1"]).all(1)
        assert 8 < still.sum() < 30


@pytest.mark.parametrize(
    ("name", "policy"),
    slow_except(
        [("vit", "all-norm")],
        product(("vit", "swin", "convnext"), [*SINGLE, *ALL]),
    ),
)
def test_labels_keep_their_laws(name: str, policy: str) -> None:
    """Constant, linear, within bounds, by sample, whatever the order of the batch."""
    plain, size = model_of(name)
    aligned = tlfx.align(plain.eval(), policy=(SINGLE | ALL)[policy])
    images = inputs(BATCH, size)[0]
    one, other = (
        rectangles(BATCH, size, 1),
        torch.rand(BATCH, 1, size, size, generator=torch.Generator().manual_seed(2)),
    )

    def labels(mask: Tensor, images: Tensor = images) -> Tensor:
        return labels_of(aligned, images, mask, at="head")[2]["head"]

    first, second, constant, mixture = labels(
        torch.cat((one, other, one * 0 + 0.3, 0.3 * one + 0.7 * other), 1)
    ).unbind(1)
    torch.testing.assert_close(constant, torch.full_like(constant, 0.3), rtol=0, atol=1e-6)
    torch.testing.assert_close(mixture, 0.3 * first + 0.7 * second, rtol=0, atol=1e-6)
    assert first.min() >= 0
    assert first.max() <= 1 + 1e-6
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(labels(one[order], images[order])[:, 0], first[order], rtol=0, atol=1e-6)
    alone = labels(torch.cat((one[:1], other[1:])))[:, 0]
    torch.testing.assert_close(alone[:1], first[:1], rtol=0, atol=1e-6)


# operators beside those of the families


class Sum(nn.Module):
    """A 3 × 3 convolution, and what ``join`` makes of it and its input."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.join = nn.Conv2d(3, 3, 3, padding=1), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x * 1, self.conv(x))


def summed(model: Sum, mask: Tensor, weights: Callable[[Tensor, Tensor], tuple[Any, Any]], images: Tensor) -> Tensor:
    """The label at every pixel of a sum whose summands, given as values, have these weights."""
    kernel = model.conv.weight.detach().double().abs().mean((0, 1), keepdim=True)
    mask = mask.double()
    branch = conv2d(mask, kernel, padding=1) / conv2d(torch.ones_like(mask), kernel, padding=1)
    one, other = weights(images.double(), model.conv(images).detach().double())
    return ((one * mask + other * branch) / (one + other))[:, 0]


def norms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.square().sum(1, keepdim=True).sqrt(), y.square().sum(1, keepdim=True).sqrt()


def scaled(factor: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda x, y: (norms(x, y)[0], factor * norms(x, y)[1])


JOINS = {
    "add": (lambda x, y: x + y, 1.0),
    "in-place": (lambda x, y: y.add_(x), 1.0),
    "in-place-other-way": (lambda x, y: x.add_(y), 1.0),
    "alpha": (lambda x, y: torch.add(x, y, alpha=-0.25), 0.25),
    "rsub": (lambda x, y: torch.rsub(y, x, alpha=3), 3.0),
    "scaled": (lambda x, y: x - 0.2 * y, 0.2),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.75), 3.0),
    "moved": (lambda x, y: x + (y.flatten(2).mT * torch.full((3,), -0.5)).mT.unflatten(2, (8, 8)), 0.5),
}


@pytest.mark.parametrize("residual", ["norm", "gated"])
@pytest.mark.parametrize("name", slow_except(("in-place", "rsub", "lerp", "moved"), JOINS))
def test_every_way_to_add(name: str, residual: Any) -> None:
    """Sums in place read their summands before they are overwritten; scales of the operator count."""
    join, factor = JOINS[name]
    model, images, mask = Sum(join), torch.randn(BATCH, 3, 8, 8), rectangles(BATCH, 8)
    weights = scaled(factor) if residual == "norm" else lambda x, y: (1.0, factor)
    expected = summed(model, mask, weights, images)
    aligned = tlfx.align(deepcopy(model), policy=tlfx.Policy(residual=residual))
    output, label, _ = labels_of(aligned, images, mask)
    assert torch.equal(output, model(images))
    torch.testing.assert_close(label[..., 0].double(), expected, **TOLERANCE)


def test_gates_of_samples_and_windows() -> None:
    """Factors of a sample count for it alone, also where windows are merged into the batch; they multiply."""
    depth = torch.tensor([0.0, 2.0, 1.0, 0.5])

    def join(x: Tensor, y: Tensor, depth: Tensor) -> Tensor:
        windows = y.unflatten(2, (2, 4)).movedim(2, 1).flatten(0, 1)
        windows = windows * depth.repeat_interleave(2).view(-1, 1, 1, 1) * torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1)
        return x + windows.unflatten(0, (-1, 2)).movedim(1, 2).flatten(2, 3)

    class Dropped(Sum):
        def forward(self, x: Tensor, depth: Any = None) -> Tensor:
            return join(x * 1, self.conv(x), depth)

    model, images, mask = Dropped(join), torch.randn(BATCH, 3, 8, 8), rectangles(BATCH, 8)  # type: ignore[arg-type]
    aligned = tlfx.align(deepcopy(model), policy=tlfx.Policy(residual="gated"))
    label = labels_of(aligned, (images, depth), mask)[1]
    expected = summed(model, mask, lambda x, y: (1.0, 2.0 * depth.double().view(-1, 1, 1, 1)), images)
    torch.testing.assert_close(label[..., 0].double(), expected, **TOLERANCE)


class Attention(nn.Module):
    """Grouped queries, causal or masked, over six tokens a row of the image each."""

    def __init__(self, causal: bool, groups: int, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.causal, self.groups = causal, groups
        self.q, self.k, self.v = nn.Linear(18, 16), nn.Linear(18, 16 // groups), nn.Linear(18, 16 // groups)
        self.mask: Tensor | None
        self.register_buffer("mask", torch.randn(6, 6) if masked else None)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        tokens = x.movedim(2, 1).flatten(2)
        return tuple(layer(tokens).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(x)
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask, is_causal=self.causal, enable_gqa=self.groups > 1
        )
        return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("causal", "groups", "masked"),
    slow_except(
        [(False, 2, True), (True, 4, False)], [(False, 1, False), (True, 1, False), (False, 2, True), (True, 4, False)]
    ),
)
@pytest.mark.parametrize("rows", [slice(None), slice(2, 5, 2)], ids=["all", "some"])
def test_heads_of_fused_attention(causal: bool, groups: int, masked: bool, rows: slice) -> None:
    """Heads and groups written out one by one; all queries, or the few that are read."""
    attention = Attention(causal, groups, masked)

    class Some(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x)[:, rows]

    images, mask = torch.randn(BATCH, 3, 6, 6), torch.rand(BATCH, 1, 6, 1).expand(-1, -1, -1, 6)
    q, k, v = (part.detach().double() for part in attention.parts(images))
    bias = attention.mask.double() if masked else torch.zeros(6, 6, dtype=torch.float64)
    bias = bias.masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf")) if causal else bias
    total = torch.zeros(BATCH, 6, 6, dtype=torch.float64)
    for head in range(4):
        group = head // groups
        total += (q[:, head] @ k[:, group].mT / 2 + bias).softmax(-1) * v[:, group].norm(dim=-1)[:, None]
    expected = (total / total.sum(-1, keepdim=True) @ mask[:, 0, :, :1].double())[:, rows, 0]
    aligned = tlfx.align(Some(), policy=tlfx.Policy(heads="norm"))
    torch.testing.assert_close(labels_of(aligned, images, mask)[1][..., 0].double(), expected, **TOLERANCE)


def sizes(x: Tensor, values: str) -> Tensor:
    """Norms of tokens (B, N) of values (B, N, C), or of their differences from the mean token."""
    x = x.detach().double()
    return (x - x.mean(1, keepdim=True) if values == "deviation" else x).norm(dim=-1)


class Tokens(nn.Module):
    """The six pixels of an image as tokens (B, 6, 3), and what ``head`` and ``layer`` make of them."""

    def __init__(self, head: Callable[[Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.head, self.layer = head, layer

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        return self.head(tokens) if self.layer is None else self.layer(self.head(tokens))


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda t: t.mean(1),
    "sum": lambda t: t.sum(1, keepdim=True).squeeze(1),
    "einsum": lambda t: torch.einsum("bnc->cb", t).T,
    "pool": lambda t: nn.functional.adaptive_avg_pool1d(t.mT, 1).squeeze(-1),
    "of a product": lambda t: (t * torch.arange(1.0, 7.0)[:, None]).mean(1),
}


@pytest.mark.parametrize("values", ["norm", "deviation"])
@pytest.mark.parametrize("name", POOLS)
def test_pooling_by_values(name: str, values: Any) -> None:
    """Every spelling of a mean; what is pooled counts, so that a factor is a part of the value."""
    images, mask = torch.randn(BATCH, 3, 2, 3), torch.rand(BATCH, 1, 2, 3)
    tokens = images.flatten(2).mT
    tokens = tokens * torch.arange(1.0, 7.0)[:, None] if name == "of a product" else tokens
    count = sizes(tokens, values)
    expected = (count * mask.flatten(1).double()).sum(1) / count.sum(1)
    aligned = tlfx.align(Tokens(POOLS[name]), policy=tlfx.Policy(values=values))
    torch.testing.assert_close(labels_of(aligned, images, mask)[1].flatten().double(), expected, **TOLERANCE)


@pytest.mark.parametrize("spelling", ["linear", "convolution", "matrix"])
def test_token_mixing_by_values(spelling: str) -> None:
    """A layer along the tokens, however it is written."""
    torch.manual_seed(0)
    weight = torch.randn(5, 6)
    layers: dict[str, Callable[[], tuple[Callable[[Tensor], Tensor], nn.Module | None]]] = {
        "linear": lambda: (lambda t: t.mT, nn.Linear(6, 5, bias=False)),
        "convolution": lambda: (lambda t: t, nn.Conv1d(6, 5, 1, bias=False)),
        "matrix": lambda: (lambda t: weight @ t, None),
    }
    head, layer = layers[spelling]()
    if layer is not None:
        layer.weight.data = weight if spelling == "linear" else weight[..., None]
    images, mask = torch.randn(BATCH, 3, 2, 3), torch.rand(BATCH, 1, 2, 3)
    total = weight.double().abs() * sizes(images.flatten(2).mT, "deviation")[:, None]
    expected = (total / total.sum(-1, keepdim=True) @ mask.double().flatten(1)[..., None])[..., 0]
    aligned = tlfx.align(Tokens(head, layer), policy=tlfx.Policy(values="deviation"))
    label = labels_of(aligned, images, mask)[1][..., 0].double()
    torch.testing.assert_close(label, expected[:, None].expand_as(label) if label.dim() == 3 else expected, **TOLERANCE)


def test_values_without_any_difference_count_alike() -> None:
    aligned = tlfx.align(Tokens(lambda t: t.clamp(9, 9).mean(1)), policy=tlfx.Policy(values="deviation"))
    mask = torch.rand(BATCH, 1, 2, 3)
    label = labels_of(aligned, torch.randn(BATCH, 3, 2, 3), mask)[1].flatten()
    torch.testing.assert_close(label, mask.mean((1, 2, 3)), **TOLERANCE)


def test_weighted_aggregation_of_everything_at_once() -> None:
    """A linear layer over a flattened image: each pixel by the weights of its channels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 5, 7))
    weight = model[1].weight.detach().double()
    images, mask = torch.randn(BATCH, 3, 6, 5), torch.rand(BATCH, 1, 6, 5)
    choices: Any = ("absolute", weight.abs()), ("signed", weight.clamp_min(0))
    for weights, size in choices:
        policy = tlfx.Policy(weights=weights, aggregation="weighted")
        by_pixel = size.sum(0).view(3, -1).sum(0)
        expected = linear(mask.flatten(1).double(), by_pixel[None] / by_pixel.sum())
        label = labels_of(tlfx.align(deepcopy(model), policy=policy), images, mask)[1]
        torch.testing.assert_close(label.double(), expected, **TOLERANCE)


def test_signed_weights_without_a_positive_one() -> None:
    """Uniform, as the documentation says, and no label is lost at the edge of the image."""
    model = nn.Conv2d(3, 2, 3, padding=1)
    nn.init.constant_(model.weight, -1.0)
    mask = torch.rand(BATCH, 1, 5, 5)
    label = labels_of(tlfx.align(model, policy=tlfx.Policy(weights="signed")), torch.randn(BATCH, 3, 5, 5), mask)[1]
    ones = torch.ones(1, 1, 3, 3)
    expected = conv2d(mask, ones, padding=1) / conv2d(torch.ones_like(mask), ones, padding=1)
    torch.testing.assert_close(label[..., 0], expected[:, 0], **TOLERANCE)


# the option itself


def test_the_paper_is_the_default() -> None:
    default, paper, by_norm = (
        aligned_graph(tlfx.align(Sum(torch.add), policy=policy), torch.randn(2, 3, 8, 8))
        for policy in (None, tlfx.Policy("average", "mean", "absolute", "uniform"), tlfx.Policy(residual="norm"))
    )
    assert [node.format_node() for node in default.nodes] == [node.format_node() for node in paper.nodes]
    (convolved,) = default.find_nodes(op="call_function", target=runtime.convolve)
    assert "residual" in convolved.kwargs
    assert not default.find_nodes(op="call_function", target=runtime.residual_by_norm)
    assert len(by_norm.find_nodes(op="call_function", target=runtime.residual_by_norm)) == 1


def test_copies_keep_the_policy() -> None:
    aligned = tlfx.align(nn.Sequential(Sum(torch.add), nn.Flatten(2)), policy=tlfx.Policy(residual="norm"))
    images, mask = torch.randn(BATCH, 3, 8, 8), rectangles(BATCH, 8)
    assert torch.equal(labels_of(aligned, images, mask)[1], labels_of(deepcopy(aligned), images, mask)[1])
    graph = aligned_graph(deepcopy(aligned), images)
    assert graph.find_nodes(op="call_function", target=runtime.residual_by_norm)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"residual": "sum"}, r"residual='sum' is unknown, expected one of 'average', 'skip', 'norm', 'gated'"),
        ({"heads": "max"}, r"heads='max' is unknown, expected one of 'mean', 'norm'"),
        ({"weights": "raw"}, r"weights='raw' is unknown, expected one of 'absolute', 'signed'"),
        ({"aggregation": None}, r"aggregation=None is unknown, expected one of 'uniform', 'weighted'"),
        ({"values": "mean"}, r"values='mean' is unknown, expected one of 'equal', 'norm', 'deviation'"),
    ],
)
def test_unknown_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(tlfx.InputError, match=words):
        tlfx.Policy(**options)


def test_policies_by_name() -> None:
    """A name gives the labels of its policy, as do the texts of the command line."""
    policies = ("influence", tlfx.Policy(residual="norm", values="deviation"), None)
    named, written, paper = (tlfx.align(vit(), policy=policy)(pictures(), mixture())[1] for policy in policies)
    assert torch.equal(named, written)
    assert not torch.equal(named, paper)
    assert check_policy("paper") == tlfx.Policy()
    assert check_policy("residual=norm") == tlfx.Policy(residual="norm")


@pytest.mark.parametrize("policy", [{"residual": "norm"}, tlfx.Policy])
def test_no_policy(policy: Any) -> None:
    model = nn.Identity()
    with pytest.raises(tlfx.InputError, match=r"expected a tlfx.Policy such as tlfx.Policy\(residual='norm'\)"):
        tlfx.align(model, policy=policy)
    assert type(model) is nn.Identity


def test_a_sum_that_hides_a_summand_of_the_same_label() -> None:
    """Where labels agree there is nothing to weight, and no reason to refuse."""

    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.addcmul(x, x.relu(), x.new_full((3, 1, 1), 0.5))

    aligned = tlfx.align(Same(), policy=tlfx.Policy(residual="norm"))
    mask = torch.rand(BATCH, 1, 8, 8)
    assert torch.equal(labels_of(aligned, torch.randn(BATCH, 3, 8, 8), mask)[1][..., 0], mask[:, 0])


@pytest.mark.parametrize("residual", ["norm", "gated"])
def test_a_sum_that_hides_a_summand(residual: Any) -> None:
    model = Sum(lambda x, y: torch.addcmul(x, y, y.new_full((3, 1, 1), 0.5)))
    aligned = tlfx.align(model, policy=tlfx.Policy(residual=residual))
    words = (
        rf"residual='{residual}' needs both summands of addcmul, which computes one of them, or its scale, itself: use"
    )
    with pytest.raises(tlfx.InputError, match=words):
        aligned(torch.randn(BATCH, 3, 8, 8), target(rectangles(BATCH, 8)))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_heads_that_an_operator_hides() -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    blocks = create_block_mask(lambda b, h, q, k: q >= 0, None, None, 64, 64, device="cpu")

    class Flex(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)
            return flex_attention(tokens, tokens, tokens, block_mask=blocks)

    aligned = tlfx.align(Flex(), policy=tlfx.Policy(heads="norm"))
    words = r"heads='norm' is not supported for flex_attention, which does not expose its weights: use heads="
    with pytest.raises(tlfx.InputError, match=words):
        aligned(torch.randn(2, 4, 8, 8), target(rectangles(2, 8)))
    aligned = tlfx.align(Flex(), policy=tlfx.Policy(values="norm"))
    words = r"values='norm' is not supported for flex_attention, which does not expose its weights: use values='equal'"
    with pytest.raises(tlfx.InputError, match=words):
        aligned(torch.randn(2, 4, 8, 8), target(rectangles(2, 8)))
