"""`examples/detect.py`: whole, killed and resumed, in two processes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from detect import main, parse
from downstream.average_precision import figures
from downstream.coco import Objects
from downstream.detector import build
from helpers import EXAMPLES
from imagenet.order import seed_generators
from PIL import Image
from runs import KILLER, rows, run, weights
from torchvision.models.detection import faster_rcnn  # type: ignore[import-untyped]

SWIN: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 4}
SMALL = ["--model-kwargs", *(f"{key}={value}" for key, value in SWIN.items()), "--pyramid-width", "8"]
SMALL += ["--min-size", "48", "64", "--max-size", "96", "--num-classes", "2", "--device", "cpu", "--workers", "0"]
SMALL += ["--warmup", "1", "--log-interval", "1", "--epochs", "2", "--decay-epochs", "1", "--eval-steps", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "train2017", 5)
    write_split(folder, "val2017", 2)
    return folder


def write_split(root: Path, split: str, count: int) -> None:
    """Pictures of a bright square (category 3) and a dark triangle (7); the last one is empty."""
    (root / split).mkdir()
    (root / "annotations").mkdir(exist_ok=True)
    rng = np.random.default_rng(count)
    images: list[Any] = []
    annotations: list[Any] = []
    for number in range(count):
        pixels = rng.integers(100, 140, (48, 64, 3)).astype(np.uint8)
        left, top = int(rng.integers(2, 10)), int(rng.integers(2, 20))
        pixels[top : top + 20, left : left + 20] = 250
        for row in range(20):
            pixels[top + row, 36 : 36 + row + 1] = 5
        name = f"{number:012d}.jpg"
        Image.fromarray(pixels).save(root / split / name)
        images.append({"id": number + 10, "file_name": name, "width": 64, "height": 48})
        if number == count - 1:
            break
        square = [left, top, left + 20, top, left + 20, top + 20, left, top + 20]
        triangle = [36, top, 36, top + 20, 56, top + 20]
        for category, box, polygon in ((3, [left, top, 20, 20], square), (7, [36, top, 20, 20], triangle)):
            annotation = {"id": len(annotations) + 1, "image_id": number + 10, "category_id": category, "bbox": box}
            annotations.append(
                annotation | {"segmentation": [polygon], "area": 400.0 * (1 if category == 3 else 0.5), "iscrowd": 0}
            )
    categories = [{"id": 3, "name": "square"}, {"id": 7, "name": "triangle"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def train(data: Path, folder: Path, *arguments: object) -> None:
    main([*SMALL, "--data-dir", str(data), "--output", str(folder), *map(str, arguments)])


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of two updates, on the weights of a Swin."""
    folder = tmp_path_factory.mktemp("whole")
    torch.save(timm.create_model("swin_tiny_patch4_window7_224", **SWIN).state_dict(), folder / "swin.pth")
    train(data, folder / "run", "--backbone-checkpoint", folder / "swin.pth", "--checkpoint-steps", "3")
    return folder / "run"


def test_a_run_is_logged_evaluated_and_kept(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["updates"] for row in rows(whole / "train.csv")] == list("1234")
    summary = rows(whole / "summary.csv")
    assert [row["updates"] for row in summary] == ["2", "4"]
    columns = {"AP box", "AP50 box", "AP75 box", "AP mask", "AP50 mask", "AP75 mask"}
    assert {"updates", "train_loss"} | columns == summary[0].keys()
    assert float(rows(whole / "train.csv")[-1]["lr"]) == pytest.approx(1e-5)
    main(["--config", str(whole / "args.yaml"), "--evaluate", str(whole / "last.pth.tar")])
    told = ", ".join(f"{name} {float(summary[1][name]):.4g}" for name in ("AP box", "AP50 box", "AP75 box", "AP mask"))
    assert f"update 4, {told}, AP50 mask" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_same_weights(data: Path, whole: Path, tmp_path: Path) -> None:
    script = tmp_path / "killer.py"
    script.write_text(KILLER.format(examples=str(EXAMPLES), script="detect", update=4))
    given = [*SMALL, "--data-dir", data, "--output", tmp_path / "run", "--checkpoint-steps", "3"]
    given += ["--backbone-checkpoint", whole.parent / "swin.pth", "--workers", "1"]
    done = run(script, *given)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(tmp_path / "run" / "last.pth.tar", weights_only=True)["progress"]["update"] == 3
    moved = (whole.parent / "swin.pth").rename(tmp_path / "moved.pth")  # a checkpoint holds all weights
    main(["--config", str(tmp_path / "run" / "args.yaml"), "--resume", "--workers", "0"])
    moved.rename(whole.parent / "swin.pth")
    for key, value in weights(whole).items():
        assert torch.equal(weights(tmp_path / "run")[key], value), key
    for name in ("train.csv", "summary.csv"):
        assert rows(tmp_path / "run" / name) == rows(whole / name)


@pytest.mark.slow
def test_two_processes_train_as_one(data: Path, tmp_path: Path) -> None:
    given = [*SMALL, "--data-dir", data]
    main([*map(str, given), "--grad-accum-steps", "2", "--output", str(tmp_path / "one")])
    done = run(EXAMPLES / "detect.py", *given, "--output", tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    for key, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[key], value, atol=2e-6, rtol=1e-4)
    for name in ("train.csv", "summary.csv"):
        for first, second in zip(rows(tmp_path / "one" / name), rows(tmp_path / "two" / name), strict=True):
            assert {k: float(v) for k, v in first.items()} == pytest.approx(
                {k: float(v) for k, v in second.items()}, rel=1e-4
            )


@pytest.mark.slow
def test_it_learns_to_find_objects(data: Path, tmp_path: Path) -> None:
    longer = ["--lr", "2e-3", "--epochs", "50", "--decay-epochs", "45", "--eval-steps", "100", "--drop-path", "0"]
    train(data, tmp_path / "run", *longer, "--pyramid-width", "32", "--min-size", "64")
    last = rows(tmp_path / "run" / "summary.csv")[-1]
    assert float(last["AP50 box"]) > 20.0
    assert float(last["AP50 mask"]) > 10.0


def test_weights_of_the_backbone_are_loaded(whole: Path) -> None:
    given = [*SMALL, "--data-dir", "none", "--output", "none", "--backbone-checkpoint", str(whole.parent / "swin.pth")]
    model: Any = build(parse(given)).eval()
    images = torch.rand(1, 3, 64, 96)
    swin = timm.create_model("swin_tiny_patch4_window7_224", strict_img_size=False, **SWIN).eval()
    swin.load_state_dict(torch.load(whole.parent / "swin.pth", weights_only=True))
    *_, expected = swin.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    torch.testing.assert_close(model.backbone.body(images)[-1].movedim(3, 1), expected)
    assert [x.shape[1:] for x in model.backbone(images).values()] == [(8, 64 // s, 96 // s) for s in (4, 8, 16)] + [
        (8, 2, 3),
        (8, 1, 2),
    ]


def test_anchors_follow_the_strides_of_the_maps() -> None:
    """Four stages with patches of four have the anchors of torchvision; two with patches of two have smaller ones."""
    default = faster_rcnn._default_anchorgen()
    four: Any = build(parse([*SMALL, "--data-dir", "none", "--output", "none"]))
    assert four.backbone.strides == [4, 8, 16, 32, 64]
    assert four.rpn.anchor_generator.sizes == default.sizes
    assert four.rpn.anchor_generator.aspect_ratios == default.aspect_ratios
    kwargs = ["patch_size=2", "embed_dim=24", "depths=(2,2)", "num_heads=(2,4)"]
    two: Any = build(parse([*SMALL, "--data-dir", "none", "--output", "none", "--model-kwargs", *kwargs]))
    assert two.backbone.strides == [2, 4, 8]
    assert two.rpn.anchor_generator.sizes == ((16,), (32,), (64,))
    images = torch.rand(2, 3, 64, 64)
    assert [tuple(x.shape) for x in two.backbone(images).values()] == [(2, 8, 64 // s, 64 // s) for s in (2, 4, 8)]
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 10:24, 20:30] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 30, 24]]), "labels": torch.tensor([1]), "masks": masks}
    losses = two.train()(list(images), [target, target])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(norm.weight.grad.abs().sum() > 0 for norm in two.backbone.norms)


def test_boxes_and_masks_are_mirrored_with_the_image(data: Path) -> None:
    objects = Objects(data, "train2017", 2, training=True)
    assert len(objects) == 4  # not the empty one
    seen = set()
    for seed in range(6):
        seed_generators(seed)
        image, target = objects[0]
        assert target["labels"].tolist() == [1, 2]
        bright = image.mean(0) > 0.9
        assert (bright == target["masks"][0].bool()).float().mean() > 0.98
        left, top, right, bottom = map(int, target["boxes"][0])
        assert bright[top:bottom, left:right].float().mean() > 0.9
        seen.add(left)
    assert len(seen) == 2


def test_figures_of_perfect_and_of_no_detections(data: Path) -> None:
    objects = Objects(data, "val2017", 2, training=False)
    perfect = [
        {"image_id": o["image_id"], "category_id": o["category_id"], "score": 0.9, "bbox": o["bbox"],
         "segmentation": objects.coco.annToRLE(o)}
        for o in objects.coco.anns.values()
    ]  # fmt: skip
    assert figures(objects, perfect)["AP box"] == pytest.approx(100.0)
    assert figures(objects, perfect)["AP mask"] == pytest.approx(100.0)
    wide = [r | {"bbox": [r["bbox"][0], r["bbox"][1], 40, 20]} for r in perfect]  # IoU 0.5
    assert figures(objects, wide)["AP50 box"] == pytest.approx(100.0)
    assert figures(objects, wide)["AP75 box"] == 0.0
    assert set(figures(objects, []).values()) == {0.0}


def edit(data: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = data / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def lose_file(data: Path) -> None:
    (data / "annotations" / "instances_val2017.json").unlink()


def cut_file(data: Path) -> None:
    file = data / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text()[:-40])


def lose_list(data: Path) -> None:
    edit(data, lambda content: content.pop("categories"))


def lose_size(data: Path) -> None:
    edit(data, lambda content: content["images"][0].pop("width"))


def more_categories(data: Path) -> None:
    edit(data, lambda content: content["categories"].append({"id": 9, "name": "circle"}))


def rename_category(data: Path) -> None:
    edit(data, lambda content: content["categories"][0].update(name="circle"))


def lose_image(data: Path) -> None:
    (data / "train2017" / "000000000002.jpg").unlink()


def lose_folder(data: Path) -> None:
    shutil.rmtree(data / "val2017")


def break_image(data: Path) -> None:
    for file in (data / "train2017").iterdir():
        file.write_bytes(file.read_bytes()[:100])


def other_size(data: Path) -> None:
    for file in (data / "train2017").iterdir():
        Image.open(file).resize((32, 32)).save(file)


def change_objects(**values: Any) -> Callable[[Path], None]:
    def damage(data: Path) -> None:
        edit(data, lambda content: content["annotations"][0].update(values))

    return damage


def no_objects(data: Path) -> None:
    edit(data, lambda content: content["annotations"].clear())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_file, "cannot be read: No such file or directory; expected COCO's annotations"),
        (cut_file, "is not a JSON file"),
        (lose_list, "is not in the layout of COCO: expected lists images, annotations, categories"),
        (lose_size, "is not in the layout of COCO: 'width' is missing"),
        (more_categories, "has 3 categories, but --num-classes is 2"),
        (rename_category, "differ, so that their labels do"),
        (lose_image, "lacks 000000000002.jpg, which"),
        (lose_folder, "there is no folder"),
        (break_image, "cannot be read"),
        (other_size, "has (32, 32) pixels, but its annotation says (64, 48)"),
        (change_objects(category_id=4), "annotation 1 has category_id 4, which is not one of its categories"),
        (change_objects(image_id=4), "annotation 1 has image_id 4, which is not one of its images"),
        (change_objects(bbox=[1, 2]), "annotation 1 has bbox [1, 2], expected [left, top, width, height]"),
        (change_objects(segmentation=[[1, 2]]), "annotation 1 has no segmentation: expected polygons"),
        (change_objects(segmentation=None), "annotation 1 has no segmentation: expected polygons"),
        (no_objects, "has no objects"),
    ],
)
def test_broken_data_is_refused(damage: Callable[[Path], None], words: str, data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(data, tmp_path / "data")
    damage(broken)
    with pytest.raises(SystemExit) as caught:
        train(broken, tmp_path / "run", "--batch-size", "4")
    assert words in str(caught.value)
    assert not list(tmp_path.glob("run/*.tar"))


def test_other_runs_and_weights_are_refused(data: Path, whole: Path, tmp_path: Path) -> None:
    def refused(words: str, *arguments: object) -> None:
        with pytest.raises(SystemExit) as caught:
            train(data, whole, "--backbone-checkpoint", whole.parent / "swin.pth", *arguments)
        assert words in str(caught.value)

    refused("holds another run")
    refused("the checkpoint has 2 classes, but --num-classes is 80", "--resume", "--num-classes", "80")
    refused("this run was started with lr 0.0001 (now 0.1)", "--resume", "--lr", "0.1")
    refused("of another size or kind than swin_tiny: ", "--output", tmp_path / "new", "--model-kwargs", "embed_dim=16")
    refused("--model-kwargs do not fit swin_tiny", "--output", tmp_path / "new", "--model-kwargs", "width=16")


def test_help_says_that_there_are_no_cascade_heads(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Cascade heads are in none of the libraries" in capsys.readouterr().out
