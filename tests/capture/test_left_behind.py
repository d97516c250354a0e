"""What a capture leaves behind: nothing; and what an aligned call leaves: what a plain call does, or it is refused."""

from __future__ import annotations

import array
import functools
import itertools
import multiprocessing
import random
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import captures, pictures, slow_except
from test_same_model import Net, assert_same_training, target
from torch import Tensor, nn

import tlfx
from tlfx.errors import CaptureError

Body = Callable[[Any, Tensor], Tensor]
CACHE: dict[Any, Tensor] = {}
LOG: list[Any] = []
CALLS = 0
OF_MODULES: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()
OF_THREADS = threading.local()
VARIABLE: ContextVar[Tensor | None] = ContextVar("VARIABLE", default=None)


def is_real(x: Any) -> bool:
    return type(x) is Tensor and torch.equal(x, x)


# caches


@functools.lru_cache
def grid(n: int) -> Tensor:
    return torch.linspace(0, 1, n)


@functools.cache
def table(n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"weights": torch.ones(n, dtype=dtype)}


class Frequencies:
    """A helper that caches on its class, on itself, and by a cached property."""

    shared: ClassVar[dict[int, Tensor]] = {}

    def __init__(self) -> None:
        self.own: dict[int, Tensor] = {}

    def __call__(self, n: int) -> Tensor:
        if n not in self.shared:
            self.shared[n] = torch.arange(n) / n
        if n not in self.own:
            self.own[n] = self.shared[n].cos()
        return self.own[n] * self.scale

    @functools.cached_property
    def scale(self) -> Tensor:
        return torch.full((), 0.5)


def by_lru_cache(net: Any, x: Tensor) -> Tensor:
    return x * grid(x.shape[1])[:, None] * table(8, x.dtype)["weights"]


def by_module_dictionary(net: Any, x: Tensor) -> Tensor:
    key = x.shape[1], x.dtype
    if key not in CACHE:
        CACHE[key] = torch.arange(x.shape[1], dtype=x.dtype)
    return x * CACHE[key][:, None]


def by_helper(net: Any, x: Tensor) -> Tensor:
    return x * net.frequencies(x.shape[1])[:, None]


def by_attribute_of_a_function(net: Any, x: Tensor) -> Tensor:
    if not hasattr(by_attribute_of_a_function, "kept"):
        by_attribute_of_a_function.kept = torch.ones(x.shape[1], 1)  # type: ignore[attr-defined]
    kept: Tensor = by_attribute_of_a_function.kept  # type: ignore[attr-defined]
    return x * kept


def by_default_value(net: Any, x: Tensor, kept: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    return x * kept.setdefault(x.shape[1], torch.ones(x.shape[1], 1))


def by_global_variable(net: Any, x: Tensor) -> Tensor:
    global POSITIONS
    if POSITIONS is None:
        POSITIONS = torch.arange(x.shape[1])[:, None].float()
    return x + POSITIONS


def by_weak_keys(net: Any, x: Tensor) -> Tensor:
    if net.mix not in OF_MODULES:
        OF_MODULES[net.mix] = torch.arange(16.0)[:, None]
    return x * OF_MODULES[net.mix]


def by_thread(net: Any, x: Tensor) -> Tensor:
    if not hasattr(OF_THREADS, "kept"):
        OF_THREADS.kept = torch.ones(16, 1)
    kept: Tensor = OF_THREADS.kept
    return x * kept


def by_context_variable(net: Any, x: Tensor) -> Tensor:
    VARIABLE.set(x.detach())
    return x


POSITIONS: Tensor | None = None


def cached_tensors() -> list[Any]:
    return [
        grid(16), table(8, torch.float32)["weights"], *CACHE.values(), *Frequencies.shared.values(), POSITIONS,
        *OF_MODULES.values(), getattr(OF_THREADS, "kept", None), VARIABLE.get(),
        getattr(by_attribute_of_a_function, "kept", None), *by_default_value.__defaults__[0].values(),
    ]  # fmt: skip


@pytest.fixture
def _empty_caches() -> None:
    global POSITIONS
    POSITIONS = None
    for cache in (CACHE, Frequencies.shared, by_default_value.__defaults__[0], OF_MODULES, vars(OF_THREADS)):
        cache.clear()
    VARIABLE.set(None)
    vars(by_attribute_of_a_function).clear()
    grid.cache_clear()
    table.cache_clear()


CACHES = [
    by_lru_cache, by_module_dictionary, by_helper, by_attribute_of_a_function, by_default_value, by_global_variable,
    by_weak_keys, by_thread, by_context_variable,
]  # fmt: skip


@pytest.mark.usefixtures("_empty_caches")
@pytest.mark.parametrize("body", slow_except((by_lru_cache, by_weak_keys), CACHES), ids=lambda f: f.__name__)
def test_caches_hold_no_tensors_without_data(body: Body) -> None:
    model = tlfx.align(Net(body, frequencies=Frequencies()), example=pictures())
    assert not CACHE
    assert not Frequencies.shared
    assert POSITIONS is VARIABLE.get() is None
    assert not OF_MODULES
    assert not vars(OF_THREADS)
    model(pictures(), target(3))
    assert all(x is None or is_real(x) for x in cached_tensors())
    assert all(map(is_real, model.frequencies.own.values()))
    assert_same_training(body, frequencies=Frequencies())


# what is shared, and what is new


def test_shared_containers_stay_shared() -> None:
    class Inner(nn.Module):
        def __init__(self, info: dict[str, Any], sizes: list[int]) -> None:
            super().__init__()
            self.info: dict[str, Any] = info
            self.sizes: list[int] = sizes

        def forward(self, x: Tensor) -> Tensor:
            return x * self.info["scale"] * self.sizes[0]

    def body(net: Any, x: Tensor) -> Tensor:
        net.info["scale"] = 1.5
        net.sizes[:] = [2, 3]
        return net.inner(x)

    info: dict[str, Any] = {}
    sizes = [2]
    model: Any = tlfx.align(Net(body, inner=Inner(info, sizes), info=info, sizes=sizes), example=pictures())
    assert (info, sizes) == ({}, [2])
    model(pictures(), target(3))
    assert model.info is model.inner.info is info
    assert model.sizes is model.inner.sizes is sizes
    assert (info, sizes) == ({"scale": 1.5}, [2, 3])


def test_a_capture_changes_nothing() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        net.fresh = x.detach()
        net.buffer = net.buffer * 2
        net.plain.add_(1)
        net.listed.append(1) if not net.listed else None
        return nn.functional.dropout(x, 0.5) + net.buffer + net.plain

    model: Any = Net(body, plain=torch.zeros(8), listed=[])
    model.register_buffer("buffer", torch.ones(8))
    names = list(vars(model))
    tlfx.align(model)
    aligned = list(vars(model))
    plain, listed = model.plain, model.listed
    torch.manual_seed(3)
    state = torch.get_rng_state()
    tlfx.align(model, example=pictures())
    assert list(vars(model)) == aligned
    assert list(vars(tlfx.unalign(model))) == names
    assert model.plain is plain
    assert model.listed is listed
    assert (plain.sum(), listed, model.buffer.sum()) == (0, [], 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


# hooks that store what they see


def test_hooks_that_store() -> None:
    seen: dict[str, Tensor] = {}
    all_seen: list[Tensor] = []

    def save(module: nn.Module, args: Any, output: Tensor) -> None:
        seen["mix"] = output.detach()
        all_seen.append(output.detach())
        output.register_hook(all_seen.append)

    model = Net(lambda net, x: x)
    model.mix.register_forward_hook(save)
    tlfx.align(model, example=pictures())
    assert not seen
    assert not all_seen
    for _ in range(2):
        output, _ = model(pictures(), target(3))
        output.sum().backward()
    assert is_real(seen["mix"])
    assert len(all_seen) == 4
    assert all(map(is_real, all_seen))


# what cannot be repeated


def counter(net: Any, x: Tensor) -> Tensor:
    net.steps += 1
    return x * net.steps


def annealed(net: Any, x: Tensor) -> Tensor:
    net.temperature = net.temperature * 0.99
    return (x @ x.mT / net.temperature).softmax(-1) @ x


def growing_list(net: Any, x: Tensor) -> Tensor:
    net.history.append(x.mean().detach())
    return x


def growing_from_nothing(net: Any, x: Tensor) -> Tensor:
    if not hasattr(net, "found"):
        net.found = []
    net.found.append(x.detach())
    return x


def growing_dictionary(net: Any, x: Tensor) -> Tensor:
    net.by_step[len(net.by_step)] = x.mean()
    return x


def growing_tensor(net: Any, x: Tensor) -> Tensor:
    rows = x.detach().mean((0, 1))[None]
    net.bank = rows if net.bank is None else torch.cat((net.bank, rows))
    return x + net.bank.mean(0)


def flipping(net: Any, x: Tensor) -> Tensor:
    net.flipped = not net.flipped
    return x.flip(1) if net.flipped else x


def closure() -> Body:
    calls = 0

    def body(net: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * calls

    return body


def global_counter(net: Any, x: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    return x


def global_log(net: Any, x: Tensor) -> Tensor:
    LOG.append(x.shape[1])
    return x


def nested_counter(net: Any, x: Tensor) -> Tensor:
    net.mix.info["calls"]["forward"] += 1
    return x


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("calls", "last")

    def __init__(self) -> None:
        self.calls = 0
        self.last: Tensor | None = None


def on_slots(net: Any, x: Tensor) -> Tensor:
    net.info.calls += 1
    return x


def in_an_array(net: Any, x: Tensor) -> Tensor:
    net.array[0] += 1
    return x * float(net.array[0])


def in_shared_memory(net: Any, x: Tensor) -> Tensor:
    net.shared.value += 1
    return x * net.shared.value


class Meter(dict[str, float]):
    """A dictionary with attributes."""

    calls = 0


def in_a_dictionary_of_a_class(net: Any, x: Tensor) -> Tensor:
    net.meter.calls += 1
    return x * net.meter.calls


def in_a_bytearray(net: Any, x: Tensor) -> Tensor:
    net.array[0] += 1
    return x


def test_a_tensor_on_slots() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        net.info.last = x.detach()
        return x

    model = tlfx.align(Net(body, info=Slotted()), example=pictures())
    assert model.info.last is None
    model(pictures(), target(3))
    assert is_real(model.info.last)


def test_hooks_for_all_modules_are_refused() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *given: None)
    try:
        with pytest.raises(
            CaptureError, match=r"<lambda> is registered as a hook for all modules.*register_forward_hook"
        ):
            tlfx.align(Net(lambda net, x: x), example=pictures())
    finally:
        handle.remove()


def on_a_namespace(net: Any, x: Tensor) -> Tensor:
    net.info.calls += 1
    return x


def on_the_class(net: Any, x: Tensor) -> Tensor:
    type(net).made = getattr(type(net), "made", 0) + 1
    return x


def new_module(net: Any, x: Tensor) -> Tensor:
    if not hasattr(net, "late"):
        net.late = nn.Linear(8, 8)
    return net.late(x)


def own_generator(net: Any, x: Tensor) -> Tensor:
    return x * net.generator.random()


def generator_of_torch(net: Any, x: Tensor) -> Tensor:
    return x * torch.rand(8, generator=net.generator)


@pytest.mark.parametrize("replaces", slow_except([False], [False, True]))
def test_a_generator_of_torch_is_the_models(replaces: bool) -> None:
    models: list[Any] = [Net(generator_of_torch, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    tlfx.align(models[1])
    for step in range(3):
        if replaces and step:
            for model in models:
                model.generator = torch.Generator().manual_seed(step)
        assert torch.equal(models[1](pictures(), target(3))[0], models[0](pictures()))
        assert torch.equal(models[1].generator.get_state(), models[0].generator.get_state())


def generator_made_in_forward(net: Any, x: Tensor) -> Tensor:
    return x * torch.rand(8, generator=torch.Generator().manual_seed(3))


def generator_seeded_in_forward(net: Any, x: Tensor) -> Tensor:
    return x * torch.rand(8, generator=net.generator.manual_seed(3))


def reference_to_a_value(net: Any, x: Tensor) -> Tensor:
    net.kept, net.reference = x, weakref.ref(x)
    return x


def summed_numbers(net: Any, x: Tensor) -> Tensor:
    net.meter.total += x.detach().mean().item()
    return x


@pytest.mark.slow
def test_a_recurrent_network_that_goes_on_from_its_last_state() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        y, state = net.gru(x, net.state)
        net.state = state.detach()
        return y

    models: list[Any] = []
    for _ in range(2):
        model: Any = Net(body, state=None)
        model.gru = nn.GRU(8, 8, batch_first=True)
        models.append(model)
    models[1].load_state_dict(models[0].state_dict())
    tlfx.align(models[1])
    for step in range(3):
        images = pictures(seed=step)
        assert torch.equal(models[1](images, target(3))[0], models[0](images))
        assert torch.equal(models[1].state, models[0].state)


def test_a_sum_of_numbers_that_tensors_give() -> None:
    assert_same_training(summed_numbers, meter=SimpleNamespace(total=0.0))


def test_weak_references_to_weights_stay() -> None:
    model: Any = Net(lambda net, x: net.lstm(x)[0], lstm=nn.LSTM(8, 8, batch_first=True))
    tlfx.align(model)(pictures(), target(3))
    references = model.lstm._flat_weight_refs
    assert [reference() for reference in references] == [getattr(model.lstm, n) for n in model.lstm._flat_weights_names]


class Holder:
    """Not a structure that torch knows."""


def on_a_new_object(net: Any, x: Tensor) -> Tensor:
    net.held = Holder()
    net.held.x = x
    return x


def from_an_iterator(net: Any, x: Tensor) -> Tensor:
    return x * next(net.counts)


REFUSED: list[tuple[Body, dict[str, Any], str]] = [
    (counter, {"steps": 0}, r"Net changes steps at each call otherwise \(1, then 2\).*module: the model itself \(Net\)"
        r".*test_left_behind.py:\d+ in counter: net.steps \+= 1.*register_buffer.*ignore_state=\['steps'\]"),
    (annealed, {"temperature": 1.0}, r"changes temperature at each call.*net.temperature = net.temperature"),
    (growing_list, {"history": []}, r"changes history at each call.*net.history.append"),
    (growing_from_nothing, {}, r"changes found .* otherwise \(\(tensor\(3, 16, 8\),\).*forward that begins at"),
    (growing_dictionary, {"by_step": {}}, r"changes by_step\[1\] at each call.*ignore_state=\['by_step'\]"),
    (growing_tensor, {"bank": None}, r"changes bank at each call"),
    (flipping, {"flipped": False}, r"changes flipped at each call"),
    (closure(), {}, r"the variable 'calls' around closure.<locals>.body at each call.*calls \+= 1"),
    (global_counter, {}, r"the global variable CALLS at each call.*CALLS \+= 1"),
    (global_log, {}, r"the global variable LOG at each call"),
    (on_a_namespace, {"info": SimpleNamespace(calls=0)}, r"changes info.calls at each call"),
    (on_slots, {"info": Slotted()}, r"changes info.calls at each call"),
    (in_an_array, {"array": np.zeros(2)}, r"changes array at each call"),
    (in_a_bytearray, {"array": bytearray(2)}, r"changes array at each call"),
    (in_an_array, {"array": array.array("d", [0])}, r"changes array at each call"),
    (in_shared_memory, {"shared": multiprocessing.Value("d", 0)}, r"changes shared at each call"),
    (in_a_dictionary_of_a_class, {"meter": Meter()}, r"changes meter.calls at each call"),
    (counter, {"steps": np.int64(0)}, r"changes steps at each call"),
    (nested_counter, {}, r"changes mix.info\['calls'\]\['forward'\] at each call.*module: mix \(Linear\)"),
    (on_the_class, {}, r"changes AlignedNet.made at each call"),
    (new_module, {}, r"changes late to a Linear that the forward makes.*in __init__"),
    (own_generator, {"generator": random.Random(0)}, r"draws from the random generator of Python or NumPy"),
    (own_generator, {"generator": np.random.default_rng(0)}, r"draws from the random generator of Python or NumPy"),
    (own_generator, {"generator": random.Random(0)}, r"(?s)Python or NumPy.*test_left_behind.py:\d+ in own_generator"),
    (generator_made_in_forward, {}, r"creates a torch.Generator.*in __init__"),
    (generator_seeded_in_forward, {"generator": torch.Generator().manual_seed(3)},
        r"seeds a torch.Generator.*test_left_behind.py:\d+ in generator_seeded_in_forward"),
    (reference_to_a_value, {}, r"changes reference to an object of class"),
    (from_an_iterator, {"counts": itertools.count(1)}, r"takes values from an iterator, counts.*register_buffer"),
    (from_an_iterator, {"counts": iter([1, 2, 3, 4])}, r"takes values from an iterator, counts"),
    (from_an_iterator, {"counts": (i * i for i in range(1, 9))}, r"takes values from an iterator, counts"),
    (on_a_new_object, {}, r"changes held to an object of class Holder, which holds tensors"),
]  # fmt: skip


def made(body: Body, state: dict[str, Any], **options: Any) -> Any:
    model: Any = Net(body, **state)
    model.mix.info = {"calls": {"forward": 0}}
    return tlfx.align(model, **options)


SOME = (in_shared_memory, counter, growing_tensor, global_log, on_the_class, new_module, on_a_new_object)
EVERY_RUN = [case for case in REFUSED if case[0] in SOME]


@pytest.mark.parametrize(
    ("body", "state", "words"), slow_except(EVERY_RUN, REFUSED), ids=lambda x: getattr(x, "__name__", "")
)
def test_state_that_cannot_be_repeated(body: Body, state: dict[str, Any], words: str) -> None:
    with pytest.raises(CaptureError, match=f"(?s){words}"):
        made(body, state)(pictures(), target(3))


IGNORED: list[tuple[Body, dict[str, Any], str]] = [
    (counter, {"steps": 1}, "*.steps"), (growing_list, {"history": []}, "hist*"), (nested_counter, {}, "mix.info"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "state", "pattern"), IGNORED, ids=lambda x: getattr(x, "__name__", ""))
def test_ignored_state_stays(body: Body, state: dict[str, Any], pattern: str) -> None:
    model = made(body, state, ignore_state=[pattern])
    before = [repr(vars(model).get(name)) for name in ("steps", "history")]
    for _ in range(2):
        model(pictures(), target(3))
        assert [repr(vars(model).get(name)) for name in ("steps", "history")] == before
    model(pictures())  # a plain call changes it
    assert captures(model) == 1
    model(pictures(), target(3))
    assert captures(model) == 1


def test_ignore_state_takes_patterns() -> None:
    with pytest.raises(tlfx.InputError, match=r"ignore_state='steps'.*expected a list of patterns"):
        tlfx.align(nn.Identity(), ignore_state="steps")


def test_captures_settle() -> None:
    """Sizes and flags that a forward sets do not cause captures at every change of resolution."""

    def body(net: Any, x: Tensor) -> Tensor:
        net.tokens = x.shape[1]
        net.seen = [x.detach()]
        net.is_ready = True
        return x

    model: Any = tlfx.align(Net(body))
    model.mix = nn.Identity()
    for side in (16, 32, 16, 32, 16):
        model(pictures(side=side), tlfx.MixedTarget({**target(3), "mask": torch.ones(3, 1, side, side)}))
        assert model.tokens == (side // 4) ** 2
    before = captures(model)
    for batch, side in itertools.product((3, 2), (16, 32)):
        mixed = tlfx.MixedTarget({**target(batch), "mask": torch.ones(batch, 1, side, side)})
        model(pictures(batch, side=side), mixed)
    assert captures(model) == before <= 3
