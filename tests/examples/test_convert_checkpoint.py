"""`examples/convert_checkpoint.py`: equal outputs in Hugging Face's models, exact round trips, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from checkpoints.convert import identify, write
from checkpoints.tables import tables
from convert_checkpoint import main
from helpers import slow_except
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tlfx.errors import ModelError

State = dict[str, Tensor]


def randomized(model: nn.Module) -> nn.Module:
    """The model with random values everywhere, so that no two tensors are alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return model.eval()


def deit(distilled: bool = False, **kwargs: Any) -> nn.Module:
    name = "deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224"
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    return randomized(timm.create_model(name, **settings | kwargs))


def swin() -> nn.Module:
    settings: dict[str, Any] = {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 8,
        "depths": (2, 1, 2),
        "num_heads": (1, 2, 4),
    }
    return randomized(timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **settings))


def pvt(name: str = "pvt_v2_b0") -> nn.Module:
    settings: dict[str, Any] = {"depths": (1, 2, 1, 1), "embed_dims": (8, 16, 40, 64), "num_classes": 5}
    return randomized(timm.create_model(name, **settings))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "deit": deit,
    "deit_distilled": lambda: deit(distilled=True),
    "swin": swin,
    "pvt_v2": pvt,
}


VIT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
SWIN: dict[str, Any] = {
    "image_size": 64,
    "window_size": 4,
    "embed_dim": 8,
    "depths": [2, 1, 2],
    "num_heads": [1, 2, 4],
}
PVT: dict[str, Any] = {
    "depths": [1, 2, 1, 1],
    "hidden_sizes": [8, 16, 40, 64],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [8, 8, 4, 4],
}
HUGGING_FACE = {
    "deit": ("ViTForImageClassification", "ViTConfig", VIT),
    "deit_distilled": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", VIT),
    "swin": ("SwinForImageClassification", "SwinConfig", SWIN),
    "pvt_v2": ("PvtV2ForImageClassification", "PvtV2Config", PVT),
}
"""The model, configuration and settings of transformers for each of the small models."""


@pytest.mark.parametrize("family", slow_except({"swin"}, MODELS))
def test_hugging_face_computes_the_same(family: str, tmp_path: Path) -> None:
    kind, config, settings = HUGGING_FACE[family]
    model, other = MODELS[family](), getattr(transformers, kind)
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    getattr(transformers, config)(num_labels=5, **settings).save_pretrained(tmp_path)
    main([str(tmp_path / "timm.pth"), str(tmp_path / "model.safetensors"), "--to", "hf"])
    loaded, report = other.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    size = 64 if family == "swin" else 32
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = model(images), loaded.eval()(images).logits
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", slow_except({"swin", "pvt_v2"}, MODELS))
def test_round_trips_are_exact(family: str) -> None:
    own = dict(MODELS[family]().state_dict())
    layouts = tables()[family].layouts
    for layout, other in zip(layouts, layouts[1:] + layouts[:1], strict=True):
        there, left_out = write(identify(own), layout)
        assert left_out == [key for key in own if key.startswith("head") and layout.startswith("mm")]
        assert all(torch.equal(value, own[key]) for key, value in write(identify(there), "timm")[0].items())
        back, _ = write(identify(write(identify(there), other)[0]), "timm")
        assert back.keys() == {key for key in own if not key.startswith("head") or key in back}
        assert any(key.startswith("head") for key in back) is not any(name[:2] == "mm" for name in (layout, other))
        assert all(torch.equal(value, own[key]) for key, value in back.items())


def test_swin_in_the_names_of_openmmlab(tmp_path: Path) -> None:
    """Names of mmdet, the permutation of patch merging against nn.Unfold, and the index of relative positions."""
    model = swin()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    main([str(tmp_path / "timm.pth"), str(tmp_path / "mm.pth"), "--to", "mmdet"])
    state = torch.load(tmp_path / "mm.pth", weights_only=True)["state_dict"]
    assert all(key.startswith("backbone.") for key in state)
    own = model.state_dict()
    attention = "backbone.stages.0.blocks.1.attn.w_msa"
    assert torch.equal(state[f"{attention}.qkv.weight"], own["layers.0.blocks.1.attn.qkv.weight"])
    assert torch.equal(
        state[f"{attention}.relative_position_index"], model.layers[0].blocks[1].attn.relative_position_index
    )
    assert torch.equal(state["backbone.stages.2.blocks.0.ffn.layers.0.0.bias"], own["layers.2.blocks.0.mlp.fc1.bias"])
    x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))  # batch, height, width, channels
    merged = F.unfold(x.movedim(3, 1), 2, stride=2).mT  # as mmdet's PatchMerging
    norm = {part: state[f"backbone.stages.0.downsample.norm.{part}"] for part in ("weight", "bias")}
    merged = F.layer_norm(merged, (32,), **norm) @ state["backbone.stages.0.downsample.reduction.weight"].T
    torch.testing.assert_close(merged.unflatten(1, (4, 4)), model.layers[1].downsample(x), rtol=1e-4, atol=1e-5)


def test_pvt_in_the_names_of_mmdet(tmp_path: Path) -> None:
    own = pvt().state_dict()
    state, left_out = write(identify(own), "mmdet")
    assert left_out == ["head.weight", "head.bias"]
    attention = "stages.1.blocks.1.attn"
    joined = torch.cat((own[f"{attention}.q.weight"], own[f"{attention}.kv.weight"]))
    assert torch.equal(state["layers.1.1.1.attn.attn.in_proj_weight"], joined)
    assert state["layers.1.1.1.ffn.layers.0.weight"].shape == (128, 16, 1, 1)
    assert torch.equal(state["layers.3.0.projection.weight"], own["stages.3.downsample.proj.weight"])
    assert torch.equal(state["layers.3.2.bias"], own["stages.3.norm.bias"])
    assert torch.equal(
        write(identify(own), "official")[0]["patch_embed4.proj.weight"], own["stages.3.downsample.proj.weight"]
    )


def test_vit_in_the_names_of_mmseg() -> None:
    own = deit().state_dict()
    state, _ = write(identify(own), "mmseg")
    assert torch.equal(state["layers.1.attn.attn.in_proj_bias"], own["blocks.1.attn.qkv.bias"])
    attention = nn.MultiheadAttention(24, 3, batch_first=True)  # as mmcv's
    names = {key.removeprefix("layers.0.attn.attn.") for key in state if key.startswith("layers.0.attn.")}
    assert names == attention.state_dict().keys()


def test_official_swin_with_its_buffers_and_a_wrapper(tmp_path: Path) -> None:
    official, _ = write(identify(swin().state_dict()), "official")
    assert "layers.0.downsample.reduction.weight" in official
    official["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    torch.save({"model": {f"module.{key}": value for key, value in official.items()}}, tmp_path / "official.pth")
    main([str(tmp_path / "official.pth"), str(tmp_path / "timm.safetensors"), "--to", "timm"])
    swin().load_state_dict(load_file(tmp_path / "timm.safetensors"))


def test_prefix_and_dropped_tensors(tmp_path: Path) -> None:
    segmentor, _ = write(identify(swin().state_dict()), "mmseg", "backbone.")
    segmentor |= {"decode_head.conv.weight": torch.ones(1), "backbone.norm0.weight": torch.ones(8)}
    torch.save({"state_dict": segmentor}, tmp_path / "segmentor.pth")
    arguments = [str(tmp_path / "segmentor.pth"), str(tmp_path / "out.pth"), "--to", "mmdet", "--prefix", ""]
    main([*arguments, "--drop", "decode_head.*", "backbone.norm0.*"])
    assert "patch_embed.norm.weight" in torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"]
    vit, _ = write(identify(deit().state_dict()), "mmseg", "backbone.")
    assert identify(vit).layout == "mmseg"
    with pytest.raises(ModelError, match=r"backbone.ln1.bias and ln1.bias are the same"):
        identify(vit | {"ln1.bias": torch.ones(24)})
    with pytest.raises(SystemExit, match=r"--drop neck\.\*: no tensor"):
        main([*arguments, "--drop", "neck.*"])


def lose(state: State) -> State:
    del state["layers.1.blocks.0.mlp.fc1.weight"], state["layers.2.downsample.norm.bias"]
    return state


def lose_one_bias(state: State) -> State:
    del state["layers.0.blocks.1.attn.qkv.bias"]
    return state


def add(state: State) -> State:
    return state | {"layers.0.blocks.0.gamma": torch.ones(8)}


def shrink(state: State) -> State:
    return state | {"layers.1.blocks.0.attn.proj.weight": torch.ones(12, 12)}


def cut(state: State) -> State:
    return state | {"layers.1.blocks.0.attn.qkv.weight": torch.ones(47, 16)}


def flatten(state: State) -> State:
    return state | {"patch_embed.proj.weight": torch.ones(8, 48)}


def other_head(state: State) -> State:
    return state | {"head.fc.weight": torch.ones(5, 7)}


def stretch(state: State) -> State:
    return state | {f"layers.0.blocks.{b}.attn.relative_position_bias_table": torch.ones(48, 1) for b in (0, 1)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lose,
            "in the layout timm: missing: layers.1.blocks.0.mlp.fc1.weight, layers.2.downsample.norm.bias",
        ),
        (lose_one_bias, "swin in the layout timm: missing: layers.0.blocks.1.attn.qkv.bias"),
        (add, "swin in the layout timm: unexpected: layers.0.blocks.0.gamma"),
        (shrink, "layers.1.blocks.0.attn.proj.weight is (12, 12), which does not fit layers.1."),
        (cut, "layers.1.blocks.0.attn.qkv.weight is (47, 16), expected a first axis that is a multiple of 3"),
        (flatten, "patch_embed.proj.weight is (8, 48), expected 4 axes"),
        (other_head, "head.fc.weight is (5, 7), which does not fit layers.2."),
        (stretch, "relative_position_bias_table is (48, 1), expected ((2w − 1)², heads)"),
    ],
)
def test_weights_that_are_no_model_are_refused(change: Callable[[State], State], words: str, tmp_path: Path) -> None:
    torch.save(change(dict(swin().state_dict())), tmp_path / "in.pth")
    refused(words, tmp_path, "--to", "mmseg")


def refused(words: str, folder: Path, *arguments: str) -> None:
    """The script exits with these words and leaves the output as it was."""
    (folder / "out.pth").write_text("as it was")
    with pytest.raises(SystemExit, match=re.escape(words)):
        main([str(folder / "in.pth"), str(folder / "out.pth"), *arguments])
    assert (folder / "out.pth").read_text() == "as it was"
    assert not list(folder.glob("*.new"))


def test_models_without_a_layout_are_refused(tmp_path: Path) -> None:
    torch.save(deit(distilled=True).state_dict(), tmp_path / "in.pth")
    refused("deit_distilled has no layout mmseg; expected one of timm, official, hf", tmp_path, "--to", "mmseg")
    torch.save(pvt("pvt_v2_b2_li").state_dict(), tmp_path / "in.pth")
    refused("is a 1×1 convolution, that of linear attention (pvt_v2_b2_li)", tmp_path, "--to", "mmdet")
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "in.pth")
    refused("the checkpoint has the names of no known layout", tmp_path, "--to", "hf")
    torch.save(swin().state_dict(), tmp_path / "in.pth")
    refused("has the names of no model in the layout official", tmp_path, "--to", "hf", "--from", "official")


def test_pvt_v1_is_refused(tmp_path: Path) -> None:
    official = {key: torch.zeros(4) for key in ("pos_embed1", "patch_embed1.proj.bias", "block1.0.attn.q.bias")}
    torch.save(official, tmp_path / "in.pth")
    refused("the checkpoint is a PVT v1 (pos_embed1), which is not supported; expected PVT v2", tmp_path, "--to", "hf")
    widths: dict[str, Any] = {"hidden_sizes": [8, 16, 40, 64], "depths": [1] * 4}
    model: Any = transformers.PvtForImageClassification(transformers.PvtConfig(**widths))
    torch.save(model.state_dict(), tmp_path / "in.pth")
    refused("is a PVT v1 (pvt.encoder.patch_embeddings.0.position_embeddings)", tmp_path, "--to", "timm")


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    refused("input: there is no file", tmp_path, "--to", "hf")
    (tmp_path / "in.pth").write_text("text")
    refused("cannot be read as a checkpoint", tmp_path, "--to", "hf")
    torch.save({"epoch": 3}, tmp_path / "in.pth")
    refused("the checkpoint holds no state_dict", tmp_path, "--to", "hf")
    torch.save(swin().state_dict(), tmp_path / "in.pth")
    with pytest.raises(SystemExit, match="does not exist; create it first"):
        main([str(tmp_path / "in.pth"), str(tmp_path / "no" / "out.pth"), "--to", "hf"])
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--to", "keras"])
    assert caught.value.code == 2  # as argparse leaves


def test_an_index_in_another_order_is_refused() -> None:
    official, _ = write(identify(swin().state_dict()), "official")
    name = "layers.0.blocks.0.attn.relative_position_index"
    with pytest.raises(ModelError, match=re.escape(f"{name} has another order")):
        identify(official | {name: official[name].flip(0)})
