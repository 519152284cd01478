"""Reading a pickle as data: nothing in it is imported, called or instantiated.

A pickle is a program for a small stack machine. This machine knows the instructions that a saved
torch module needs. Where the program names a class or a function it gets a `Name`, where it calls
one it gets a `Record` of the call, and every other instruction is refused, as is every name that
is not on the reader's list. What the records mean is decided afterwards, by whoever asked.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from io import BytesIO
from pickletools import genops
from typing import Any, NamedTuple


class Refused(Exception):
    """The pickle is damaged, or wants something that is not on the list."""


class Name(NamedTuple):
    """A class or a function, by its name only."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Record:
    """What would have been made: by whom, from what, and the state and the items it was given."""

    maker: Name
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[str | int, Any] = field(default_factory=dict)


@dataclass(eq=False, frozen=True)
class Persistent:
    """A reference to something outside the pickle: a storage of numbers, or a module's source."""

    key: tuple[Any, ...]


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
}
_IGNORED = {"PROTO", "FRAME"}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_SHORT_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def read_pickle(stream: BytesIO, names: Collection[Name] | None) -> Any:
    """Read one pickle, and leave the stream behind it.

    Args:
        stream: In memory, so that nothing can be asked for that is not there.
        names: The classes and functions that may be named; None for any, as names do nothing.

    Raises:
        Refused: For whatever reason it could not be read to its end.
    """
    machine = _Machine(names)
    try:
        for opcode, argument, _ in genops(stream):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except Refused:
        raise
    except Exception as error:  # a damaged program may fail anywhere
        raise Refused(f"its pickle is damaged ({type(error).__name__})") from error
    raise Refused("its pickle has no end")


class _Machine:
    def __init__(self, names: Collection[Name] | None) -> None:
        self._names = names
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._special: dict[str, Callable[[], None]] = {
            "EMPTY_DICT": lambda: self._push({}),
            "EMPTY_LIST": lambda: self._push([]),
            "MARK": lambda: self._push(_MARK),
            "TUPLE": lambda: self._push(tuple(self._to_mark())),
            "SETITEM": lambda: self._set_items([self.pop(), self.pop()][::-1]),
            "SETITEMS": lambda: self._set_items(self._to_mark()),
            "APPEND": lambda: self._append([self.pop()]),
            "APPENDS": lambda: self._append(self._to_mark()),
            "STACK_GLOBAL": lambda: self._name(*[self.pop(), self.pop()][::-1]),
            "REDUCE": self._make,
            "NEWOBJ": self._make,
            "BUILD": self._build,
            "BINPERSID": self._persistent,
            "MEMOIZE": lambda: self._memo.__setitem__(len(self._memo), self._top()),
        }

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one instruction."""
        if opcode in _VALUES:
            self._push(argument)
        elif opcode in _CONSTANTS:
            self._push(_CONSTANTS[opcode])
        elif opcode in _SHORT_TUPLES:
            self._push(tuple([self.pop() for _ in range(_SHORT_TUPLES[opcode])][::-1]))
        elif opcode in _PUTS:
            self._memo[argument] = self._top()
        elif opcode in _GETS:
            self._push(self._memo[argument])
        elif opcode == "GLOBAL":
            self._name(*argument.split(" ", 1))
        elif opcode in self._special:
            self._special[opcode]()
        elif opcode not in _IGNORED:
            raise Refused(f"its pickle uses {opcode}, which no saved module needs")

    def pop(self) -> Any:
        """Take the top of the stack."""
        value = self._stack.pop()
        if value is _MARK:
            raise Refused("its pickle is damaged (a mark is out of place)")
        return value

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise Refused("its pickle is damaged (a mark is out of place)")
        return self._stack[-1]

    def _to_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise Refused("its pickle is damaged (no mark)")
        taken = self._stack[place + 1 :]
        del self._stack[place:]
        return taken

    def _name(self, module: Any, name: Any) -> None:
        wanted = Name(str(module), str(name))
        if self._names is not None and wanted not in self._names:
            raise Refused(f"it asks for {str(wanted)[:80]}, which is not on the list")
        self._push(wanted)

    def _make(self) -> None:
        arguments, maker = self.pop(), self.pop()
        if not isinstance(maker, Name) or not isinstance(arguments, tuple):
            raise Refused("its pickle calls what is no name")
        self._push(Record(maker, arguments))

    def _build(self) -> None:
        state, made = self.pop(), self._top()
        if not isinstance(made, Record):
            raise Refused("its pickle gives a state to what has none")
        made.state = state

    def _persistent(self) -> None:
        key = self.pop()
        if not isinstance(key, tuple):
            raise Refused("its pickle refers to something unknown")
        # torch's older files save a module's class together with its source, which is left unread
        self._push(key[1] if key[:1] == ("module",) and len(key) > 1 else Persistent(key))

    def _set_items(self, flat: list[Any]) -> None:
        target = self._top()
        items = target.items if isinstance(target, Record) else target
        if not isinstance(items, dict) or len(flat) % 2:
            raise Refused("its pickle puts items into what holds none")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if not isinstance(key, (str, int)):  # other keys could take forever to hash
                raise Refused("its pickle has keys that are no names")
            items[key] = value

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise Refused("its pickle appends to what is no list")
        target.extend(values)
