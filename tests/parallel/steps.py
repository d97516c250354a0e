"""What each of two processes does: training steps under DDP and fully_shard, whose results the tests read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import tlfx

BATCH = 4
PROCESSES = 2
SIDE = 16

Result = dict[str, Any]


class Linear(Function):
    """A linear layer as an autograd function that is given the parameters of a module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return gradient @ weight, rows.mT @ x.flatten(0, -2), rows.sum(0)


class Block(nn.Module):
    """Attention that chooses, its projection an autograd function, and an MLP, each with its residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm2, self.mlp = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        nn.init.normal_(self.qkv.weight, std=0.7)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + Linear.apply(mixed.transpose(1, 2).flatten(2), self.proj.weight, self.proj.bias)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Blocks on 4 × 4 patches and a class token, checkpointed or not."""

    def __init__(self, checkpointed: bool = False, depth: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(depth)), nn.Linear(16, 5)
        self.checkpointed = checkpointed

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x[:, 0])


def mixed_batch(seed: int = 1) -> tuple[Tensor, tlfx.MixedTarget]:
    """Images (4, 3, 16, 16) and their target: each with a square of another."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    first = torch.randint(5, (BATCH,), generator=generator)
    mask = torch.ones(BATCH, 1, SIDE, SIDE)
    for sample in range(BATCH):
        mask[sample, :, sample : sample + 7, 3 : 11 + sample] = 0
    return images, tlfx.MixedTarget(first=first, second=first.flip(0), mask=mask, num_classes=5)


def part(images: Tensor, target: tlfx.MixedTarget, rank: int) -> tuple[Tensor, tlfx.MixedTarget]:
    """The samples of one process."""
    rows = slice(rank * BATCH // PROCESSES, (rank + 1) * BATCH // PROCESSES)
    return images[rows], tlfx.MixedTarget({k: v[rows] if isinstance(v, Tensor) else v for k, v in target.items()})


def step(model: Any, images: Tensor, target: tlfx.MixedTarget) -> Result:
    """One forward and backward: logits, soft targets, and which parameters lay in parts between the two."""
    logits, soft = model(images, target)
    between = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    F.cross_entropy(logits, soft).backward()
    return {"logits": logits.detach(), "soft": soft, "sharded": between}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The whole gradient of every parameter."""
    of_parameters = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g.clone() for name, g in of_parameters.items()}


def sharded(model: nn.Module, mesh: DeviceMesh, per_block: bool = True, **options: Any) -> nn.Module:
    """A model under fully_shard, its blocks too or only itself."""
    for block in model.blocks if per_block else []:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)  # changes the class of the model itself
    return model


def two_steps(model: nn.Module, rank: int) -> Result:
    """The second of two steps, so that what the first leaves behind is seen too."""
    for _ in range(2):
        model.zero_grad()
        result = step(model, *part(*mixed_batch(), rank))
    return result | {"gradients": gradients(model)}


def under_ddp(mesh: DeviceMesh, rank: int) -> Result:
    return two_steps(DistributedDataParallel(tlfx.align(Transformer())), rank)


def accumulating_under_ddp(mesh: DeviceMesh, rank: int) -> Result:
    model = DistributedDataParallel(tlfx.align(Transformer()))
    with model.no_sync():
        step(model, *part(*mixed_batch(2), rank))
    result = step(model, *part(*mixed_batch(1), rank))
    return result | {"gradients": gradients(model)}


def at_root(mesh: DeviceMesh, rank: int) -> Result:
    return two_steps(sharded(tlfx.align(Transformer()), mesh, per_block=False), rank)


def per_block(mesh: DeviceMesh, rank: int) -> Result:
    return two_steps(sharded(tlfx.align(Transformer()), mesh), rank)


def per_block_before_aligning(mesh: DeviceMesh, rank: int) -> Result:
    return two_steps(tlfx.align(sharded(Transformer(), mesh)), rank)


def per_block_with_checkpoints(mesh: DeviceMesh, rank: int) -> Result:
    return two_steps(tlfx.align(sharded(Transformer(checkpointed=True), mesh)), rank)


def in_mixed_precision(mesh: DeviceMesh, rank: int) -> Result:
    """Beside the plain model under the same policy, which rounds as it does."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    plain = sharded(Transformer(), mesh, mp_policy=policy)
    images, _ = part(*mixed_batch(), rank)
    result = two_steps(tlfx.align(sharded(Transformer(), mesh, mp_policy=policy)), rank)
    logits = plain(images)
    F.cross_entropy(logits, result["soft"]).backward()
    return result | {"plain": {"logits": logits.detach(), "gradients": gradients(plain)}}


def collectives(mesh: DeviceMesh, rank: int) -> Result:
    """The collectives of a plain and of an aligned step, after the first one, by name."""
    wrapped: dict[str, Callable[[nn.Module], nn.Module]] = {
        "ddp": DistributedDataParallel,
        "fully_shard": lambda model: sharded(model, mesh),
    }
    part_of_batch = part(*mixed_batch(), rank)
    return {
        name: [
            counted(wrap(Transformer(depth=1)), *part_of_batch, aligned=False),
            counted(wrap(tlfx.align(Transformer(depth=1))), *part_of_batch, aligned=True),
        ]
        for name, wrap in wrapped.items()
    }


def counted(model: nn.Module, images: Tensor, target: tlfx.MixedTarget, aligned: bool) -> dict[str, int]:
    """The collectives of the second of two steps."""
    for _ in range(2):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            logits, soft = model(images, target) if aligned else (model(images), target.area())
            F.cross_entropy(logits, soft).backward()
    return dict(Counter(event.name for event in profile.events() if event.name.startswith(("gloo:", "c10d::"))))


def unaligned_under_fully_shard(mesh: DeviceMesh, rank: int) -> Result:
    """Alignment taken away and put back, below and above fully_shard, and code of a graph without any step."""
    model = sharded(tlfx.align(Transformer()), mesh)
    images, target = mixed_batch()
    code = tlfx.aligned_code(model, example=images)
    tlfx.unalign(model)
    plain = type(model).__name__, isinstance(model, FSDPModule), isinstance(model, tlfx.Aligned)
    logits = model(images).detach()
    tlfx.align(model)
    return {"plain": plain, "logits": logits, "code": code, "again": model(images, target)[0].detach()}


def sharded_by_hand(mesh: DeviceMesh, rank: int) -> Result:
    model = tlfx.align(Transformer())
    weight = nn.Parameter(distribute_tensor(model.blocks[0].qkv.weight.detach(), mesh, [Shard(0)]))
    model.blocks[0].qkv.weight = weight
    try:
        model(*mixed_batch())
    except tlfx.TlfxError as error:
        return {"message": str(error), "kept": model.blocks[0].qkv.weight is weight}
    return {}


SCENES: dict[str, Callable[[DeviceMesh, int], Result]] = {
    scene.__name__: scene
    for scene in (
        under_ddp,
        accumulating_under_ddp,
        at_root,
        per_block,
        per_block_before_aligning,
        per_block_with_checkpoints,
        in_mixed_precision,
        collectives,
        unaligned_under_fully_shard,
        sharded_by_hand,
    )
}


def run(rank: int, folder: str, names: Iterable[str]) -> None:
    """One process: the scenes in turn, their results in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    torch.save({name: SCENES[name](mesh, rank) for name in names}, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def results(folder: Path) -> Iterator[dict[str, Result]]:
    """What the processes found, in their order."""
    for rank in range(PROCESSES):
        yield torch.load(folder / f"{rank}.pt")
