"""Random numbers of the mixers, all from one torch.Generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from tlfx.errors import InputError

__all__ = ["Draws"]


class Draws:
    """Draws from `generator`, on its device; from torch's default generator on the CPU if None.

    >>> draws = Draws(torch.Generator().manual_seed(0))
    >>> draws.shares(1.0, 2)
    tensor([[0.8638, 0.1362],
            [0.6866, 0.3134]])
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        if not (generator is None or isinstance(generator, torch.Generator)):
            raise InputError(
                f"generator is a {type(generator).__name__}, expected torch.Generator().manual_seed(0), or None for "
                "torch's own"
            )
        self.generator = generator
        self.device = torch.device("cpu") if generator is None else generator.device

    def check_worker(self) -> None:
        """InputError in one of several workers of a DataLoader, which would all draw the same from their copies."""
        worker = get_worker_info()
        if self.generator is not None and worker is not None and worker.num_workers > 1:
            raise InputError(
                f"a generator was given, of which each of {worker.num_workers} DataLoader workers has the same copy: "
                "all would draw the same; leave generator out, since torch seeds every worker, or mix after loading"
            )

    def shares(self, alpha: float, count: int, images: int = 2) -> Tensor:
        """Shares ~ Dirichlet(α, …, α), float32 (count, images); the first of two is λ ~ Beta(α, α)."""
        concentration = torch.full((count, images), alpha, dtype=torch.float64, device=self.device)
        # what torch.distributions.Dirichlet draws with; its own sample takes no generator
        return torch._sample_dirichlet(concentration, self.generator).float()

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), float32 of a shape."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def below(self, high: int, count: int) -> Tensor:
        """Whole numbers in [0, high), int64 (count,)."""
        return torch.randint(high, (count,), generator=self.generator, device=self.device)

    def choice(self, shares: Tensor, count: int) -> Tensor:
        """For each row of shares (rows, choices), `count` numbers of choices with replacement: int64 (rows, count)."""
        return torch.multinomial(shares.to(self.device), count, replacement=True, generator=self.generator)

    def permutation(self, count: int) -> Tensor:
        """The numbers 0 … count − 1 in random order, int64 (count,)."""
        return torch.randperm(count, generator=self.generator, device=self.device)
