"""Train UPerNet for semantic segmentation on a Swin or DeiT backbone (Table 3), optionally with aligned dense CutMix.

    torchrun --nproc-per-node 8 examples/segment.py --backbone swin_tiny --backbone-checkpoint swin_t.pth \\
        --data-dir ADEChallengeData2016 --output runs/ade_swin_t
    python examples/segment.py --config runs/ade_swin_t/args.yaml --resume                      # after an interruption
    python examples/segment.py --config runs/ade_swin_t/args.yaml --evaluate runs/ade_swin_t/last.pth.tar --multi-scale

The data: images/training/*.jpg and annotations/training/*.png, and the same for validation, with one label a pixel;
label 0 (none) is ignored. --evaluate with --multi-scale prints the columns of Table 3: mIoU, mIoU (MS) and mAcc.

The paper gives the data set and the framework; its settings are those of the official configurations, which are the
defaults here: mmsegmentation's 160k schedule, 16 images of 512 × 512 pixels in an update, AdamW at 6e-5 with decay 0.01
(none for norms and positions), 1500 updates of warm-up, then a linear decay (poly, power 1), drop path 0.3 for Swin and
0.1 for DeiT. DeiT has mmsegmentation's MultiLevelNeck. Two things differ: the loss is the mean over labelled pixels, as
in transformers, and batch norm is computed in each process, without synchronisation; its running averages are those of
the first process.

--cutmix mixes images and label maps. By default, the targets are aligned: a pixel has the labels of both images, by the
share of each that reaches the logits of the pixel; --no-align gives it the label of the image that was there. Each head
has its own shares. The paper does not mix in segmentation. lambda_gap in the tables is the mean difference between the
two shares of a pixel.

Two processes train as one with twice the --grad-accum-steps, up to rounding, except for the running averages. The
weights of a resumed run are bit-equal to those of an uninterrupted run on a CPU.
"""

from __future__ import annotations

from argparse import BooleanOptionalAction, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from downstream.ade20k import LabelMaps
from downstream.dense_mix import dense_loss, mix_label_maps
from downstream.mean_iou import SCALES, evaluate
from downstream.options import make_parser, parse_options
from downstream.run import Task, run_or_exit
from downstream.schedule import Schedule, make_optimizer, poly
from downstream.segmenter import BACKBONES, DEIT, Segmenter, build
from imagenet.distributed import Processes
from imagenet.engine import RunTrainer
from torch import Tensor
from torch.utils.data import default_collate

import tlfx
from tlfx.errors import InputError
from tlfx.mix import CutMix

AUXILIARY = 0.4
"""The weight of the loss of the auxiliary head."""


class SegmentationTrainer(RunTrainer):
    """Descends the cross-entropy of both heads."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of images (B, 3, H, W) and label maps int64 (B, H, W), mixed if there is a mixer."""
        if self.mixer is None:
            with self.autocast():
                outputs = self.model(images)
            shares, first, second = [labels.new_ones((), dtype=outputs[0].dtype)] * 2, labels, labels
            gaps = images.new_empty(0)
        else:
            outputs, shares, first, second, gaps = self.mixed(images, labels)
        losses = [dense_loss(o.float(), s, first, second) for o, s in zip(outputs, shares, strict=True)]
        loss = losses[0] + AUXILIARY * losses[1]
        self.meter.update(loss.detach(), gaps)
        return loss

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Any, list[Tensor], Tensor, Tensor, Tensor]:
        """Outputs of a mixed batch, the shares of the first image, both label maps, and the gap of each image."""
        assert self.mixer is not None
        images, first, second, target = mix_label_maps(self.mixer, images, labels)
        mask = target.mask[:, 0]
        with self.autocast():
            if self.aligned:
                outputs, softs = self.model(images, target)
                shares = [soft[:, 0] for soft in softs]
            else:
                outputs, shares = self.model(images), [mask, mask]
        return outputs, shares, first, second, (shares[0] - mask).abs().mean((1, 2))


def make_task(options: Namespace, processes: Processes) -> Task:
    """Segmentation, as the options say."""
    root = Path(options.data_dir)
    train = LabelMaps(root, "training", options.num_classes, options.crop_size)
    val = LabelMaps(root, "validation", options.num_classes)
    model = build(options).to(processes.device)
    if options.align:
        tlfx.align(model)
    return Task(
        model=model,
        train=train,
        collate=default_collate,
        trainer=lambda _: make_trainer(model, options, processes),
        evaluate=lambda: evaluate_all(model, val, options, processes),
        updates=lambda _: options.updates,
        best="mIoU",
    )


def make_trainer(model: Segmenter, options: Namespace, processes: Processes) -> SegmentationTrainer:
    """The trainer of a model."""
    optimizer = make_optimizer(model, options.lr, options.weight_decay)
    schedule = Schedule(optimizer, poly(options.updates, options.power, options.warmup))
    mixer = None
    if options.cutmix:
        mixer = CutMix(alpha=options.cutmix, prob=options.cutmix_prob, num_classes=options.batch_size)
    called = processes.data_parallel(model)
    return SegmentationTrainer(called, model, None, optimizer, schedule, mixer, options, processes)


def evaluate_all(model: Segmenter, val: LabelMaps, options: Namespace, processes: Processes) -> dict[str, float]:
    """Figures at one scale, and with --multi-scale those of all scales and mirror images."""
    measure = partial(evaluate, model, val, processes, options.crop_size, workers=options.workers)
    figures = measure(scales=(1.0,), flip=False)
    if options.multi_scale:
        figures |= {f"{name} (MS)": figure for name, figure in measure(scales=SCALES, flip=True).items()}
    return figures


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """Options of the command line."""
    parser = make_parser(str(__doc__))
    parser.set_defaults(lr=6e-5, weight_decay=0.01, warmup=1500, num_classes=150, eval_steps=16000)
    add = parser.add_argument
    add("--backbone", choices=BACKBONES, default="swin_tiny", help="(default: %(default)s)")
    add("--updates", type=int, default=160_000, metavar="N", help="(default: %(default)s)")
    add("--power", type=float, default=1.0, help="of the poly schedule (default: %(default)s)")
    add("--crop-size", type=int, default=512, metavar="N", help="of training; also the shorter side of evaluation")
    add("--head-width", type=int, default=512, metavar="N", help="channels of UPerNet (default: %(default)s)")
    add("--multi-scale", action="store_true", help="also evaluate at six scales with mirror images (MS)")
    add("--cutmix", type=float, default=0.0, metavar="ALPHA", help="mix images and label maps; 0 for none (default)")
    add("--cutmix-prob", type=float, default=1.0, metavar="P", help="share of mixed batches (default: %(default)s)")
    add("--align", action=BooleanOptionalAction, help="train mixed images against aligned label maps, or against "
        "plain ones (default: --align with --cutmix)")  # fmt: skip
    parser.set_defaults(align=None)
    return parse_options(parser, arguments, check)


def check(options: Namespace) -> None:
    """Raise InputError for options that contradict each other; set those that depend on others."""
    if options.updates < 1 or options.crop_size < 32 or options.crop_size % 32 or options.head_width < 1:
        raise InputError("--updates, --head-width: expected at least 1; --crop-size: expected a multiple of 32")
    if options.cutmix < 0 or not 0 <= options.cutmix_prob <= 1:
        raise InputError("--cutmix: expected at least 0; --cutmix-prob: expected a share between 0 and 1")
    if options.cutmix and options.batch_size < 2:
        raise InputError(f"--batch-size {options.batch_size}: images are mixed within a batch; pass 2 or more")
    if options.align and not options.cutmix:
        raise InputError("--align chooses the targets of mixed images, but no images are mixed: pass --cutmix 1.0")
    if options.align is None:
        options.align = options.cutmix > 0
    if options.drop_path is None:
        options.drop_path = 0.1 if options.backbone in DEIT else 0.3


def main(arguments: Sequence[str] | None = None) -> None:
    """Train or evaluate, or exit with a message."""
    run_or_exit("segment.py", make_task, parse(arguments))


if __name__ == "__main__":
    main()
