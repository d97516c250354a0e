"""Aligned models in two processes (gloo): DDP and fully_shard against one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor

import tlfx
from parallel import steps
from parallel.steps import PROCESSES, Result, Transformer

ROUNDING: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
"""Gradients are summed in another order."""
EVERY_RUN = ["under_ddp", "per_block_with_checkpoints", "collectives"]
"""The scenes of a default run; a process captures the model in each."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[dict[str, Result]]:
    """Results by name, for each process: of all scenes if slow tests are asked for, else of :data:`EVERY_RUN`."""
    folder: Path = tmp_path_factory.mktemp("processes")
    scenes = EVERY_RUN if "not slow" in request.config.option.markexpr else list(steps.SCENES)
    torch.multiprocessing.spawn(steps.run, (str(folder), scenes), nprocs=PROCESSES)  # type: ignore[attr-defined, no-untyped-call]
    return list(steps.results(folder))


def scenes(*names: str) -> list[Any]:
    """Parameters of a test, slow for scenes outside of :data:`EVERY_RUN`."""
    return [pytest.param(name, marks=() if name in EVERY_RUN else pytest.mark.slow) for name in names]


def alone(seed: int = 1) -> Result:
    """The same step in this process, of the whole batch."""
    model = tlfx.align(Transformer())
    result = steps.step(model, *steps.mixed_batch(seed))
    return result | {"gradients": steps.gradients(model)}


@pytest.fixture(scope="module")
def whole() -> Result:
    return alone()


def assert_parts(results: list[dict[str, Result]], scene: str, whole: Result) -> None:
    """Outputs and soft targets of the processes are the rows of the whole batch, bit for bit."""
    for name in ("logits", "soft"):
        assert torch.equal(torch.cat([process[scene][name] for process in results]), whole[name])


def assert_gradients(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(gradients) == list(expected)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[name], gradient, **ROUNDING)


@pytest.mark.parametrize(
    "scene",
    scenes("under_ddp", "at_root", "per_block", "per_block_before_aligning", "per_block_with_checkpoints"),
)
def test_a_step_is_that_of_one_process(results: list[dict[str, Result]], whole: Result, scene: str) -> None:
    assert_parts(results, scene, whole)
    for process in results:
        assert_gradients(process[scene]["gradients"], whole["gradients"])


@pytest.mark.slow
def test_accumulated_gradients_under_ddp(results: list[dict[str, Result]], whole: Result) -> None:
    assert_parts(results, "accumulating_under_ddp", whole)
    before = alone(seed=2)["gradients"]
    expected = {name: gradient + before[name] for name, gradient in whole["gradients"].items()}
    for process in results:
        assert_gradients(process["accumulating_under_ddp"]["gradients"], expected)


@pytest.mark.parametrize("scene", scenes("per_block", "per_block_before_aligning", "per_block_with_checkpoints"))
def test_blocks_are_freed_after_their_forward(results: list[dict[str, Result]], scene: str) -> None:
    """Between forward and backward the parameters of blocks lie in parts, and those of the root whole."""
    names = [name for name, _ in Transformer().named_parameters()]
    for process in results:
        assert process[scene]["sharded"] == [name for name in names if name.startswith("blocks")]


@pytest.mark.slow
def test_a_root_is_not_freed(results: list[dict[str, Result]]) -> None:
    assert [process["at_root"]["sharded"] for process in results] == [[]] * PROCESSES


@pytest.mark.slow
def test_mixed_precision_of_fully_shard(results: list[dict[str, Result]], whole: Result) -> None:
    for process in results:
        result = process["in_mixed_precision"]
        assert result["logits"].dtype == torch.bfloat16
        assert torch.equal(result["logits"], result["plain"]["logits"])
        assert_gradients(result["gradients"], result["plain"]["gradients"])
        assert result["soft"].dtype == torch.float32
    soft = torch.cat([process["in_mixed_precision"]["soft"] for process in results])
    torch.testing.assert_close(soft, whole["soft"], rtol=0, atol=2e-2)
    torch.testing.assert_close(soft.sum(1), torch.ones(len(soft)))


@pytest.mark.parametrize("way", ["ddp", "fully_shard"])
def test_an_aligned_step_adds_no_collective(results: list[dict[str, Result]], way: str) -> None:
    for process in results:
        plain, aligned = process["collectives"][way]
        assert sum(plain.values()) > 0
        assert aligned == plain


@pytest.mark.slow
def test_alignment_taken_away_below_fully_shard(results: list[dict[str, Result]], whole: Result) -> None:
    for process in results:
        result = process["unaligned_under_fully_shard"]
        assert result["plain"] == ("FSDPTransformer", True, False)
        assert torch.equal(result["logits"], whole["logits"])
        assert torch.equal(result["again"], whole["logits"])
        assert "def forward(self, images, mask):" in result["code"]


@pytest.mark.slow
def test_parameters_sharded_by_hand_are_refused(results: list[dict[str, Result]]) -> None:
    for process in results:
        assert process["sharded_by_hand"] == {
            "kept": True,
            "message": "the parameter blocks.0.qkv.weight is a DTensor that torch.distributed.fsdp.fully_shard does "
            "not gather (tensor parallelism, or distributed by hand), so what reads it cannot be followed: align the "
            "model with whole parameters, or shard it by fully_shard",
        }
