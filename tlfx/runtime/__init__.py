"""Label arithmetic at run time: the functions that an aligned graph calls beside the model's own operators.

Labels are float32 tensors (batch, rows, channels), rows summing to 1 over the classes that their channels stand for.
Every function is a convex combination of rows, works outside autograd and autocast, and leaves its inputs alone.
Arguments named ``rows`` are labels in a shape: (batch, *shape, channels).
"""

from __future__ import annotations

from tlfx.runtime.arithmetic import label_arithmetic, merge_batch, split_batch
from tlfx.runtime.contraction import context, mix, settle
from tlfx.runtime.convolution import convolve, convolve_at, filtered, kernel_weights, resample, resample_at
from tlfx.runtime.fused_attention import attention_with_labels
from tlfx.runtime.gather_scatter import moved, narrow, ordered, put
from tlfx.runtime.labels import average, gather, output, pixels, scan, share, spread, uniform, view
from tlfx.runtime.softmax_attention import attend_by, attention
from tlfx.runtime.weighted import attention_by_norm, heads_by_norm, residual_by_gate, residual_by_norm, weighted

__all__ = [
    "attend_by",
    "attention",
    "attention_by_norm",
    "attention_with_labels",
    "average",
    "context",
    "convolve",
    "convolve_at",
    "filtered",
    "gather",
    "heads_by_norm",
    "kernel_weights",
    "label_arithmetic",
    "merge_batch",
    "mix",
    "moved",
    "narrow",
    "ordered",
    "output",
    "pixels",
    "put",
    "resample",
    "resample_at",
    "residual_by_gate",
    "residual_by_norm",
    "scan",
    "settle",
    "share",
    "split_batch",
    "spread",
    "uniform",
    "view",
    "weighted",
]

for _name in __all__:
    globals()[_name].__module__ = __name__  # the public place, by which the code of a graph names it
