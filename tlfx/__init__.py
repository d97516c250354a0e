"""Token-label alignment for any PyTorch vision model, by rewriting its torch.fx graph."""

from tlfx.aligned import Aligned, align, aligned_code, unalign
from tlfx.errors import (
    CaptureError,
    InputError,
    NoContentError,
    ProvenanceError,
    RuleConflictError,
    RuleError,
    TargetError,
    TlfxError,
    UnknownOperatorError,
)
from tlfx.mix.target import MixedTarget
from tlfx.taxonomy import Operation

__all__ = [
    "Aligned",
    "CaptureError",
    "InputError",
    "MixedTarget",
    "NoContentError",
    "Operation",
    "ProvenanceError",
    "RuleConflictError",
    "RuleError",
    "TargetError",
    "TlfxError",
    "UnknownOperatorError",
    "align",
    "aligned_code",
    "unalign",
]
__version__ = "0.1.0"
