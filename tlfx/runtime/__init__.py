"""Label arithmetic at run time: the functions that an aligned graph calls between the model's own operators.

Labels are float32 tensors (batch, labels, channels); each sums to 1 over the classes that its channels stand for.
Every function is a convex combination of labels, runs outside autograd and autocast, and does not modify its inputs.
An argument named ``labels`` holds labels in a shape: (batch, *shape, channels).
"""

from __future__ import annotations

from tlfx.runtime.arithmetic import label_arithmetic
from tlfx.runtime.batch_axis import BatchAxis, merge_batch, split_batch
from tlfx.runtime.contraction import context, finalize, mix
from tlfx.runtime.convolution import by_group, convolve, convolve_at, filtered, kernel_weights, resample, resample_at
from tlfx.runtime.equation import Equation
from tlfx.runtime.fused_attention import attention_with_labels
from tlfx.runtime.gather_scatter import (
    gather_by_output,
    gather_labels,
    narrow,
    put_samples,
    scatter_labels,
    select_samples,
)
from tlfx.runtime.labels import average, gather, output, pixels, positions, scan, share, spread, uniform, view
from tlfx.runtime.softmax_attention import attend_by_operator, attention
from tlfx.runtime.weighted import (
    attention_by_norm,
    by_value,
    glu_gate,
    heads_by_norm,
    massed,
    residual_by_norm,
    residual_by_scale,
    total,
    weigh,
    weighted,
    with_masses_of,
)

__all__ = [
    "BatchAxis",
    "Equation",
    "attend_by_operator",
    "attention",
    "attention_by_norm",
    "attention_with_labels",
    "average",
    "by_group",
    "by_value",
    "context",
    "convolve",
    "convolve_at",
    "filtered",
    "finalize",
    "gather",
    "gather_by_output",
    "gather_labels",
    "glu_gate",
    "heads_by_norm",
    "kernel_weights",
    "label_arithmetic",
    "massed",
    "merge_batch",
    "mix",
    "narrow",
    "output",
    "pixels",
    "positions",
    "put_samples",
    "resample",
    "resample_at",
    "residual_by_norm",
    "residual_by_scale",
    "scan",
    "scatter_labels",
    "select_samples",
    "share",
    "split_batch",
    "spread",
    "total",
    "uniform",
    "view",
    "weigh",
    "weighted",
    "with_masses_of",
]

for _name in __all__:
    globals()[_name].__module__ = __name__  # the public place, by which the code of a graph names it
