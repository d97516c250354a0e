"""Mixers of images, and the target that they return."""

from tlfx.mix.choice import RandomChoice
from tlfx.mix.collate import Collate
from tlfx.mix.cutmix import CutMix, MixUp
from tlfx.mix.grid import GridMix
from tlfx.mix.guided import AttentiveCutMix, SaliencyMix
from tlfx.mix.masked import MaskMixer
from tlfx.mix.mixer import Mixer
from tlfx.mix.mixup import Mixup
from tlfx.mix.patches import BlockMix, RandomPatchMix
from tlfx.mix.puzzle import PuzzleMix
from tlfx.mix.resize import ResizeMix
from tlfx.mix.target import MixedTarget, ShareTarget

__all__ = [
    "AttentiveCutMix",
    "BlockMix",
    "Collate",
    "CutMix",
    "GridMix",
    "MaskMixer",
    "MixUp",
    "MixedTarget",
    "Mixer",
    "Mixup",
    "PuzzleMix",
    "RandomChoice",
    "RandomPatchMix",
    "ResizeMix",
    "SaliencyMix",
    "ShareTarget",
]
