"""``tlfx bench --suite``: the cases of the project's table of speed, for a GPU and for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tlfx.commands import output
from tlfx.policy import DEFAULT, Policy, policy_name
from tlfx.system.files import write_atomically
from tlfx.zoo.models import load

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

    from tlfx.analysis.speed import Settings, Timing

__all__ = ["Case", "Measured", "cases_of", "cells", "figures", "measure", "suite"]


@dataclass(frozen=True)
class Case:
    """A model with the size of its images, and what is measured.

    Attributes:
        model: a name that :func:`tlfx.zoo.models.load` accepts.
        settings: of the measurement; its device is that of the run.
        kwargs: arguments of the model.
        size: side of its images; None for that of the model.
        bar: what the ratio of the aligned step may be, None if only :attr:`call_bar` counts.
        call_bar: the most time that labels may add to the call of the model, relative to the plain call.
    """

    model: str
    settings: Settings
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    bar: float | None = None
    call_bar: float | None = None

    @property
    def title(self) -> str:
        """The model and what is special about the case."""
        policy = self.settings.policy
        parts = [
            *([f"{self.size} px"] if self.size else []),
            f"batch {self.settings.batch}",
            *([f"{self.settings.steps} steps in a row"] if self.settings.steps > 1 else []),
            *(["compiled"] if self.settings.compile else []),
            *([policy_name(policy)] if policy != DEFAULT else []),
        ]
        return f"{self.model}, {', '.join(parts)}"


@dataclass(frozen=True)
class Measured:
    """A case and its figures."""

    case: Case
    timings: dict[str, Timing]

    @property
    def ratio(self) -> float:
        """The aligned step relative to the plain one."""
        return self.timings["aligned"].ratio

    @property
    def added_call(self) -> float:
        """The time that labels add to the call of the model, relative to the plain call."""
        plain, captured, aligned = (self.timings[name].call for name in ("plain", "captured", "aligned"))
        return (aligned - captured) / plain

    @property
    def compile_ratio(self) -> float | None:
        """The first aligned step relative to the first plain one if they are compiled."""
        plain, aligned = (self.timings[name].first for name in ("plain", "aligned"))
        return None if plain is None or aligned is None else aligned / plain


_BATCHES = {
    "deit_tiny_patch16_224": 256,
    "deit_small_patch16_224": 256,
    "deit_base_patch16_224": 128,
    "swin_tiny_patch4_window7_224": 128,
    "pvt_v2_b2": 128,
    "mixer_s16_224": 256,
    "convnext_tiny": 128,
    "resnet50": 128,
}
"""Models that are measured on a GPU, and images in a batch."""
_DEIT, _SWIN = "deit_small_patch16_224", "swin_tiny_patch4_window7_224"


def cases_of(device: str) -> tuple[Case, ...]:
    """The cases that are measured on a device."""
    return _on_cpu() if device == "cpu" else _on_gpu()


def _on_gpu() -> tuple[Case, ...]:
    """224 pixels and bfloat16: steps in a row as people train, step by step, compiled, and under other policies."""
    import torch

    from tlfx.analysis.speed import Settings

    base = Settings(dtype=torch.bfloat16, pairs=5)
    norm, both = Policy(residual="norm"), Policy(residual="norm", heads="norm")
    return (
        *(Case(model, replace(base, batch=n, steps=20, pairs=3), bar=1.02) for model, n in _BATCHES.items()),
        *(Case(model, replace(base, batch=n), bar=1.03) for model, n in _BATCHES.items()),
        *(Case(model, replace(base, batch=_BATCHES[model], compile=True), bar=1.03) for model in (_DEIT, _SWIN)),
        Case(_DEIT, replace(base, batch=256, policy=norm), bar=1.04),
        Case(_DEIT, replace(base, batch=256, policy=both), bar=1.05),
    )


def _on_cpu() -> tuple[Case, ...]:
    """Small images, for which the work of the host counts most."""
    import torch

    from tlfx.analysis.speed import Settings

    small = Settings(batch=2, dtype=torch.bfloat16, attention="fused", pairs=9)
    return (
        Case(_DEIT, small, {"img_size": 32}, 32, call_bar=0.15),
        Case(_SWIN, small, {"img_size": 56}, 56, call_bar=0.15),
        Case("convnext_atto", small, size=32, call_bar=0.15),
        Case("resnet50", small, size=32, call_bar=0.3),
        Case("pvt_v2_b0", small, size=32, call_bar=0.15),
        Case("resnet18", Settings(), size=64, bar=1.05),
        Case("vit_tiny_patch16_224", Settings(), {"img_size": 32}, 32, bar=1.03),
    )


def measure(case: Case, device: str) -> Measured:
    """Measure a case on a device."""
    from tlfx.analysis.speed import bench

    size = None if case.size is None else (case.size, case.size)
    model, images = load(case.model, case.kwargs, input_size=size, device=device)
    return Measured(case, bench(model, tuple(images.shape[1:]), replace(case.settings, device=device)))


def figures(timing: Timing) -> dict[str, Any]:
    """Figures of one kind of step, for JSON."""
    low, high = timing.spread
    return {
        "ratio": round(timing.ratio, 4),
        "spread": [round(low, 4), round(high, 4)],
        "images_per_second": round(timing.throughput, 2),
        "memory_ratio": round(timing.memory_ratio, 4),
        "memory_bytes": timing.memory,
        "call_milliseconds": round(1000 * timing.call, 3),
        "kernels": timing.kernels,
        "first_step_seconds": timing.first,
    }


def suite(args: argparse.Namespace) -> tuple[list[dict[str, Any]], Table]:
    """Figures of all cases, as data and as a table, which is also written as Markdown if that was asked for."""
    from rich.table import Table

    from tlfx.system.devices import choose_device

    device = str(choose_device(args.device))
    measured = []
    for case in cases_of(device):
        with output.progress(f"timing {case.title}"):
            measured.append(measure(case, device))
    rows = [cells(each) for each in measured]
    table = Table(title=f"suite, {_machine(device)}")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "case" else "right")
    for row in rows:
        table.add_row(*row)
    if args.markdown:
        heads = [_COLUMNS, [":--", *["--:"] * (len(_COLUMNS) - 1)]]
        text = "".join(f"| {' | '.join(cells)} |\n" for cells in (*heads, *rows))
        write_atomically(args.markdown, lambda raw: raw.write(f"{_machine(device)}\n\n{text}".encode()))
        output.wrote(args.markdown)
    return [{"machine": _machine(device), **data(each)} for each in measured], table


def data(measured: Measured) -> dict[str, Any]:
    """A case for JSON: its limits, what labels add to the call, the ratio of the first steps if compiled, and the
    figures of each kind of step."""
    case, compiled = measured.case, measured.compile_ratio
    return {
        "case": case.title,
        "limit": case.bar,
        "labels_add": round(measured.added_call, 4),
        "labels_add_limit": case.call_bar,
        "compile_ratio": None if compiled is None else round(compiled, 3),
        **{kind: figures(timing) for kind, timing in measured.timings.items()},
    }


_COLUMNS = (
    *("case", "plain, images/s", "captured", "aligned", "at most", "call, ms: plain, aligned"),
    *("labels add", "at most", "kernels", "compile"),
)


def cells(measured: Measured) -> list[str]:
    """Cells of a case: its ratios and their bars, calls, kernels, and the ratio of the first steps if compiled."""
    plain, captured, aligned = (measured.timings[name] for name in ("plain", "captured", "aligned"))
    case, compiled = measured.case, measured.compile_ratio
    return [
        case.title,
        f"{plain.throughput:.0f}",
        f"{captured.ratio:.3f}",
        f"{aligned.ratio:.3f}",
        "–" if case.bar is None else f"{case.bar:.2f}",
        f"{1000 * plain.call:.1f}, {1000 * aligned.call:.1f}",
        f"{measured.added_call:.2f}",
        "–" if case.call_bar is None else f"{case.call_bar:.2f}",
        "–" if plain.kernels is None else f"{plain.kernels} → {aligned.kernels}",
        "–" if compiled is None else f"{compiled:.2f}",
    ]


def _machine(device: str) -> str:
    """The device in words, with the release of torch."""
    import torch

    chosen = torch.device(device)
    name = (
        torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    )
    return f"{name}, torch {torch.__version__}"
