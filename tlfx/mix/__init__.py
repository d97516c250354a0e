"""Mixers of images, and the target they return."""

from tlfx.mix.mixup import Mixup
from tlfx.mix.target import MixedTarget

__all__ = ["MixedTarget", "Mixup"]
