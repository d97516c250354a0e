"""Every private name of torch that tlfx uses is there and does what tlfx takes it for; a test fails by its name."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.fx import Graph
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from tlfx import _torch
from tlfx.capture.modes import without_mode_passes

LINEAR = torch.ops.aten.linear.default


def hooks() -> None:
    assert all(isinstance(vars(nn.Linear(1, 1))[name], dict) for name in _torch.HOOKS)
    module = nn.Linear(1, 1)
    module.register_forward_pre_hook(print)
    module.register_forward_hook(print)
    module.register_full_backward_pre_hook(print)
    module.register_full_backward_hook(print)
    assert all(list(vars(module)[name].values()) == [print] for name in _torch.HOOKS)


def compiled() -> None:
    module = nn.Linear(1, 1)
    before = set(vars(module))
    module.compile()
    assert {*vars(module)} - before <= set(_torch.COMPILED)


def module_dictionaries() -> None:
    assert all(type(vars(nn.Linear(1, 1))[name]) is dict for name in ("_parameters", "_buffers", "_modules"))


def disable_dynamo() -> None:
    assert _torch.disable_dynamo(lambda x: x + 1)(1) == 2


def autocast() -> None:
    mode = _torch.enter_autocast("cpu", torch.bfloat16, True, True)  # type: ignore[no-untyped-call]
    assert torch.is_autocast_enabled("cpu")
    _torch.exit_autocast(mode)  # type: ignore[no-untyped-call]
    assert not torch.is_autocast_enabled("cpu")


def set_grad_mode() -> None:
    _torch.set_grad_mode(False)
    assert not torch.is_grad_enabled()
    _torch.set_grad_mode(True)
    assert torch.is_grad_enabled()


def kernels_replaced() -> None:
    called = []

    def kernel(x: Tensor, state: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        called.append(x.shape)
        return x.new_empty(4, 1, 3), state.clone()

    with _torch.kernels_replaced(torch.ops.aten.gru.input, kernel):
        torch.export.export(nn.GRU(2, 3), (torch.ones(4, 1, 2),), strict=False)
    assert called
    called.clear()
    torch.export.export(nn.GRU(2, 3), (torch.ones(4, 1, 2),), strict=False)
    assert not called


class Modes(nn.Module):
    """Regions of other modes."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
        with torch.autocast("cpu", torch.bfloat16):
            return x @ y


def mode_passes() -> None:
    with without_mode_passes():
        graph = torch.export.export(Modes(), (torch.ones(2, 2),), strict=False).module().graph
    targets = {node.target for node in graph.nodes}
    assert {_torch.set_grad_mode, _torch.enter_autocast, _torch.exit_autocast} <= targets


def call_with_hooks() -> None:
    module, seen = nn.Identity(), []
    module.register_forward_hook(lambda *_: seen.append(1))
    assert _torch.call_with_hooks(module, 3) == 3
    assert seen == [1]


def fully_sharded() -> None:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
    from torch.distributed.fsdp._fully_shard import _fsdp_state

    class Sharded(FSDPModule, nn.Module):
        def __new__(cls) -> Sharded:
            return nn.Module.__new__(cls)  # FSDPModule.__new__ makes the class that was sharded

    module = Sharded()
    assert _torch.is_fully_sharded(module)
    assert not _torch.is_fully_sharded(nn.Module())
    state = _fsdp_state.FSDPState()
    state._mp_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    module._get_fsdp_state = lambda: state  # type: ignore[method-assign]
    assert "_get_fsdp_state" in vars(FSDPModule)
    assert "_mp_policy" in inspect.getsource(_fsdp_state.FSDPState)
    assert _torch.fsdp_policy(module).param_dtype is torch.bfloat16


def attention() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(2, 2, 40, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))  # type: ignore


def fused_attention_choice() -> None:
    query, key, value = attention()
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(backend):
            choice = _torch.fused_attention_choice(query, key, value, attn_mask=None, is_causal=False, scale=None)
            assert choice == backend.value


def flash_attention() -> None:
    query, key, value = (x.requires_grad_() for x in attention())
    expected = F.scaled_dot_product_attention(query, key, value)
    expected.sum().backward()
    with torch.no_grad():
        output, weight = _torch.flash_attention()(query, key, value, 0.0, attn_mask=None, is_causal=False, scale=None)
        gradients = _torch.flash_attention_backward()(
            torch.ones_like(output), query, key, value, output, weight, 0.0, False, attn_mask=None, scale=None
        )
    assert torch.equal(output, expected)
    assert all(torch.equal(g, x.grad) for g, x in zip(gradients, (query, key, value), strict=True))  # type: ignore[arg-type]


class Noted(Function):
    """A function that notes whether ``forward`` is given its context."""

    seen: list[bool] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Noted.seen += [_torch.is_context_of(ctx, Noted), _torch.is_context_of(x, Noted)]
        return x.clone()


def context_of_a_function() -> None:
    Noted.seen.clear()
    Noted.apply(torch.ones(1))
    assert Noted.seen == [True, False]


def foreach_functions() -> None:
    assert {"_foreach_add", "_foreach_mul_", "_foreach_norm", "_foreach_zero_"} <= {*_torch.foreach_functions()}


def view() -> None:
    x = torch.ones(2)
    assert _torch.is_view(x[1:])
    assert not _torch.is_view(x)


class Calls(TorchFunctionMode):
    """Counts the calls of functions inside."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def without_function_modes() -> None:
    x = torch.ones(1)
    with Calls() as calls:
        torch.exp(x)
        with _torch.without_function_modes():
            torch.exp(x)
    assert calls.count == 1


def checkpoint_generator() -> None:
    generator = getattr(_torch.checkpointing, _torch.checkpoint_generator_name())
    assert inspect.isgeneratorfunction(generator)
    assert {"preserve_rng_state", "context_fn"} <= set(inspect.signature(generator).parameters)


def checkpoint_function() -> None:
    parameters = list(inspect.signature(_torch.checkpointing.CheckpointFunction.forward).parameters)
    assert parameters == ["ctx", "run_function", "preserve_rng_state", "args"]


def without_vmap() -> None:
    seen: list[tuple[int, ...]] = []

    def note(x: Tensor) -> Tensor:
        seen.append(tuple(_torch.without_vmap(x).shape))
        return x

    torch.vmap(note)(torch.ones(3, 2))
    assert seen == [(3, 2)]


def outside_transforms() -> None:
    def double(x: Tensor) -> Tensor:
        with _torch.outside_transforms():
            assert not torch._C._functorch.is_functorch_wrapped_tensor(torch.ones(2) * 2)
        return (x * 2).sum()

    assert torch.equal(torch.func.grad(double)(torch.ones(2)), torch.full((2,), 2.0))


def global_hooks() -> None:
    def hook(*given: Any) -> None:
        """Observes."""

    assert hook not in _torch.global_hooks()
    for register in (
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
    ):
        handle = register(hook)
        assert hook in _torch.global_hooks()
        handle.remove()
    assert hook not in _torch.global_hooks()


class Fakes(nn.Module):
    """Notes whether its input is fake."""

    fakes: ClassVar[list[bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.fakes.append(_torch.is_fake(x))
        return x + 1


def is_fake() -> None:
    Fakes.fakes.clear()
    torch.export.export(Fakes(), (torch.ones(2),), strict=False)
    assert Fakes.fakes[-1]
    assert not _torch.is_fake(torch.ones(2))


def storage_key() -> None:
    x = torch.ones(3)
    assert _torch.storage_key(x) == _torch.storage_key(x[1:]) != _torch.storage_key(x.clone())


class Draws(nn.Module):
    """Draws from its own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(2, generator=self.generator)


def generator_key() -> None:
    module = Draws()
    held: Any = next(iter(torch.export.export(module, (torch.ones(2),), strict=False).constants.values()))
    assert _torch.generator_key(held) == _torch.generator_key(module.generator)
    assert _torch.generator_key(held) != _torch.generator_key(torch.Generator())


def operators() -> None:
    assert isinstance(LINEAR, _torch.OpOverload)
    assert isinstance(torch.ops.aten.linear, _torch.OpOverloadPacket)
    assert isinstance(torch.ops.higher_order.cond, _torch.HigherOrderOperator)


def schema() -> None:
    arguments = _torch.schema(torch.ops.aten.add_.Tensor).arguments
    assert arguments[0].alias_info.is_write
    assert _torch.schema(torch.ops.aten.add_.Tensor).is_mutable
    assert not _torch.schema(LINEAR).is_mutable


def overload_name() -> None:
    assert _torch.overload_name(torch.ops.aten.add.Tensor) == "Tensor"


def custom_op() -> None:
    @torch.library.custom_op("tlfx_names::same", mutates_args=())
    def same(x: Tensor) -> Tensor:
        return x.clone()

    assert isinstance(same, _torch.CustomOpDef)
    assert _torch.custom_op_name(same) == "tlfx_names::same"


def version() -> None:
    x = torch.ones(2)
    before = _torch.version(x)
    x.add_(1)
    assert _torch.version(x) == before + 1


def rename() -> None:
    graph = Graph()
    one, other = graph.placeholder("x"), graph.placeholder("y")
    _torch.rename(other, "x")
    assert one.name == "x"
    assert other.name == "x_1"


def pytree() -> None:
    leaves, spec = _torch.tree_flatten(((1, {"a": 2}), {}))
    assert leaves == [1, 2]
    assert _torch.tree_unflatten(leaves, spec) == ((1, {"a": 2}), {})
    assert _torch.tree_map(str, [1]) == ["1"]
    assert _torch.tree_leaves(None, is_leaf=lambda x: x is None) == [None]
    assert isinstance(spec, _torch.TreeSpec)


def sample_dirichlet() -> None:
    drawn = torch._sample_dirichlet(torch.ones(4, 3, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.sum(1), torch.ones(4, dtype=torch.float64))


def attention_setters() -> None:
    called: list[Any] = []
    setters: Any = torch._C
    names = ("flash", "mem_efficient", "math", "cudnn", "overrideable")
    assert {(torch._C, f"_set_sdp_use_{name}") for name in names} <= set(_torch.ATTENTION_SETTERS)
    before = torch._C._set_sdp_use_math
    try:
        setters._set_sdp_use_math = called.append
        torch.backends.cuda.enable_math_sdp(True)
    finally:
        setters._set_sdp_use_math = before
    assert called == [True]


def attention_kernels() -> None:
    before = _torch.attention_state()
    allowed = _torch.attention_kernels()
    with sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], set_priority=True):
        assert _torch.attention_kernels(True) == (SDPBackend.MATH.value, SDPBackend.FLASH_ATTENTION.value)
        _torch.set_attention_kernels((SDPBackend.FLASH_ATTENTION.value,))
        assert not torch.backends.cuda.math_sdp_enabled()
        _torch.set_attention_state(before)
        assert _torch.attention_kernels() == allowed
    _torch.set_attention_state(before)
    assert _torch.attention_state() == before


def dispatch_mode() -> None:
    called: list[Any] = []

    class Mode(_torch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():  # type: ignore[no-untyped-call]
        torch.ones(2).view(1, 2)
    assert called == [torch.ops.aten.ones.default, torch.ops.aten.view.default]
    assert [func.is_view for func in called] == [False, True]


def dynamo_tables() -> None:
    _torch.build_dynamo_tables()
    handlers = importlib.import_module("torch._dynamo.variables.torch").TorchInGraphFunctionVariable._get_handlers()
    assert torch.is_grad_enabled in handlers


class Asks(nn.Module):
    """Notes the answers to the questions whether it is traced."""

    answers: ClassVar[list[bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.answers[:] = [getattr(owner, name)() for owner, name in _torch.tracing_questions()]
        return x + 1


def tracing_questions() -> None:
    dynamo = importlib.import_module("torch._dynamo")
    questions = _torch.tracing_questions()
    assert {(torch.compiler, "is_compiling"), (dynamo, "is_compiling")} <= {*questions}
    Asks()(torch.ones(2))
    assert Asks.answers == [False] * len(questions)
    torch.export.export(Asks(), (torch.ones(2),), strict=False)
    assert Asks.answers == [True] * len(questions)


class OfUnknownSize(nn.Module):
    """A size that the data decide, and a check of it."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[x > 0]
        _torch.set_size(chosen.shape[0], 4)
        return chosen


def checks_of_sizes() -> None:
    graph = torch.export.export(OfUnknownSize(), (torch.ones(4),), strict=False).graph
    checks = [n for n in graph.nodes if n.op == "call_function" and _torch.is_check_of_sizes(n.target)]
    assert checks
    assert not any(node.users for node in checks)


class OfVmap(nn.Module):
    """A call of torch.vmap."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: row * row.sum())(x)


def vmap() -> None:
    graph = torch.export.export(OfVmap(), (torch.ones(2, 3),), strict=False).graph
    assert any(_torch.is_vmap(node.target) for node in graph.nodes)
    assert not _torch.is_vmap(LINEAR)


def compiled_model() -> None:
    module = nn.Linear(1, 1)
    assert _torch.is_compiled(torch.compile(module))
    assert not _torch.is_compiled(module)


def direct_calls() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    seen: list[bool] = []

    def note(x: Tensor) -> Tensor:
        seen.append(_torch.runs_directly((x, 1, None)))
        return x.sum()

    note(torch.ones(2)), note(nn.Parameter(torch.ones(2)))
    assert seen == [True, True]
    seen.clear()
    torch.func.grad(note)(torch.ones(2))
    torch.vmap(note)(torch.ones(2, 2))
    with FakeTensorMode():
        note(torch.ones(2))
    torch.export.export(Calling(note), (torch.ones(2),), strict=False)
    assert seen == [False] * len(seen)
    assert len(seen) >= 4


class Calling(nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def dispatch_modes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert _torch.is_fake(torch.ones(2))
        with _torch.without_dispatch_modes():
            assert torch.ones(2).sum().item() == 2


NAMES: dict[str, Callable[[], None]] = {
    "aten._assert_scalar, torch._check": checks_of_sizes,
    "torch._functorch.predispatch": vmap,
    "torch._dynamo.OptimizedModule": compiled_model,
    "torch.utils._python_dispatch._disable_current_modes": dispatch_modes,
    "Module._forward_pre_hooks, _forward_hooks, _backward_pre_hooks, _backward_hooks": hooks,
    "Module._is_torch_compile, _compiled_call_impl": compiled,
    "Module._parameters, _buffers, _modules": module_dictionaries,
    "torch._compile._disable_dynamo": disable_dynamo,
    "torch.amp.autocast_mode._enter_autocast, _exit_autocast": autocast,
    "torch._C._set_grad_enabled": set_grad_mode,
    "torch._C._set_sdp_use_flash, _set_sdp_use_math, _set_sdp_priority_order": attention_setters,
    "torch.nn.attention._sdpa_kernel, _cur_sdpa_kernel_backends, _backend_names": attention_kernels,
    "torch._dynamo.variables.torch, torch._dynamo.trace_rules": dynamo_tables,
    "torch._dynamo.is_compiling": tracing_questions,
    "torch._subclasses.fake_tensor.FakeTensor": is_fake,
    "torch.nn.modules.module._global_forward_hooks": global_hooks,
    "OpOverload.py_kernels, _dispatch_cache": kernels_replaced,
    "torch._export.passes.replace_autocast_with_hop_pass, replace_set_grad_with_hop_pass": mode_passes,
    "Module._call_impl": call_with_hooks,
    "FSDPModule._get_fsdp_state, FSDPState._mp_policy": fully_sharded,
    "torch._fused_sdp_choice": fused_attention_choice,
    "aten._scaled_dot_product_flash_attention_for_cpu, _backward": flash_attention,
    "Function._backward_cls": context_of_a_function,
    "torch._foreach_add": foreach_functions,
    "Tensor._is_view": view,
    "torch._C.DisableTorchFunction": without_function_modes,
    "torch.utils.checkpoint._checkpoint_without_reentrant_generator": checkpoint_generator,
    "torch.utils.checkpoint.CheckpointFunction": checkpoint_function,
    "torch._C._functorch.is_functorch_wrapped_tensor, get_unwrapped": without_vmap,
    "torch._C._functorch.peek_interpreter_stack, torch._C._len_torch_dispatch_stack": direct_calls,
    "torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack": outside_transforms,
    "UntypedStorage._cdata": storage_key,
    "torch.Generator._cdata": generator_key,
    "torch._ops.OpOverload, OpOverloadPacket, HigherOrderOperator": operators,
    "OpOverload._schema": schema,
    "OpOverload._overloadname": overload_name,
    "torch._library.custom_ops.CustomOpDef, _qualname": custom_op,
    "Tensor._version": version,
    "Node._rename": rename,
    "torch.utils._pytree": pytree,
    "torch.utils._python_dispatch.TorchDispatchMode": dispatch_mode,
    "torch._sample_dirichlet": sample_dirichlet,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_private_name_of_torch(name: str) -> None:
    try:
        NAMES[name]()
    except Exception as error:
        pytest.fail(f"torch {torch.__version__} has changed {name}, see tlfx/_torch.py: {error!r}")


def private_names(source: str, own: frozenset[str] = frozenset()) -> list[str]:
    """The private names of torch that a source reads: imported from torch, or attributes that are not in ``own``."""
    known = own | {"_parameters", "_buffers", "_modules"}

    def is_private(node: ast.Attribute) -> bool:
        private = node.attr[0] == "_" and node.attr[:2] != "__" and node.attr not in known
        return private and not ast.unparse(node.value).endswith("aten")

    names_read = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names_read += [name for a in node.names for name in f"{node.module}.{a.name}".split(".") if name[0] == "_"]
        elif isinstance(node, ast.Attribute) and is_private(node):
            names_read.append(node.attr)
    return names_read


def own_names(source: str) -> set[str]:
    """The names that a source defines: functions, classes, variables and attributes."""
    nodes = list(ast.walk(ast.parse(source)))
    stored = [n for n in nodes if isinstance(n, ast.Name | ast.Attribute) and isinstance(n.ctx, ast.Store)]
    defined = [n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return {*defined, *(n.id if isinstance(n, ast.Name) else n.attr for n in stored)}


def test_private_names_are_all_in_one_file() -> None:
    root = Path(_torch.__file__).parents[1]
    files = [f for folder in ("tlfx", "rules") for f in (root / folder).rglob("*.py") if f.name != "_torch.py"]
    assert {f.parent for f in files} >= {root / "tlfx", root / "rules"}
    sources = {f.relative_to(root).as_posix(): f.read_text(encoding="utf-8") for f in files}
    own = frozenset().union(*map(own_names, sources.values()))
    private = {file: names for file, source in sources.items() if (names := private_names(source, own))}
    assert private == {"tlfx/mix/draws.py": ["_sample_dirichlet"]}


def test_private_names_are_found_wherever_they_are_read() -> None:
    source = (
        "from torch._ops import OpOverload\nfrom torch.fx import _x, Node\ntorch._C.f(x._y, aten._z, x.__w__, x._v)"
    )
    assert private_names(source, frozenset({"_v"})) == ["_ops", "_x", "_y", "_C"]


def test_help_does_not_import_torch() -> None:
    code = "\n".join(
        (
            "import sys",
            "from tlfx.commands.cli import main",
            "try:",
            "    main(['--help'])",
            "except SystemExit:",
            "    print('torch' in sys.modules)",
        )
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"
