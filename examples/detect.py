"""Train Mask R-CNN with a feature pyramid on a Swin backbone, for boxes and masks of COCO (after Table 4).

    torchrun --nproc-per-node 8 examples/detect.py --backbone swin_tiny --backbone-checkpoint swin_t.pth \\
        --data-dir coco --output runs/coco_swin_t
    python examples/detect.py --config runs/coco_swin_t/args.yaml --resume                      # after an interruption
    python examples/detect.py --config runs/coco_swin_t/args.yaml --evaluate runs/coco_swin_t/last.pth.tar

The data: train2017/*.jpg, val2017/*.jpg, annotations/instances_train2017.json and annotations/instances_val2017.json.
Figures are AP, AP50 and AP75 of boxes and masks by pycocotools (pip install '.[downstream]').

Table 4 has Cascade Mask R-CNN. Cascade heads are in none of the libraries that this project installs; this is Mask
R-CNN of torchvision, so that its figures are not those of Table 4. For Cascade Mask R-CNN, convert the backbone with
convert_checkpoint.py --to mmdet, and train it there.

The paper gives the data set and the schedule, 3x; its other settings are those of the official Swin configurations,
which are the defaults here: 36 epochs with 16 images in an update, AdamW at 1e-4 with decay 0.05 (none for norms and
position biases), 500 updates of warm-up, a tenth of the rate after epochs 27 and 33, sides of 480 to 800 pixels (800 to
evaluate), drop path 0.2 (0.3 for swin_base). Random crops are left out.

Two processes train as one with twice the --grad-accum-steps, up to rounding. The weights of a resumed run are bit-equal
to those of an uninterrupted run on a CPU.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from downstream.average_precision import evaluate
from downstream.coco import Objects, check_same_categories, collate
from downstream.detector import BACKBONES, build
from downstream.options import make_parser, parse_options
from downstream.run import Task, run_or_exit
from downstream.schedule import Schedule, make_optimizer, steps
from imagenet.distributed import Processes
from imagenet.engine import RunTrainer
from torch import Tensor, nn

from tlfx.errors import InputError


class DetectionTrainer(RunTrainer):
    """Descends the sum of the losses of Mask R-CNN. Images and targets are lists."""

    def place(self, images: Any) -> Any:
        """Images on the device of the model."""
        return [image.to(self.device, non_blocking=True) for image in images]

    def place_labels(self, labels: Any) -> Any:
        """Targets on the device of the model."""
        return [{key: x.to(self.device, non_blocking=True) for key, x in target.items()} for target in labels]

    def loss(self, images: Any, labels: Any) -> Tensor:
        """The sum of the losses of a batch."""
        with self.autocast():
            losses = self.model(images, labels)
        loss: Tensor = sum(losses.values())
        self.meter.update(loss.detach(), loss.new_empty(0))  # no image is a mixture
        return loss


def make_task(options: Namespace, processes: Processes) -> Task:
    """Detection, as the options say."""
    root = Path(options.data_dir)
    train = Objects(root, "train2017", options.num_classes, training=True)
    val = Objects(root, "val2017", options.num_classes, training=False)
    check_same_categories(train, val)
    model = build(options).to(processes.device)
    return Task(
        model=model,
        train=train,
        collate=collate,
        trainer=lambda epoch: make_trainer(model, epoch, options, processes),
        evaluate=lambda: evaluate(model, val, processes, options.workers),
        updates=lambda epoch: options.epochs * epoch,
        best="AP box",
    )


def make_trainer(model: nn.Module, epoch: int, options: Namespace, processes: Processes) -> DetectionTrainer:
    """The trainer of a model; epoch: updates in one."""
    optimizer = make_optimizer(model, options.lr, options.weight_decay)
    schedule = Schedule(optimizer, steps([n * epoch for n in options.decay_epochs], options.warmup))
    called, unaligned = processes.data_parallel(model), Namespace(**vars(options), align=False)
    return DetectionTrainer(called, model, None, optimizer, schedule, None, unaligned, processes)


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """Options of the command line."""
    parser = make_parser(str(__doc__))
    parser.set_defaults(lr=1e-4, weight_decay=0.05, warmup=500, num_classes=80, eval_steps=7330)
    add = parser.add_argument
    add("--backbone", choices=list(BACKBONES), default="swin_tiny", help="(default: %(default)s)")
    add("--epochs", type=int, default=36, metavar="N", help="(default: %(default)s)")
    add("--decay-epochs", type=int, nargs="+", default=[27, 33], metavar="N", help="(default: 27 33)")
    add("--min-size", type=int, nargs="+", default=list(range(480, 801, 32)), metavar="N", help="shorter sides of "
        "images to draw from; the last one is that of evaluation (default: 480 512 … 800)")  # fmt: skip
    add("--max-size", type=int, default=1333, metavar="N", help="of the longer side (default: %(default)s)")
    add("--pyramid-width", type=int, default=256, metavar="N", help="channels of the pyramid (default: %(default)s)")
    return parse_options(parser, arguments, check)


def check(options: Namespace) -> None:
    """Raise InputError for invalid options; set those that depend on others."""
    if min(options.epochs, options.max_size, options.pyramid_width, *options.min_size, *options.decay_epochs) < 1:
        raise InputError("--epochs, --decay-epochs, --min-size, --max-size, --pyramid-width: expected at least 1")
    if options.channels_last:
        raise InputError("--channels-last: images of detection have different sizes and are not one tensor")
    if options.drop_path is None:
        options.drop_path = 0.3 if options.backbone == "swin_base" else 0.2


def main(arguments: Sequence[str] | None = None) -> None:
    """Train or evaluate, or exit with a message."""
    run_or_exit("detect.py", make_task, parse(arguments))


if __name__ == "__main__":
    main()
