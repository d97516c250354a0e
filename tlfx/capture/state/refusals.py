"""Changes of state that a captured graph cannot repeat: they are refused with the place, the line and the remedies."""

from __future__ import annotations

import inspect
import linecache
import sys
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from torch import Tensor, nn

from tlfx._torch import TreeSpec, tree_flatten, tree_map
from tlfx.capture.describe import ATOMS
from tlfx.capture.model_class import class_name, own_class
from tlfx.capture.state.randomness import RandomState
from tlfx.capture.state.reach import OTHERS, Reach
from tlfx.capture.state.snapshot import Change, Snapshot, are_equal, is_computed
from tlfx.errors import CaptureError, a_type
from tlfx.graph.nodes import hint

__all__ = ["check_arguments", "check_changes", "random_error"]


def check_changes(
    model: nn.Module, changes: Sequence[Change], run: Callable[[], None], after: Sequence[Change] | None = None
) -> None:
    """Raise CaptureError for a change that the graph cannot repeat at each call.

    Such are modules and parameters that a forward makes, objects that hold tensors, and, in the changes of a call
    ``after`` another one, data that changes again. ``run`` runs the forward, to find the line.
    """
    known = None if after is None else {change.place: change.described for change in after}
    for change in changes:
        reason = _unfit(change)
        changes_again = known is not None and not change.keeps_type and known.get(change.place) != change.described
        if reason is None and changes_again:
            reason = f"at each call otherwise ({_shown(change.before)}, then {_shown(change.after)})"
        if reason is not None:
            raise CaptureError(_message(model, change, reason, run))


def check_arguments(
    model: nn.Module, now: Any, given: tuple[list[Any], TreeSpec], objects: Snapshot, changes: Sequence[Change]
) -> None:
    """Raise CaptureError for a forward that writes to its arguments: containers, ``now`` and as they were given, and
    ``objects``, other than through places of the model, whose ``changes`` are captured."""
    leaves, spec = tree_flatten(now)
    before, before_spec = given
    known = {change.place for change in changes}
    written = [c.name for c in objects.changes({}) if c.place not in known]
    if spec != before_spec or any(a is not b for a, b in zip(leaves, before, strict=True)):
        written.append("a list or dictionary among its arguments")
    if written:
        raise CaptureError(
            f"the forward of {class_name(model)} writes to {written[0]}, which an aligned call would not\n"
            f"  source: the forward that begins at {_beginning(model)}\n"
            "Return what is written, or keep it on a module."
        )


def random_error(model: nn.Module, state: RandomState, run: Callable[[], None]) -> CaptureError:
    """The error for a forward that changes a random state, which its graph would not; ``run`` runs the forward."""
    line = _traced(model, lambda: repr(state.read()), run)
    return CaptureError(f"the forward of {class_name(model)} {state.cause}\n  source: {line}")


def _unfit(change: Change) -> str | None:
    """Why a graph cannot put a value into its place; None if it can."""
    for leaf in change.leaves:
        if isinstance(leaf, nn.Module) or (isinstance(leaf, nn.Parameter) and is_computed(leaf)):
            return f"to {a_type(leaf)} that the forward makes or moves"
        if not is_computed(leaf) and not isinstance(leaf, ATOMS) and _holds_computed(leaf):
            return f"to an object of class {type(leaf).__name__}, which holds tensors that the forward computes"
    return None


def _holds_computed(value: Any) -> bool:
    value = value() if isinstance(value, weakref.ref) else value
    return any(map(is_computed, Reach([("", value)]).tensors.values()))


def _message(model: nn.Module, change: Change, reason: str, run: Callable[[], None]) -> str:
    path, module = _module_of(model, change.name)
    attribute = change.name.partition("[")[0]
    return (
        f"the forward of {class_name(model)} changes {change.name} {reason}, which a captured graph cannot repeat\n"
        f"  module: {path or 'the model itself'} ({class_name(module)})\n"
        f"  source: {_line_of(model, change, run)}\n"
        "Keep tensors and counts in buffers (register_buffer), which aligned calls update as plain calls do; make "
        "modules and parameters in __init__. If neither outputs nor gradients depend on it, "
        f"tlfx.align(model, ignore_state=[{attribute!r}]) leaves it as it is in aligned calls."
    )


def _module_of(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """The innermost module whose path begins the name of a place."""
    fits = ((path, module) for path, module in model.named_modules() if not path or name.startswith(f"{path}."))
    return max(fits, key=lambda fit: len(fit[0]))


class _Shown:
    """A tensor or a size, as messages show it."""

    def __init__(self, x: Any) -> None:
        self.text = f"tensor{tuple(hint(s) for s in x.shape)}" if isinstance(x, Tensor) else str(hint(x))

    def __repr__(self) -> str:
        return self.text


def _shown(value: Any) -> str:
    text = repr(tree_map(lambda x: _Shown(x) if isinstance(x, Tensor) or is_computed(x) else x, value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line_of(model: nn.Module, change: Change, run: Callable[[], None]) -> str:
    """The line that changes a place while the forward runs."""
    return _traced(model, lambda: change.container.items().get(change.key), run)


def _traced(model: nn.Module, read: Callable[[], Any], run: Callable[[], None]) -> str:
    """The line after which a value differs while the forward runs."""
    watch, before = _Watch(read), sys.gettrace()
    sys.settrace(watch.trace)
    try:
        run()
    except Exception:
        pass  # what it has seen until then may hold the line; the reason for the refusal does not change
    finally:
        sys.settrace(before)
    return watch.line or f"somewhere in the forward that begins at {_beginning(model)}"


def _beginning(model: nn.Module) -> str:
    code = getattr(inspect.unwrap(own_class(model).forward), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else "an unknown line"


class _Watch:
    """Traces lines of Python until one of them changes a value."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self.read = read
        self.value = read()
        self.place: tuple[str, int, str] | None = None
        self.line: str | None = None

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Compare the value with that before the last line of code that is not a library's."""
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package == __name__.partition(".")[0]:  # it sets the state that the forward starts from
            self.place = None
        if package in OTHERS:  # the line that calls it is shown; to read random states at each of its lines takes long
            return None
        now = self.read()
        if self.line is None and self.place is not None and now is not self.value and not are_equal(now, self.value):
            name, number, function = self.place
            self.line = f"{name}:{number} in {function}: {linecache.getline(name, number).strip()}"
        self.value, self.place = now, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        return self.trace
