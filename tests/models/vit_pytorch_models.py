"""Models of vit-pytorch, written with einops, in small."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from models.entry import Entry
from tlfx import CaptureError

PLAIN: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64,
}  # fmt: skip
STAGES = {"num_classes": 5, "dim": 16, "depth": (1, 1, 1, 1), "heads": (1, 2, 2, 4)}
CLIP = {
    "image_size": 32, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2, "num_classes": 5, "dim": 32,
    "heads": 2, "mlp_dim": 64,
}  # fmt: skip


def build(module: str, kind: str, **config: Any) -> nn.Module:
    """A model by its module and class."""
    model: nn.Module = getattr(import_module(f"vit_pytorch.{module}"), kind)(**config)
    return model


def plain(module: str, kind: str = "ViT", **config: Any) -> Entry:
    """A plain ViT of the given module, with further settings."""
    return Entry("vit-pytorch", partial(build, module, kind, **{**PLAIN, **config}))


def staged(module: str, kind: str, side: int = 64, **config: Any) -> Entry:
    """A model of four stages."""
    return Entry("vit-pytorch", partial(build, module, kind, **{**STAGES, **config}), (3, side, side))


ENTRIES = {
    "ViT": plain("vit"),
    "ViT, mean of tokens": plain("vit", pool="mean"),
    "SimpleViT": plain("simple_vit", "SimpleViT"),
    "SimpleViT with registers": plain("simple_vit_with_register_tokens", "SimpleViT"),
    "SimpleViT with patch dropout": plain("simple_vit_with_patch_dropout", "SimpleViT"),
    "SimpleViT with frequencies": plain("simple_vit_with_fft", "SimpleViT", freq_patch_size=8),
    "ViT with patch dropout": plain("vit_with_patch_dropout"),
    "ViT with patch merger": plain("vit_with_patch_merger", patch_merge_num_tokens=4),
    "DeepViT": plain("deepvit", "DeepViT"),
    "CaiT": plain("cait", "CaiT", cls_depth=1),
    "XCiT": plain("xcit", "XCiT", cls_depth=1),
    "ParallelViT": plain("parallel_vit"),
    "ViT for small datasets": plain("vit_for_small_dataset"),
    "RvT": plain("rvt", "RvT"),
    "normalised ViT": plain("normalized_vit", "nViT"),
    "jumbo ViT": plain("jumbo_vit", "JumboViT"),
    "SimpleUViT": plain("simple_uvit", "SimpleUViT"),
    "ViT-5": plain("vit_5"),
    "PiT": plain("pit", "PiT", depth=(1, 1)),
    "NesT": Entry(
        "vit-pytorch",
        partial(
            build,
            "nest",
            "NesT",
            image_size=32,
            patch_size=4,
            num_classes=5,
            dim=16,
            heads=2,
            num_hierarchies=2,
            block_repeats=(1, 1),
        ),
    ),
    "T2T": Entry(
        "vit-pytorch",
        partial(build, "t2t", "T2TViT", image_size=32, num_classes=5, dim=32, depth=1, heads=2, mlp_dim=64),
    ),
    "LeViT": Entry(
        "vit-pytorch",
        partial(build, "levit", "LeViT", image_size=64, num_classes=5, dim=(16, 32, 32), depth=1, heads=2, mlp_mult=2),
        (3, 64, 64),
    ),
    "CvT": Entry(
        "vit-pytorch",
        partial(build, "cvt", "CvT", num_classes=5, s1_emb_dim=16, s2_emb_dim=32, s3_emb_dim=32, s3_depth=1),
    ),
    "CCT": Entry(
        "vit-pytorch",
        partial(
            build,
            "cct",
            "CCT",
            img_size=32,
            embedding_dim=32,
            num_layers=2,
            num_heads=2,
            mlp_ratio=2,
            num_classes=5,
            positional_embedding="learnable",
        ),
    ),
    "CrossViT": Entry(
        "vit-pytorch",
        partial(
            build,
            "cross_vit",
            "CrossViT",
            image_size=32,
            num_classes=5,
            sm_dim=16,
            lg_dim=32,
            sm_patch_size=4,
            lg_patch_size=8,
            lg_enc_depth=1,
            depth=1,
        ),
    ),
    "CrossFormer": Entry(
        "vit-pytorch",
        partial(
            build,
            "crossformer",
            "CrossFormer",
            num_classes=5,
            dim=(32, 32, 64, 64),
            depth=1,
            global_window_size=(4, 2, 2, 1),
            local_window_size=2,
        ),
        (3, 64, 64),
    ),
    "MaxViT": Entry(
        "vit-pytorch",
        partial(build, "max_vit", "MaxViT", num_classes=5, dim=16, depth=(1, 1), dim_head=16, window_size=4),
        (3, 32, 32),
    ),
    "MobileViT": Entry(
        "vit-pytorch",
        partial(
            build,
            "mobile_vit",
            "MobileViT",
            image_size=(64, 64),
            dims=[16, 24, 32],
            channels=[8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 48],
            num_classes=5,
            depths=(1, 1, 1),
        ),
        (3, 64, 64),
    ),
    "SepViT": staged("sep_vit", "SepViT", side=224),
    "ScalableViT": staged(
        "scalable_vit", "ScalableViT", reduction_factor=(8, 4, 2, 1), window_size=(16, 8, None, None)
    ),
    "RegionViT": Entry(
        "vit-pytorch",
        partial(build, "regionvit", "RegionViT", dim=(16, 32, 32, 64), depth=1, window_size=2, num_classes=5),
        (3, 64, 64),
    ),
    "LookViT": Entry(
        "vit-pytorch",
        partial(
            build,
            "look_vit",
            "LookViT",
            dim=32,
            image_size=64,
            num_classes=5,
            depth=1,
            heads=2,
            patch_size=16,
            highres_patch_size=8,
            cross_attn_heads=2,
        ),
        (3, 64, 64),
    ),
    "SimpleViT on clips": Entry(
        "vit-pytorch", partial(build, "simple_vit_3d", "SimpleViT", depth=1, **CLIP), (3, 4, 32, 32)
    ),
    "ViViT": Entry(
        "vit-pytorch", partial(build, "vivit", "ViViT", spatial_depth=1, temporal_depth=1, **CLIP), (3, 4, 32, 32)
    ),
    "ATS-ViT, adaptive token sampling": Entry(
        "vit-pytorch",
        partial(build, "ats_vit", "ViT", max_tokens_per_depth=(8, 4), **PLAIN),
        error=CaptureError,
        reason="depends on the data",
    ),
    "JetViT": plain("jet_vit", "JetViT", dim_head=16, window_size=2),
}
