"""Which images each process sees when, and what it draws: both follow from the seed and the place in the run alone.

So there is no state of a generator to keep: a run that goes on from a checkpoint, with any number of workers, sees the
same images, augmented and mixed the same way, as one that was never interrupted.
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
    """What is drawn; each has random numbers of its own."""

    ORDER = 0
    SAMPLE = 1
    BATCH = 2


class Sample(NamedTuple):
    """An image to load: its number in the data set, and its place in the run, which its augmentation is drawn by."""

    image: int
    epoch: int
    position: int


def seed_for(seed: int, draws: Draws, *place: int) -> int:
    """The seed of what is drawn at a place of the run; other places have others."""
    return int(np.random.SeedSequence(seed, spawn_key=(draws, *place)).generate_state(1, np.uint64)[0])


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generator."""
    random.seed(seed)
    np.random.seed((1, seed & 0xFFFFFFFF, seed >> 32))  # 1: not what Python draws, whose generator is the same
    torch.default_generator.manual_seed(seed)


class Batches(Sampler[list[Sample]]):
    """The batches of one process, from any update of an epoch on.

    An epoch is one random order of the images, cut into updates; what is left over is for another epoch. The images of
    an update are dealt in turn to its batches, and these in turn to the processes. So an update of W processes holds
    the batches that one process has with W times the accumulation steps: the same images in each, mixed the same way.

    images: how many there are. batch_size: of one process, in one step. batches: in an update, over all processes and
    accumulation steps. repeats: each image comes so many times one after another, while an epoch stays as long
    (repeated augmentation, arXiv 1901.09335).
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
        self.done = 0  # updates of this epoch that need not come again

    @property
    def updates(self) -> int:
        """Of a whole epoch."""
        return self.images // (self.batch_size * self.batches)

    @property
    def numbers(self) -> range:
        """Which batches of an update are this process's."""
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
    """A data set whose random transforms are drawn by the place of a sample in the run, in whichever worker."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: Sample) -> Any:
        seed_generators(seed_for(self.seed, Draws.SAMPLE, sample.epoch, sample.position))
        return self.dataset[sample.image]
