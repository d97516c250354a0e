"""The order of images over processes, and all random draws: both depend only on the seed and the position in the run.

No state of a generator has to be saved: a resumed run, with any number of workers, trains on the same images, with the
same augmentation and mixing, as an uninterrupted run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

__all__ = ["Batches", "Draws", "Reproducible", "Sample", "seed_for", "seed_generators"]


class Draws(IntEnum):
    """Kinds of draws; each has a separate stream of random numbers."""

    ORDER = 0
    SAMPLE = 1
    BATCH = 2


class Sample(NamedTuple):
    """An image to load: its number in the data set, and its position in the run, which determines its augmentation."""

    image: int
    epoch: int
    position: int


def seed_for(seed: int, draws: Draws, *place: int) -> int:
    """The seed of a kind of draws at a position in the run; each position has a different one."""
    return int(np.random.SeedSequence(seed, spawn_key=(draws, *place)).generate_state(1, np.uint64)[0])


def seed_generators(seed: int) -> None:
    """Seed the CPU generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed((1, seed & 0xFFFFFFFF, seed >> 32))  # 1: Python has the same generator, and must not draw the same
    torch.default_generator.manual_seed(seed)


class Batches(Sampler[list[Sample]]):
    """The batches of one process, starting at any update of an epoch.

    An epoch is a random order of the images, split into updates; an incomplete update is dropped. The images of an
    update are distributed in turn to its batches, and these in turn to the processes. So W processes compute the same
    update as one process with W times the accumulation steps: the same images, mixed in the same way.

    images: their number. batch_size: of one process and one step. batches: in an update, over all processes and
    accumulation steps. repeats: number of times that each image occurs in sequence; the length of an epoch stays the
    same (repeated augmentation, arXiv 1901.09335).
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        batches: int,
        *,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        repeats: int = 1,
    ) -> None:
        self.images, self.batch_size, self.batches = images, batch_size, batches
        self.seed, self.rank, self.processes, self.repeats = seed, rank, processes, repeats
        self.epoch = 0
        self.done = 0  # finished updates of this epoch

    @property
    def updates(self) -> int:
        """Updates of a whole epoch."""
        return self.images // (self.batch_size * self.batches)

    @property
    def numbers(self) -> range:
        """Numbers of the batches of an update that this process computes."""
        return range(self.rank, self.batches, self.processes)

    def __len__(self) -> int:
        return (self.updates - self.done) * len(self.numbers)

    def __iter__(self) -> Iterator[list[Sample]]:
        order, size = self._order(), self.batch_size * self.batches
        for update in range(self.done, self.updates):
            for number in self.numbers:
                positions = range(update * size + number, (update + 1) * size, self.batches)
                yield [Sample(int(order[position]), self.epoch, position) for position in positions]

    def _order(self) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self.seed, Draws.ORDER, self.epoch))
        return torch.randperm(self.images, generator=generator).repeat_interleave(self.repeats)[: self.images]


class Reproducible(Dataset[Any]):
    """A data set whose random transforms depend only on the position of a sample in the run, in any worker."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: Sample) -> Any:
        seed_generators(seed_for(self.seed, Draws.SAMPLE, sample.epoch, sample.position))
        return self.dataset[sample.image]
