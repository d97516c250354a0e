"""Hugging Face's vision classifiers and a segmenter, from small random configurations."""

from __future__ import annotations

from functools import partial
from typing import Any

import transformers as hf
from torch import nn

from models.entry import Entry

VIT: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SWIN: dict[str, Any] = {
    "image_size": 48, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
}  # fmt: skip
PYRAMID: dict[str, Any] = {
    "num_encoder_blocks": 4, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 32, 32],
    "num_attention_heads": [1, 2, 2, 4], "mlp_ratios": [2, 2, 2, 2],
}  # fmt: skip

SEGMENTER = {**PYRAMID, "hidden_sizes": [16, 32, 64, 128], "decoder_hidden_size": 32}


def build(kind: str, task: str, attention: str | None = None, **config: Any) -> nn.Module:
    """A model such as ``ViTForImageClassification``; its attention fused where it can be, or ``eager``: written out."""
    settings = getattr(hf, f"{kind}Config")(num_labels=5, **config)
    if attention is not None:
        settings._attn_implementation = attention
    model: nn.Module = getattr(hf, f"{kind}For{task}")(settings)
    return model


def upernet() -> nn.Module:
    """A segmenter over a pyramid of a backbone's maps."""
    backbone = hf.SwinConfig(**{**SWIN, "image_size": 64}, out_features=["stage1", "stage2"])  # type: ignore[call-arg]
    return hf.UperNetForSemanticSegmentation(
        hf.UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_in_channels=32, auxiliary_loss_weight=0.4,  # type: ignore[call-arg]
                         use_auxiliary_head=False, num_labels=5)
    )  # fmt: skip


classifier = partial(build, task="ImageClassification")

ENTRIES = {
    "ViT": Entry("transformers", partial(classifier, "ViT", **VIT)),
    "ViT, attention written out": Entry("transformers", partial(classifier, "ViT", attention="eager", **VIT)),
    "DeiT": Entry("transformers", partial(classifier, "DeiT", **VIT)),
    "DeiT with teacher": Entry("transformers", partial(build, "DeiT", "ImageClassificationWithTeacher", **VIT)),
    "DINOv2": Entry("transformers", partial(classifier, "Dinov2", mlp_ratio=2, **VIT)),
    "DINOv2 with registers": Entry("transformers", partial(classifier, "Dinov2WithRegisters", mlp_ratio=2, **VIT)),
    # Traced, its fused attention adds a mask of ones to the bias, which no softmax sees but its last bits.
    "BEiT": Entry("transformers", partial(classifier, "Beit", use_relative_position_bias=True, **VIT), rounding=1e-5),
    "BEiT, attention written out": Entry(
        "transformers", partial(classifier, "Beit", attention="eager", use_relative_position_bias=True, **VIT)
    ),
    "BEiT, shared bias": Entry(
        "transformers", partial(classifier, "Beit", use_shared_relative_position_bias=True, **VIT), rounding=1e-5
    ),
    "Swin": Entry("transformers", partial(classifier, "Swin", **SWIN), (3, 48, 48)),
    "Swin v2": Entry("transformers", partial(classifier, "Swinv2", **SWIN), (3, 48, 48)),
    "ConvNeXt v2": Entry(
        "transformers", partial(classifier, "ConvNextV2", depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32])
    ),
    "PVT": Entry("transformers", partial(classifier, "Pvt", image_size=64, **PYRAMID), (3, 64, 64)),
    "PVT v2": Entry("transformers", partial(classifier, "PvtV2", image_size=64, **PYRAMID), (3, 64, 64)),
    "SegFormer classifier": Entry("transformers", partial(classifier, "Segformer", **PYRAMID), (3, 64, 64)),
    "SegFormer": Entry("transformers", partial(build, "Segformer", "SemanticSegmentation", **SEGMENTER), (3, 64, 64)),
    "UperNet on Swin": Entry("transformers", upernet, (3, 64, 64)),
}
