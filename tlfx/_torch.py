"""Every private name of torch that tlfx uses, each with its reason and the public name that would replace it.

``tests/test_torch_names.py`` has a test for each, which fails with the name when torch changes it. Names of ATen
operators that begin with an underscore (``aten._softmax``) are not listed: graphs contain them, and a rule for an
operator that torch does not have is never read. Nor are ``_parameters``, ``_buffers`` and ``_modules``, which
torch.nn.Module documents for subclasses. tlfx.mix depends on nothing else in tlfx: its one private name,
``torch._sample_dirichlet`` (torch.distributions.Dirichlet takes no generator), is in tlfx/mix/draws.py.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._library.custom_ops import CustomOpDef
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.autograd import Function
from torch.fx import Node
from torch.nn import attention
from torch.utils import checkpoint as checkpointing
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "ATTENTION_KERNELS",
    "ATTENTION_SETTERS",
    "COMPILED",
    "HOOKS",
    "CustomOpDef",
    "HigherOrderOperator",
    "OpOverload",
    "OpOverloadPacket",
    "TorchDispatchMode",
    "TreeSpec",
    "attention_kernels",
    "attention_state",
    "build_dynamo_tables",
    "call_with_hooks",
    "checkpoint_generator_name",
    "checkpointing",
    "custom_op_name",
    "disable_dynamo",
    "enter_autocast",
    "exit_autocast",
    "flash_attention",
    "flash_attention_backward",
    "foreach_functions",
    "fsdp_policy",
    "fused_attention_choice",
    "generator_key",
    "global_hooks",
    "is_check_of_sizes",
    "is_compiled",
    "is_context_of",
    "is_fake",
    "is_fully_sharded",
    "is_view",
    "is_vmap",
    "kernels_replaced",
    "mode_passes",
    "outside_transforms",
    "overload_name",
    "rename",
    "runs_directly",
    "schema",
    "set_attention_kernels",
    "set_attention_state",
    "set_grad_mode",
    "set_size",
    "storage_key",
    "tracing_questions",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "version",
    "without_dispatch_modes",
    "without_function_modes",
    "without_vmap",
]

# torch.utils._pytree and torch._ops: the structures and operators of exported graphs; no public names
# TorchDispatchMode: the operators that a call runs, in order to count them; no public name

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""The dictionaries of a module's hooks: only ``register_*`` is public, and nothing public lists what is registered."""

COMPILED = ("_is_torch_compile", "_compiled_call_impl")
"""What torch.compile leaves on a module: a forward does not depend on it. torch has no public list of such names."""

ATTENTION_SETTERS = tuple((torch._C, n) for n in dir(torch._C) if n.startswith(("_set_sdp_use_", "_set_sdp_priority")))
"""Functions, as owner and name, that choose kernels of attention: the public ones (sdpa_kernel) call them."""

ATTENTION_KERNELS = ("_cur_sdpa_kernel_backends", "_sdpa_kernel")
"""The functions of torch.nn.attention by which sdpa_kernel reads and sets the kernels; nothing public reads all."""

_GETTERS = {name: getattr(torch._C, f"_get_{name}_sdp_enabled") for name in attention._backend_names}


def attention_kernels(by_priority: bool = False) -> tuple[int, ...]:
    """The kernels of attention that are allowed, values of SDPBackend, as sdpa_kernel keeps them at its start."""
    return tuple(map(int, attention._cur_sdpa_kernel_backends(with_priority=by_priority)))


def set_attention_kernels(kernels: Sequence[int], by_priority: bool = False) -> None:
    """Allow some kernels of attention, as sdpa_kernel does at its start and at its end."""
    attention._sdpa_kernel(list(map(attention.SDPBackend, kernels)), by_priority)


def attention_state() -> tuple[list[bool], list[int]]:
    """Which kernels of attention are allowed, and the priorities of all; a microsecond, where sdpa_kernel takes ten."""
    return [is_allowed() for is_allowed in _GETTERS.values()], torch._C._get_sdp_priority_order()


def set_attention_state(state: tuple[list[bool], list[int]]) -> None:
    """Set what :func:`attention_state` returned."""
    for name, is_allowed in zip(_GETTERS, state[0], strict=True):
        getattr(torch._C, f"_set_sdp_use_{name}")(is_allowed)
    torch._C._set_sdp_priority_order(state[1])


disable_dynamo = _disable_dynamo
"""As torch.compiler.disable, which imports dynamo (a second) when it decorates and not when it is called."""

enter_autocast, exit_autocast = _enter_autocast, _exit_autocast
"""torch.autocast as two functions, which a graph can call; torch.autocast itself is a context manager only."""


def build_dynamo_tables() -> None:
    """Build the tables of functions of torch that dynamo makes at its first use and keeps, so that they never hold
    functions that stand for torch's while a model is captured. torch has no public function for that."""
    rules = importlib.import_module("torch._dynamo.trace_rules")
    variables = importlib.import_module("torch._dynamo.variables.torch")
    if callable(variables.tracing_state_functions):  # torch 2.6 builds this one at its import
        variables.tracing_state_functions()
    variables.get_overridable_functions()
    variables.TorchInGraphFunctionVariable._get_handlers()
    rules.get_torch_obj_rule_map()
    rules.get_tensor_method()


def tracing_questions() -> list[tuple[Any, str]]:
    """The functions by which code asks whether it is traced, as owners and names. ``torch._dynamo.is_compiling`` is the
    older name of the public one, which libraries still use."""
    names = ((torch.compiler, "is_compiling"), (torch.compiler, "is_exporting"))
    return [place for place in (*names, (sys.modules.get("torch._dynamo"), "is_compiling")) if hasattr(*place)]


set_grad_mode = torch._C._set_grad_enabled
"""As torch.set_grad_enabled, without the object that could restore the mode: torch.export traces this function."""


@contextlib.contextmanager
def kernels_replaced(operator: OpOverload, kernel: Callable[..., Any]) -> Iterator[None]:
    """Run an operator by another function where torch would run one of its Python kernels. torch.library registers
    kernels for good, and has no way to replace one for a while."""
    importlib.import_module("torch._decomp.decompositions")  # registers Python kernels
    before = dict(operator.py_kernels)
    try:
        operator.py_kernels.update(dict.fromkeys(before, kernel))
        operator._dispatch_cache.clear()
        yield
    finally:
        operator.py_kernels.update(before)
        operator._dispatch_cache.clear()


def mode_passes() -> list[tuple[Any, str]]:
    """The passes by which torch.export makes sub-graphs of modes, as modules and names; no option leaves them out."""
    names = ("replace_autocast_with_hop_pass", "replace_set_grad_with_hop_pass")
    return [(importlib.import_module(f"torch._export.passes.{name}"), name) for name in names]


def call_with_hooks(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module with its hooks, not through the ``__call__`` of its class or of torch.compile; no public name."""
    return nn.Module._call_impl(module, *args, **kwargs)


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether fully_shard was applied to a module. The class is public, but to import it takes long."""
    loaded = sys.modules.get("torch.distributed.fsdp")
    return loaded is not None and isinstance(module, loaded.FSDPModule)


def fsdp_policy(module: nn.Module) -> Any:
    """The MixedPrecisionPolicy of a module under fully_shard; FSDPModule has no public attribute for it."""
    return module._get_fsdp_state()._mp_policy  # type: ignore[operator]


def fused_attention_choice(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> int:
    """The backend that scaled_dot_product_attention takes, a value of torch.nn.attention.SDPBackend; no public name."""
    return int(torch._fused_sdp_choice(query, key, value, **options))


def flash_attention() -> Any:
    """The CPU's fused attention with its log-sum-exp, which scaled_dot_product_attention does not return."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def flash_attention_backward() -> Any:
    """The gradient of :func:`flash_attention`; no public name."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def without_dispatch_modes() -> AbstractContextManager[Any]:
    """A context in which operators run as outside of a capture: no mode that makes fake tensors or records a graph."""
    return _disable_current_modes()


def without_function_modes() -> AbstractContextManager[Any]:
    """A context in which no mode or tensor subclass sees calls of functions (``torch.overrides`` has no public one)."""
    return torch._C.DisableTorchFunction()


def is_context_of(value: Any, function: type[Function]) -> bool:
    """Whether a value is the ``ctx`` of a call of an autograd function: the class of a ``ctx`` has no public name."""
    return isinstance(value, function._backward_cls)


def foreach_functions() -> list[str]:
    """The functions that apply an operator to each tensor of a list; torch has public ones in its optimisers only."""
    return [name for name in dir(torch) if name.startswith("_foreach_")]


def is_check_of_sizes(operator: Any) -> bool:
    """Whether an operator of a graph checks sizes or the range of a number (``aten._assert_scalar``), which
    torch.export adds; it gives no public list of these operators."""
    return "_assert_" in str(operator)


def set_size(size: Any, number: int) -> None:
    """Tell torch.export that a size is a number, which then stands in place of the symbol; no public name."""
    torch._check(size == number)


def is_vmap(function: Any) -> bool:
    """Whether a function of a graph begins or ends a call of torch.vmap; these have a private module only."""
    return "_functorch" in str(getattr(function, "__module__", ""))


def is_compiled(model: Any) -> bool:
    """Whether a model is what torch.compile returns for another; the class has a private module only."""
    loaded = sys.modules.get("torch._dynamo")
    return loaded is not None and isinstance(model, loaded.OptimizedModule)


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view that autograd follows; no public name."""
    return tensor._is_view()


def checkpoint_generator_name() -> str:
    """The generator in torch.utils.checkpoint around a checkpointed call (renamed in 2.9): there is no public hook."""
    names = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    return next(name for name in names if hasattr(checkpointing, name))


def outside_transforms() -> AbstractContextManager[Any]:
    """A context outside torch.func.grad and torch.vmap, whatever it is entered in; torch.func has no public one."""
    return temporarily_clear_interpreter_stack()


def without_vmap(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of torch.vmap; torch.func has no public name to look inside."""
    while torch._C._functorch.is_batchedtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def global_hooks() -> list[Any]:
    """Hooks for all modules (torch.nn.modules.module.register_module_forward_hook): nothing public lists them."""
    return [hook for kind in HOOKS for hook in getattr(nn.modules.module, f"_global{kind}").values()]


def is_fake(x: Any) -> bool:
    """Whether a tensor has a shape and no data, as in a capture; the class has a private module only."""
    loaded = sys.modules.get("torch._subclasses.fake_tensor")
    return loaded is not None and isinstance(x, loaded.FakeTensor)


def runs_directly(args: Iterable[Any]) -> bool:
    """Whether operators on these arguments just run: nothing traces or transforms them, and tensors are of no subclass.
    torch has no public name to ask for a transform of torch.func or a dispatch mode."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    plain = (Tensor, nn.Parameter)
    return torch._C._len_torch_dispatch_stack() == 0 and all(type(x) in plain for x in args if isinstance(x, Tensor))


def storage_key(tensor: Tensor) -> int:
    """A number for the storage of a tensor: ``data_ptr()`` is refused by fake tensors."""
    return int(without_vmap(tensor).untyped_storage()._cdata)


def generator_key(generator: torch.Generator) -> int:
    """A number for a random generator: torch.export makes another object of Python for the same generator."""
    return int(generator._cdata)  # type: ignore[attr-defined]


def schema(operator: OpOverload) -> Any:
    """The schema of an operator: which arguments it has, and which it writes to; no public name."""
    return operator._schema


def overload_name(operator: OpOverload) -> str:
    """The part of an operator's name after its last dot; public names give both parts as one string."""
    return operator._overloadname


def custom_op_name(operator: CustomOpDef) -> str:
    """The qualified name of what torch.library.custom_op makes; no public name."""
    return operator._qualname


def version(tensor: Tensor) -> int:
    """How often a tensor was written to in place (torch documents it in its notes on autograd, under this name)."""
    return tensor._version


def rename(node: Node, name: str) -> None:
    """Give a node a name that is free in its graph; the public setter does not make it unique."""
    node._rename(name)
