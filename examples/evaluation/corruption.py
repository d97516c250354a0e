"""ImageNet-C (Hendrycks and Dietterich, ICLR 2019): errors under corruption, and mCE relative to a baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tlfx.errors import InputError, named

__all__ = ["ALEXNET", "CORRUPTIONS", "SEVERITIES", "Baseline", "Corrupted", "find_corruptions", "read_baseline"]

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The 15 corruptions of the definition of mCE."""
SEVERITIES = ("1", "2", "3", "4", "5")
ALEXNET = Path(__file__).with_name("alexnet.json")
"""The published errors of AlexNet, to which mCE is relative; the clean error is that of torchvision's weights."""


@dataclass(frozen=True)
class Baseline:
    """Errors of a model as shares, by corruption averaged over severities, and on clean images if known."""

    errors: Mapping[str, float]
    clean: float | None = None


@dataclass(frozen=True)
class Corrupted:
    """Errors of a model as shares, by corruption and severity, and on clean images if measured."""

    by_severity: Mapping[str, Sequence[float]]
    baseline: Baseline
    clean: float | None = None

    @property
    def errors(self) -> dict[str, float]:
        """Error by corruption, averaged over severities."""
        return {name: fmean(errors) for name, errors in self.by_severity.items()}

    @property
    def ce(self) -> dict[str, float]:
        """Corruption error in percent: the error divided by that of the baseline."""
        return {name: 100.0 * error / self.baseline.errors[name] for name, error in self.errors.items()}

    @property
    def mce(self) -> float:
        """Mean of the corruption errors, in percent."""
        return fmean(self.ce.values())

    @property
    def relative_mce(self) -> float | None:
        """Mean over corruptions of the increase over the clean error, relative to that of the baseline, in percent.

        None unless both clean errors are known.
        """
        clean, other = self.clean, self.baseline.clean
        if clean is None or other is None:
            return None
        return 100.0 * fmean((e - clean) / (self.baseline.errors[name] - other) for name, e in self.errors.items())


def find_corruptions(root: Path, corruptions: Sequence[str]) -> dict[str, list[Path]]:
    """The folders of all severities of each corruption, root/[GROUP/]CORRUPTION/SEVERITY.

    Raises InputError that names all missing corruptions and severities.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {str(root)!r}; expected one of CORRUPTION/SEVERITY/CLASS/IMAGE")
    folders, missing = {}, []
    for corruption in corruptions:
        places = [place for place in (root / corruption, *sorted(root.glob(f"*/{corruption}"))) if place.is_dir()]
        if not places:
            missing.append(corruption)
            continue
        folders[corruption] = [places[0] / severity for severity in SEVERITIES]
        lacks = [severity.name for severity in folders[corruption] if not severity.is_dir()]
        if lacks:
            missing.append(f"{corruption} of severity {', '.join(lacks)}")
    if missing:
        raise InputError(
            f"{root} lacks {'; '.join(missing)}. Expected CORRUPTION/SEVERITY/CLASS/IMAGE with severities 1 to 5; "
            "--corruptions selects a part of them"
        )
    return folders


def read_baseline(file: Path, corruptions: Sequence[str]) -> Baseline:
    """The baseline in a JSON file {"errors": {CORRUPTION: SHARE, …}, "clean_error": SHARE}, the last optional.

    ``evaluate.py --dataset imagenet-c --json FILE`` writes such a file. Raises InputError if the file cannot be read,
    lacks a corruption, or has an invalid error.
    """
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--baseline {file} cannot be read: {error}") from error
    errors = record.get("errors") if isinstance(record, dict) else None
    if not isinstance(errors, dict):
        raise InputError(
            f"--baseline {file} has no errors by corruption; expected a file such as "
            '{"errors": {"fog": 0.82}, "clean_error": 0.43}, as --dataset imagenet-c --json writes it'
        )
    if missing := [name for name in corruptions if name not in errors]:
        raise InputError(f"--baseline {file} lacks the errors of {named(missing, most=len(CORRUPTIONS))}")
    clean = record.get("clean_error")
    given = {name: errors[name] for name in corruptions} | ({} if clean is None else {"clean_error": clean})
    if wrong := [f"{name} {value!r}" for name, value in given.items() if not _is_share(value)]:
        raise InputError(f"--baseline {file}: {named(wrong)}; expected shares of the images, above 0 and at most 1")
    if clean is not None and (below := [name for name in corruptions if errors[name] <= clean]):
        raise InputError(
            f"--baseline {file}: its errors under {named(below)} are not above its clean error, so the relative mCE is "
            "undefined; remove clean_error from the file"
        )
    return Baseline({name: errors[name] for name in corruptions}, clean)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value <= 1.0
