"""Containers of Python whose contents a forward may change: each can be read, written and restored by keys."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Collection
from types import CellType
from typing import Any

import numpy as np

__all__ = [
    "ABSENT",
    "Bytes",
    "Cell",
    "ClassAttributes",
    "Container",
    "Globals",
    "Items",
    "Mapping",
    "Members",
    "Numbers",
    "Objects",
    "Slots",
    "Variable",
]

ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "nothing"})()
"""The value of a key that a container does not have."""


class Container:
    """A container under a name; what has no keys, such as a list, has the one key None and its contents as value."""

    def __init__(self, name: str, held: Any) -> None:
        self.name = name
        self.held = held

    def items(self) -> dict[Any, Any]:
        """A copy of the contents by key."""
        raise NotImplementedError

    def put(self, key: Any, value: Any) -> None:
        """Write the value of a key; ABSENT removes it."""
        raise NotImplementedError

    def restore(self, before: dict[Any, Any]) -> None:
        """Put back an earlier copy of the contents."""
        now = self.items()
        for key in {**now, **before}:
            if now.get(key, ABSENT) is not before.get(key, ABSENT):
                self.put(key, before.get(key, ABSENT))

    def name_of(self, key: Any) -> str:
        """How messages name the value of a key, such as an attribute."""
        return self.name if key is None else f"{self.name}{key}"


class _Whole(Container):
    """A container without keys."""

    def restore(self, before: dict[Any, Any]) -> None:
        """Put back all contents, if they differ."""
        if self.items() != before:
            self.put(None, before[None])


class Mapping(Container):
    """A dictionary, such as the attributes of an object."""

    def __init__(
        self, name: str, held: dict[Any, Any], hidden: Collection[str] = (), of_attributes: bool = True
    ) -> None:
        super().__init__(name, held)
        self.hidden = hidden
        self.of_attributes = of_attributes

    def items(self) -> dict[Any, Any]:
        """All entries but hidden ones, not through methods that a subclass may have."""
        return {k: v for k, v in dict.items(self.held) if k not in self.hidden}

    def put(self, key: Any, value: Any) -> None:
        """Set or delete an entry."""
        # not through a subclass; and dict's own method would not update the order that an OrderedDict keeps
        kind: type[dict[Any, Any]] = OrderedDict if isinstance(self.held, OrderedDict) else dict
        if value is not ABSENT:
            kind.__setitem__(self.held, key, value)
        elif dict.__contains__(self.held, key):
            kind.__delitem__(self.held, key)

    def restore(self, before: dict[Any, Any]) -> None:
        """Put back entries, in their order."""
        super().restore(before)
        if not self.hidden and list(dict.keys(self.held)) != list(before):
            for key, value in before.items():
                self.put(key, ABSENT)
                self.put(key, value)

    def name_of(self, key: Any) -> str:
        """An attribute, or an entry."""
        return super().name_of(key) if self.of_attributes else f"{self.name}[{key!r}]"


class Globals(Container):
    """The global variables of a module that some code names."""

    def __init__(self, name: str, held: dict[str, Any], names: Collection[str]) -> None:
        super().__init__(name, held)
        self.names = names

    def items(self) -> dict[Any, Any]:
        """Those that exist."""
        return {name: self.held[name] for name in self.names if name in self.held}

    def put(self, key: Any, value: Any) -> None:
        """Set or delete a variable."""
        if value is ABSENT:
            self.held.pop(key, None)
        else:
            self.held[key] = value


class ClassAttributes(Container):
    """The attributes of a class."""

    def items(self) -> dict[Any, Any]:
        """All attributes of the class itself."""
        return {k: v for k, v in vars(self.held).items() if k not in ("__dict__", "__weakref__", "__doc__")}

    def put(self, key: Any, value: Any) -> None:
        """Set or delete an attribute."""
        if value is not ABSENT:
            setattr(self.held, key, value)
        elif key in vars(self.held):
            delattr(self.held, key)


class Items(Container):
    """A list or a deque."""

    def items(self) -> dict[Any, Any]:
        """All items as one value."""
        return {None: tuple(self.held)}

    def put(self, key: Any, value: Any) -> None:
        """Replace all items."""
        self.held.clear()
        self.held.extend(value)

    def restore(self, before: dict[Any, Any]) -> None:
        """Put back all items, if any of them is another object."""
        now, kept = tuple(self.held), before[None]
        if len(now) != len(kept) or any(a is not b for a, b in zip(now, kept, strict=True)):
            self.put(None, kept)


class Objects(Items):
    """An array of NumPy that holds objects."""

    def items(self) -> dict[Any, Any]:
        """All items as one value."""
        return {None: tuple(self.held.flat)}

    def put(self, key: Any, value: Any) -> None:
        """Replace all items."""
        for index, item in enumerate(value):
            self.held.flat[index] = item

    def restore(self, before: dict[Any, Any]) -> None:
        """Put back all items."""
        self.put(None, before[None])


class Members(_Whole):
    """A set."""

    def items(self) -> dict[Any, Any]:
        """All members as one value."""
        return {None: frozenset(self.held)}

    def put(self, key: Any, value: Any) -> None:
        """Replace all members."""
        self.held.clear()
        self.held.update(value)


class Cell(Container):
    """A variable that functions share."""

    def items(self) -> dict[Any, Any]:
        """The value, if there is one."""
        try:
            return {None: self.held.cell_contents}
        except ValueError:  # not assigned yet
            return {}

    def put(self, key: Any, value: Any) -> None:
        """Assign the variable."""
        cell: CellType = self.held
        if value is not ABSENT:
            cell.cell_contents = value
        else:
            del cell.cell_contents


class Slots(Container):
    """The attributes of an object that its classes list in ``__slots__``."""

    def __init__(self, name: str, held: Any) -> None:
        super().__init__(name, held)
        listed = [vars(kind).get("__slots__", ()) for kind in type(held).__mro__]
        names = [n for slots in listed for n in ([slots] if isinstance(slots, str) else slots)]
        self.names = [n for n in dict.fromkeys(names) if n not in ("__dict__", "__weakref__")]

    def items(self) -> dict[Any, Any]:
        """Those that have a value."""
        return {name: getattr(self.held, name) for name in self.names if hasattr(self.held, name)}

    def put(self, key: Any, value: Any) -> None:
        """Set or delete an attribute, of a frozen object too."""
        if value is not ABSENT:
            object.__setattr__(self.held, key, value)
        elif hasattr(self.held, key):
            object.__delattr__(self.held, key)


class Numbers(_Whole):
    """An array of NumPy: its contents as bytes."""

    def items(self) -> dict[Any, Any]:
        """All contents as one value."""
        return {None: self.held.tobytes()}

    def put(self, key: Any, value: Any) -> None:
        """Replace all contents."""
        self.held[...] = np.frombuffer(value, self.held.dtype).reshape(self.held.shape)


class Bytes(_Whole):
    """A bytearray, an array of the standard library, or a number or an array of ctypes: its contents as bytes."""

    def items(self) -> dict[Any, Any]:
        """All contents as one value."""
        return {None: bytes(memoryview(self.held).cast("B"))}

    def put(self, key: Any, value: Any) -> None:
        """Replace all contents."""
        if isinstance(self.held, bytearray):
            self.held[:] = value
        elif isinstance(self.held, array):
            self.held[:] = array(self.held.typecode, value)
        else:
            memoryview(self.held).cast("B")[:] = value


class Variable(_Whole):
    """A context variable; a value that a capture sets ends with the context in which it runs."""

    def items(self) -> dict[Any, Any]:
        """The value in the present context, if there is one."""
        value = self.held.get(ABSENT)
        return {} if value is ABSENT else {None: value}

    def put(self, key: Any, value: Any) -> None:
        """Set the variable."""
        if value is not ABSENT:
            self.held.set(value)

    def restore(self, before: dict[Any, Any]) -> None:
        """Put back the value, if it is another object."""
        if before and self.held.get(ABSENT) is not before[None]:
            self.put(None, before[None])
