"""Which models a sweep covers."""

from __future__ import annotations

import pytest
import timm

from tlfx.errors import InputError
from tlfx.zoo.select import families, select, size, smallest


def test_all_of_timm() -> None:
    selected = select(["*"])
    assert list(selected) == sorted(timm.list_models())
    assert set(selected.values()) == {m for m in timm.list_modules() if timm.list_models(module=m)}


def test_patterns() -> None:
    assert select(["test_vit", "test_res*t"]) == {"test_resnet": "resnet", "test_vit": "vision_transformer"}
    assert select(["torchvision:swin_?", "torchvision:r3d_18"]) == {
        "torchvision:r3d_18": "torchvision:video.resnet",
        "torchvision:swin_b": "torchvision:swin_transformer",
        "torchvision:swin_s": "torchvision:swin_transformer",
        "torchvision:swin_t": "torchvision:swin_transformer",
    }


def test_no_model() -> None:
    with pytest.raises(InputError, match="no model matches a_b or c_d"):
        select(["a_b", "c_d"])


def test_families() -> None:
    assert families({"b2": "b", "a1": "a", "b1": "b"}) == {"a": ["a1"], "b": ["b2", "b1"]}


def test_size_is_the_number_of_parameters() -> None:
    model = timm.create_model("test_vit")
    own = sum(p.numel() for p in model.parameters())
    assert size("test_vit") == own
    assert size("test_vit", own + 1) == own
    assert size("test_vit", own) is None
    assert size("no_such_model") is None


def test_smallest() -> None:
    done = []
    names = ["vit_tiny_patch16_224", "no_such_model", "test_vit", "vit_huge_patch14_224"]
    assert smallest(names, lambda: done.append(1)) == "test_vit"
    assert len(done) == len(names)
    assert smallest(["no_such_model"]) is None
