"""Triton kernels without a GPU: marks of tests that interpret them, and their compilation to machine code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_attention_kernel.py")
compiled = pytest.mark.skipif(INTERPRETED, reason="Triton interprets here")


def shared_memory(kernel: Any, types: Mapping[str, str], known: Mapping[str, Any]) -> int:
    """Bytes of shared memory of a kernel that is compiled for a GPU: ``types`` of arguments other than int32, and
    values that are ``known``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {**dict.fromkeys(kernel.arg_names, "i32"), **types, **dict.fromkeys(known, "constexpr")}
    places = {(kernel.arg_names.index(name),): value for name, value in known.items()}
    made = triton.compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 80, 32))
    return int(made.metadata.shared)
