"""The random numbers of mixers, all drawn from one torch.Generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from tlfx.errors import InputError, a_type

__all__ = ["Draws", "on_device"]


def on_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Drawn numbers on the device of the images. The host does not wait for a GPU: memory that is not pinned is copied
    before the call returns."""
    return drawn.to(device, non_blocking=drawn.device.type == "cpu")


class Draws:
    """Random draws on the device of `generator`; from torch's default CPU generator if None.

    >>> draws = Draws(torch.Generator().manual_seed(0))
    >>> draws.shares(1.0, 2)
    tensor([[0.8638, 0.1362],
            [0.6866, 0.3134]])
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        if not (generator is None or isinstance(generator, torch.Generator)):
            raise InputError(
                f"generator is {a_type(generator)}, expected torch.Generator().manual_seed(0), or None for "
                "torch's default generator"
            )
        self.generator = generator
        self.device = torch.device("cpu") if generator is None else generator.device

    def check_worker(self) -> None:
        """InputError inside one of several DataLoader workers, whose copies of a generator draw equal numbers."""
        worker = get_worker_info()
        if self.generator is not None and worker is not None and worker.num_workers > 1:
            raise InputError(
                f"generator was given, and each of {worker.num_workers} DataLoader workers has the same copy: all "
                "would draw equal numbers; omit generator, since torch seeds each worker, or mix after loading"
            )

    def shares(self, alpha: float, count: int, images: int = 2) -> Tensor:
        """Shares ~ Dirichlet(α, …, α), float32 (count, images); the first of two is λ ~ Beta(α, α)."""
        concentration = torch.full((count, images), alpha, dtype=torch.float64, device=self.device)
        # torch.distributions.Dirichlet calls this too, but its sample() takes no generator
        return torch._sample_dirichlet(concentration, self.generator).float()

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32 of the given shape."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def below(self, high: int, count: int) -> Tensor:
        """Integers in [0, high), int64 (count,)."""
        return torch.randint(high, (count,), generator=self.generator, device=self.device)

    def choice(self, shares: Tensor, count: int) -> Tensor:
        """For each row of shares (n, choices), `count` indices drawn with replacement: int64 (n, count)."""
        return torch.multinomial(shares.to(self.device), count, replacement=True, generator=self.generator)

    def permutation(self, count: int) -> Tensor:
        """The integers 0 … count − 1 in random order, int64 (count,)."""
        return torch.randperm(count, generator=self.generator, device=self.device)
