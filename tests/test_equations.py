"""Equations 1 to 13 of the paper: tlfx against the slow twin of each, on DeiT, Swin, Mixer and ConvNeXt.

Equations 4, 6, 8 and 10 are about tokens, which are those of the plain model. Mixers and ConvNeXts have no attention
(eq. 6, 8, 9), and a ConvNeXt block has one residual connection, not the two of eq. 10.
"""

from __future__ import annotations

import ast
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLASSES, pictures, slow_except
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from twins import eq_01, eq_02, eq_03, eq_04, eq_05, eq_06, eq_07, eq_08, eq_09, eq_10, eq_11, eq_12, eq_13
from twins.arithmetic import start
from twins.families import FAMILIES, Family, randomise, small_vit
from twins.recorder import outputs_of
from twins.swin import window_mixing

import tlfx
from tlfx.analysis.invariants import rectangles
from tlfx.analysis.presence import TokenPresence, contribution, presence, spatial_presence
from tlfx.analysis.probe import Probe
from tlfx.analysis.similarity import similarity_share
from tlfx.losses import SoftTargetCrossEntropy
from tlfx.mix import CutMix, MixUp

TWINS = Path(__file__).parent / "twins"
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}
ALL = ("vit", "swin", "mixer", "convnext")
ATTENTION = ("vit", "swin")
BATCH = 2


def one_window(heads: int = 2) -> nn.Module:
    """A Swin of one stage, whose first block has a single window: attention of all tokens, as in eq. 6 to 9."""
    settings: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depths": (2,), "window_size": 4}
    return SwinTransformer(**settings, num_heads=(heads,), num_classes=CLASSES, drop_path_rate=0.0)


def plain_attention(build: Any) -> nn.Module:
    """Attention as eq. 6 writes it: without biases of queries, keys and values, and of positions."""
    model: Any = randomise(build())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("qkv.bias", "attn.proj.bias", "relative_position_bias_table")):
                parameter.zero_()
    return model


SMALL = {
    "vit": Family(partial(plain_attention, small_vit), eq_01, 32),  # type: ignore[arg-type]
    "swin": Family(partial(plain_attention, one_window), eq_01, 16),  # type: ignore[arg-type]
}
"""Models whose attention is that of eq. 6."""


@cache
def built(name: str) -> tuple[Any, int]:
    """A model in evaluation mode and the size of its images; those of ATTENTION with attention as in eq. 6."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SMALL[name].build() if name in SMALL else FAMILIES[name].model()
    size = SMALL[name].size if name in SMALL else FAMILIES[name].size
    return model.eval(), size


@cache
def called(name: str) -> dict[str, Any]:
    """An aligned call in evaluation mode: labels of all modules, images, masks, logits, targets; and the outputs of the
    modules of the plain model, whose logits are equal."""
    model, size = built(name)
    aligned: Any = tlfx.align(deepcopy(model))
    images, mask = pictures(BATCH, size), rectangles(BATCH, (size, size), seed=3)
    target = tlfx.MixedTarget(first=torch.tensor([0, 1]), second=torch.tensor([2, 3]), mask=mask, num_classes=CLASSES)
    with tlfx.record(aligned, at=["*"]) as labels:
        logits, soft = aligned(images, target)
    paths = {module: path for path, module in model.named_modules() if path}
    outputs = {paths[module]: out for module, out in outputs_of(model, images, paths).items()}
    assert torch.equal(logits, model(images))
    return {
        "model": aligned, "images": images, "mask": mask, "labels": dict(labels), "outputs": outputs, "logits": logits,
        "soft": soft, "target": target,
    }  # fmt: skip


def heads_of(attention: Any) -> tuple[list[eq_08.Head], Tensor]:
    """W_Q, W_K, W_V of each head of an attention of timm, and w_h, as the paper multiplies them: from the right."""
    width = attention.qkv.in_features // attention.num_heads
    parts = attention.qkv.weight.detach().double().view(3, attention.num_heads, width, -1)
    heads = [(parts[0, i].T, parts[1, i].T, parts[2, i].T) for i in range(attention.num_heads)]
    return heads, attention.proj.weight.detach().double().T


def blocks_of(model: Any) -> dict[str, Any]:
    """The first blocks, by path: those whose tokens are on the grid of the patches."""
    if hasattr(model, "layers"):
        return {f"layers.0.blocks.{i}": block for i, block in enumerate(model.layers[0].blocks)}
    if hasattr(model, "stages"):
        return {f"stages.0.blocks.{i}": block for i, block in enumerate(model.stages[0].blocks)}
    return {f"blocks.{i}": block for i, block in enumerate(model.blocks)}


EMBEDDING = {"vit": "patch_embed", "swin": "patch_embed", "mixer": "stem", "convnext": "stem"}
PATCH = {"vit": 8, "swin": 4, "mixer": 8, "convnext": 4}


@cache
def matrices(name: str) -> dict[str, Tensor]:
    """The spatial mixing matrices of the first blocks for the first image, by path: means over heads and channels."""
    model, _ = built(name)
    call = called(name)
    weights: dict[str, Tensor] = {}
    for path, block in blocks_of(model).items():
        if name == "mixer":
            weights |= {
                f"{path}.mlp_tokens.{fc}": getattr(block.mlp_tokens, fc).weight.detach() for fc in ("fc1", "fc2")
            }
        elif name == "convnext":
            side = call["outputs"]["stem"].shape[-1]
            kernel = block.conv_dw.weight.detach().abs().mean((0, 1))
            weights[f"{path}.conv_dw"] = eq_03.as_matrix(kernel, side, side)
        else:
            tokens = call["outputs"][f"{path}.norm1"][0].double().flatten(0, -2)
            attention, _ = eq_08.multi_head(tokens, *heads_of(block.attn))
            weights[f"{path}.attn"] = torch.stack(attention).mean(0)
    return weights


def test_equation_01_images_and_labels_of_cutmix() -> None:
    images, labels = pictures(4, 16), torch.tensor([0, 1, 2, 3])
    mixer = CutMix(num_classes=CLASSES, mode="elem", generator=torch.Generator().manual_seed(0))
    mixed, target = mixer(images, labels)
    others = [int(x) for x in target.second]
    for place in range(4):
        partner = others[place]
        mask = target.mask[place, 0]
        assert torch.equal(mixed[place], eq_01.mixed_image(images[place], images[partner], mask))
        box = (mask == 0).nonzero()
        height, width = (box.amax(0) - box.amin(0) + 1).tolist() if len(box) else (0, 0)
        ratio = 1 - eq_01.box_ratio(width, height, (16, 16))
        expected = eq_01.mixed_label(place, partner, ratio, CLASSES)
        torch.testing.assert_close(target.area()[place], expected, **CLOSE)


def test_equation_02_of_matrices() -> None:
    weights = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    computed = contribution(weights)
    for j in range(6):
        for i in range(4):
            assert float(computed[j, i]) == pytest.approx(eq_02.contribution(weights.tolist(), i, j))
    torch.testing.assert_close(presence(weights).float(), torch.tensor(eq_02.presence(weights.tolist())), **CLOSE)


@cache
def presences(name: str) -> dict[str, TokenPresence]:
    """Presence in each spatial operation for the first image."""
    model, _ = built(name)
    return {each.path: each for each in spatial_presence(deepcopy(model), called(name)["images"][0])}


@pytest.mark.parametrize("name", slow_except(["vit", "mixer"], ALL))
def test_equation_02_in_models(name: str) -> None:
    """Attention of DeiT and of a window of Swin, the token MLP of a Mixer, the convolution of a ConvNeXt."""
    for path, weights in matrices(name).items():
        if name == "swin" and path.startswith("layers.0.blocks.1"):
            continue  # its matrix needs the mask of the shift, see the next test
        presence = presences(name)[path].presence
        torch.testing.assert_close(presence, torch.tensor(eq_02.presence(weights.tolist())), **CLOSE)
        assert float(presence.std()) > 0.01


@pytest.mark.slow
def test_equation_02_in_shifted_windows() -> None:
    """The matrix of all windows together, column by column, from the twin of Swin."""
    family = FAMILIES["swin"]
    model: Any = family.model().eval()
    image = pictures(1, family.size)
    blocks = list(model.layers[0].blocks)
    seen = outputs_of(model, image, [block.norm1 for block in blocks])
    presence_of = {each.path: each.presence for each in spatial_presence(model, image[0])}
    side = seen[blocks[0].norm1].shape[1]
    every = torch.eye(side * side, dtype=torch.float64).view(-1, side, side)
    for number, block in enumerate(blocks):
        tokens = seen[block.norm1].expand(len(every), -1, -1, -1)
        weights = window_mixing(block, tokens, every, torch.zeros(len(every))).flatten(1).T
        expected = weights.abs().div(weights.abs().sum(1, keepdim=True)).sum(0).float()
        torch.testing.assert_close(presence_of[f"layers.0.blocks.{number}.attn"], expected, **CLOSE)


def test_equation_03_inside_of_a_convolution() -> None:
    """Rows and columns have the sum of the kernel, so that p = 1 in the middle of a 16×16 grid; not in attention."""
    [(path, weights), *_] = matrices("convnext").items()
    model, _ = built("convnext")
    kernel = model.get_submodule(path).weight.detach().abs().mean((0, 1))
    middle = eq_03.inside(kernel, 16, 16)
    assert len(middle) == 16
    total = eq_03.kernel_sum(kernel)
    for place in middle:
        assert float(weights[place].sum()) == pytest.approx(total)
        assert float(weights[:, place].sum()) == pytest.approx(total)
    presence = presences("convnext")[path].presence
    torch.testing.assert_close(presence[middle], torch.ones(len(middle)), **CLOSE)
    assert float((presence - 1).abs().max()) > 0.1  # at the edge
    for name in ("vit", "swin", "mixer"):
        assert all(float((each.presence - 1).abs().max()) > 0.1 for each in presences(name).values())


@pytest.mark.parametrize("name", ALL)
def test_equation_04_tokens(name: str) -> None:
    """The tokens that enter the first block; only DeiT has a class token and positions."""
    call = called(name)
    model = call["model"]
    proj = model.stem[0] if name == "convnext" else getattr(model, EMBEDDING[name]).proj
    path = "stem.0" if name == "convnext" else f"{EMBEDDING[name]}.proj"
    weight, bias = proj.weight.detach(), proj.bias.detach()
    for image, given in zip(call["images"], call["outputs"][path], strict=True):
        tokens = eq_04.patch_tokens(image, weight, bias)
        torch.testing.assert_close(given.flatten(1).T, tokens, **CLOSE)
    if name == "vit":
        whole = eq_04.with_class_token(tokens, model.cls_token[0, 0].detach(), model.pos_embed[0].detach())
        torch.testing.assert_close(call["outputs"]["pos_drop"][-1], whole, **CLOSE)


@pytest.mark.parametrize("name", ALL)
def test_equation_05_initial_labels(name: str) -> None:
    call = called(name)
    for place, mask in enumerate(call["mask"][:, 0]):
        expected = eq_05.patch_labels(mask, PATCH[name])
        torch.testing.assert_close(call["labels"][EMBEDDING[name]][place].flatten(), expected, **CLOSE)
    if name == "vit":
        label = call["labels"]["blocks.0.norm1"][-1, 0]
        assert float(label) == pytest.approx(eq_05.class_label(call["mask"][-1, 0]), abs=1e-5)


def test_equation_05_of_mixup() -> None:
    """All labels are λ."""
    model: Any = tlfx.align(deepcopy(built("vit")[0]))
    mixed, target = MixUp(num_classes=CLASSES)(pictures(2, 32), torch.tensor([0, 1]))
    with tlfx.record(model, at=["blocks.2"]) as labels:
        _, soft = model(mixed, target)
    share = eq_05.class_label(target.mask.expand(2, 1, 32, 32)[0, 0])
    torch.testing.assert_close(labels["blocks.2"], torch.full((2, 17), share), **CLOSE)
    first, second = int(target.first[0]), int(target.second[0])
    torch.testing.assert_close(soft[0], eq_05.label_vector(share, first, second, CLASSES), **CLOSE)


def single_head(name: str) -> tuple[Any, str, int]:
    """A model with one head, the path of its first attention, and the size of its images."""
    build = partial(small_vit, num_heads=1) if name == "vit" else partial(one_window, heads=1)
    torch.manual_seed(0)
    path = "blocks.0.attn" if name == "vit" else "layers.0.blocks.0.attn"
    return plain_attention(build).eval(), path, 32 if name == "vit" else 16


@pytest.mark.parametrize("name", slow_except(["vit"], ATTENTION))
def test_equation_06_and_equation_07_of_one_head(name: str) -> None:
    """Tokens after the first attention, and their labels."""
    model, path, size = single_head(name)
    images, mask = pictures(BATCH, size), rectangles(BATCH, (size, size), seed=3)
    attention = model.get_submodule(path)
    [head], w_h = heads_of(attention)
    aligned: Any = tlfx.align(deepcopy(model))
    target = tlfx.MixedTarget(first=torch.tensor([0, 1]), second=torch.tensor([2, 3]), mask=mask, num_classes=CLASSES)
    norm = path.replace("attn", "norm1")
    with tlfx.record(aligned, at=[norm, path]) as labels:
        aligned(images, target)
    seen = outputs_of(model, images, [attention, model.get_submodule(norm)])
    entered, left = (seen[model.get_submodule(p)] for p in (norm, path))
    entered, left = (x.double().reshape(BATCH, -1, x.shape[-1]) for x in (entered, left))
    for place in range(BATCH):
        matrix, mixed = eq_06.self_attention(entered[place], *head)
        torch.testing.assert_close(left[place], mixed @ w_h, rtol=0, atol=1e-4)
        before, after = (labels[p][place].flatten().double() for p in (norm, path))
        torch.testing.assert_close(after, eq_07.mixed_labels(matrix, before), **CLOSE)


@pytest.mark.parametrize("name", ["mixer", "convnext"])
def test_equation_07_of_other_matrices(name: str) -> None:
    """Labels after a token MLP or a convolution, by Norm(|W|) (Table 10)."""
    call = called(name)
    [path, *_] = matrices(name)
    before = "blocks.0.norm1" if name == "mixer" else "stem"
    labels = call["labels"][before][0].flatten()
    expected = eq_07.mixed_labels(matrices(name)[path], labels)
    torch.testing.assert_close(call["labels"][path][0].flatten().double(), expected, **CLOSE)
    assert float((expected - labels).abs().max()) > 0.05


@pytest.mark.parametrize("name", ATTENTION)
def test_equation_08_and_equation_09_of_several_heads(name: str) -> None:
    """Tokens after the first multi-head attention, and their labels."""
    call = called(name)
    [path, *_] = blocks_of(call["model"])
    attention = call["model"].get_submodule(f"{path}.attn")
    for place in range(BATCH):
        tokens = call["outputs"][f"{path}.norm1"][place].double().flatten(0, -2)
        each, mixed = eq_08.multi_head(tokens, *heads_of(attention))
        assert len(each) == attention.num_heads > 1
        left = call["outputs"][f"{path}.attn"]
        torch.testing.assert_close(left.reshape(BATCH, *mixed.shape)[place].double(), mixed, rtol=0, atol=1e-4)
        before, after = (call["labels"][f"{path}.{part}"][place].flatten().double() for part in ("norm1", "attn"))
        torch.testing.assert_close(after, eq_09.tl_align_s(each, before), **CLOSE)


def multi_head_tokens(weights: tuple[list[eq_08.Head], Tensor], tokens: Tensor) -> Tensor:
    """Eq. 8 without its attention matrices."""
    return eq_08.multi_head(tokens, *weights)[1]


def token_mlp(block: Any, tokens: Tensor) -> Tensor:
    """The spatial mixing of a Mixer: eq. 10's MLP along tokens instead of channels."""
    first, second = ((fc.weight.detach().double(), fc.bias.detach().double()) for fc in (block.fc1, block.fc2))
    return eq_10.mlp(tokens.T, first, second).T


@pytest.mark.parametrize("name", ["vit", "swin", "mixer"])
def test_equation_10_blocks(name: str) -> None:
    """Tokens after the first block."""
    call = called(name)
    [path, *_] = blocks_of(call["model"])
    block = call["model"].get_submodule(path)

    def layer(module: Any) -> eq_10.Layer:
        return module.weight.detach().double(), module.bias.detach().double()

    channels = block.mlp_channels if name == "mixer" else block.mlp
    enters = {"vit": "pos_drop", "swin": "patch_embed", "mixer": "stem"}[name]
    for place in range(BATCH):
        tokens = call["outputs"][enters][place].double().flatten(0, -2)
        attend = None if name == "mixer" else partial(multi_head_tokens, heads_of(block.attn))
        mixing = attend or partial(token_mlp, block.mlp_tokens)
        layers = (layer(channels.fc1), layer(channels.fc2))
        expected = eq_10.block(tokens, (layer(block.norm1), layer(block.norm2)), mixing, layers, block.norm1.eps)
        left = call["outputs"][path][place].double().flatten(0, -2)
        torch.testing.assert_close(left, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ALL)
def test_equation_11_labels_of_blocks(name: str) -> None:
    """Labels after the first block, from the labels before it and those of its spatial mixing."""
    call = called(name)
    [path, *_] = blocks_of(call["model"])
    last = {"mixer": "mlp_tokens.fc2", "convnext": "conv_dw"}.get(name, "attn")
    before = {"mixer": "blocks.0.norm1", "convnext": "stem"}.get(name, f"{path}.norm1")
    for place in range(BATCH):
        branch, labels = (call["labels"][p][place].flatten().double() for p in (f"{path}.{last}", before))
        after = call["labels"][path][place].flatten().double()
        torch.testing.assert_close(after, eq_11.block_labels(branch, labels), **CLOSE)
    assert float((after - labels).abs().max()) > 0.01


def test_equation_11_without_norm() -> None:
    """Table 8, "Normalization Disabled": the label of the class token is 4 per block times that of eq. 11."""
    call = called("vit")
    model = call["model"]
    labels: dict[bool, Tensor] = {}
    for normalised in (True, False):
        y = torch.cat(
            (torch.tensor([eq_05.class_label(call["mask"][0, 0])]), eq_05.patch_labels(call["mask"][0, 0], 8))
        )
        y = y.double()
        for path, block in blocks_of(model).items():
            tokens = call["outputs"][f"{path}.norm1"][0].double()
            each, _ = eq_08.multi_head(tokens, *heads_of(block.attn))
            y = eq_11.block_labels(eq_09.tl_align_s(each, y), y, normalised)
        labels[normalised] = y
    torch.testing.assert_close(labels[False], 4 ** len(blocks_of(model)) * labels[True])
    assert float(call["soft"][0, 0]) == pytest.approx(float(labels[True][0]), abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_equation_12_loss_without_the_gradient_of_labels(name: str) -> None:
    call = called(name)
    logits, soft = call["logits"].detach().requires_grad_(), call["soft"]
    assert not soft.requires_grad
    loss = SoftTargetCrossEntropy()(logits, soft)
    rows = list(zip(logits.tolist(), soft.tolist(), strict=True))
    assert float(loss.detach()) == pytest.approx(sum(eq_12.cross_entropy(*row) for row in rows) / BATCH, abs=1e-5)
    loss.backward()
    expected = torch.tensor([eq_12.gradient(*row) for row in rows]) / BATCH
    torch.testing.assert_close(logits.grad, expected, **CLOSE)
    model, parameters = call["model"], dict(call["model"].named_parameters())
    through = torch.autograd.grad(cross_entropy(call["logits"], soft), list(parameters.values()), retain_graph=True)
    plain = torch.autograd.grad(cross_entropy(model(call["images"]), soft.detach()), list(parameters.values()))
    assert all(torch.equal(one, other) for one, other in zip(through, plain, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_equation_13_of_the_tokens_of_models(name: str) -> None:
    model, size = built(name)
    first, second = pictures(2, size)
    mask = rectangles(1, (size, size), seed=3)
    images = torch.stack((mask[0] * first + (1 - mask[0]) * second, first, second))
    readings, _ = Probe(deepcopy(model), (3, size, size))(images, mask)
    reading = readings[-1]
    shares = similarity_share(reading.read_tokens[0], *reading.tokens[1:])
    one, other = (tokens.tolist() for tokens in reading.tokens[1:])
    expected = [eq_13.mixing_ratio(token, one, other) for token in reading.read_tokens[0].tolist()]
    torch.testing.assert_close(shares, torch.tensor(expected), **CLOSE)


def test_no_twin_of_an_equation_imports_the_library() -> None:
    files = sorted(TWINS.glob("eq_*.py"))
    assert [file.stem for file in files] == [f"eq_{number:02d}" for number in range(1, 14)]
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        imported += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        roots = {name.partition(".")[0] for name in imported}
        assert roots <= {"__future__", "math", "collections", "torch", "twins"}, file.name
        assert all(name.startswith("twins.eq_") for name in imported if name.startswith("twins"))


def test_the_start_of_other_twins_is_equation_05() -> None:
    """tests/twins/arithmetic.py starts from pixels, whose labels patches average."""
    mask = rectangles(1, (16, 16), seed=0)
    pixels = start(mask)[0].unfold(0, 4, 4).unfold(1, 4, 4).mean((-2, -1)).flatten().float()
    torch.testing.assert_close(pixels, eq_05.patch_labels(mask[0, 0], 4), **CLOSE)
