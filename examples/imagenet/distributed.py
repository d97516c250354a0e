"""One process or several, with DistributedDataParallel or FSDP2, behind one interface."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tlfx.system.devices import choose_device

__all__ = ["Processes", "blocks_of", "last_step", "load_state", "load_states", "shard", "start", "state", "states"]


@dataclass(frozen=True)
class Processes:
    """This process, one of `world`, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def primary(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def zeros(self, count: int) -> Tensor:
        """Zeros for sums: float64 (count,) on the device, or float32 if it does not support float64."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros(count, dtype=dtype, device=self.device)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, as a new tensor."""
        total = values.clone()
        if self.world > 1:
            dist.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        values = [value]
        if self.world > 1:
            values = [None] * self.world
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """The model, in DistributedDataParallel if there are several processes."""
        if self.world == 1:
            return model
        return DistributedDataParallel(model)


def start(device: str) -> Processes:
    """Join the other processes if torchrun or SLURM started several. Raises InputError for a device that is missing."""
    name = str(choose_device(device))
    world = init_distributed_device_so(name)
    return Processes(int(world["global_rank"]), int(world["world_size"]), torch.device(str(world["device"])))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: members of its innermost lists of modules of one class.

    >>> block = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    >>> len(blocks_of(nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(block, num_layers=3))))
    3
    """
    return [block for parent in model.modules() if _repeats(parent) for block in parent.children() if _innermost(block)]


def _repeats(module: nn.Module) -> bool:
    """Whether a module is a list of two or more modules of one class that have submodules."""
    children = list(module.children())
    listed = isinstance(module, (nn.ModuleList, nn.Sequential))
    return listed and len(children) > 1 and len({type(c) for c in children}) == 1 and any(children[0].children())


def _innermost(block: nn.Module) -> bool:
    return not any(map(_repeats, block.modules()))


def shard(model: nn.Module) -> nn.Module:
    """Shard a model in place over all processes (FSDP2): each block separately, then the remaining parameters."""
    for block in blocks_of(model):
        fully_shard(block)
    fully_shard(model)
    return model


@contextlib.contextmanager
def last_step(model: nn.Module, bare: nn.Module, last: bool) -> Iterator[None]:
    """Sum gradients over the processes only at the last accumulation step.

    model: as it is called. bare: the module inside it that has the weights.
    """
    if isinstance(bare, FSDPModule):
        bare.set_requires_gradient_sync(last)
    with contextlib.ExitStack() as stack:
        if isinstance(model, DistributedDataParallel) and not last:
            stack.enter_context(model.no_sync())
        yield


WHOLE = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The full state of a model and its optimizer; all processes must call this together."""
    if isinstance(model, FSDPModule):
        return sharded.get_state_dict(model, optimizer, options=WHOLE)
    return model.state_dict(), optimizer.state_dict()


def state(model: nn.Module) -> dict[str, Any]:
    """As :func:`states`, for a model only."""
    return sharded.get_model_state_dict(model, options=WHOLE) if isinstance(model, FSDPModule) else model.state_dict()


def load_states(
    model: nn.Module, optimizer: torch.optim.Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]
) -> None:
    """Load the result of :func:`states`."""
    if isinstance(model, FSDPModule):
        sharded.set_state_dict(
            model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state, options=WHOLE
        )
        return
    model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)


def load_state(model: nn.Module, model_state: dict[str, Any]) -> None:
    """As :func:`load_states`, for a model only."""
    if isinstance(model, FSDPModule):
        sharded.set_model_state_dict(model, model_state, options=WHOLE)
    else:
        model.load_state_dict(model_state)
