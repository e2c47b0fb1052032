"""How values travel between judge and candidate: as plain data that becomes builtins again, or by reference.

Whatever the other side sends, a value of the types in KINDS comes of it, or a proxy, or an exception. What is not plain data stays on its
own side; `References` numbers it, and the other side has a proxy for the number.

The surprise: a list, dict or set travels by number, its content in a list of `states` beside it. So aliases and cycles survive, depth
does no harm, and an argument that was changed in place comes back changed (copy-restore) and is recognized where the answer holds it.
"""

from __future__ import annotations

import builtins
import operator
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from importlib import import_module
from typing import Any, NamedTuple

MAX_DEPTH = 100  # tuples in tuples; of lists there may be any number
SMALL = 1 << 63  # integers up to here travel as decimals


class Kind(NamedTuple):
    """How a type travels: as the parts that `parts` finds in a value.

    `make` builds the value of its parts; of a mutable container it makes an empty one, which `fill` fills, so that it can hold itself.
    """

    tag: str
    parts: Callable[[Any], Iterable[Any]]
    make: Callable[[list[Any]], Any]
    fill: Callable[[Any, list[Any]], None] | None = None


def _pairs(items: Callable[[Any], Iterable[tuple[Any, Any]]]) -> Callable[[Any], list[Any]]:
    return lambda value: [part for pair in items(value) for part in pair]


def _bytes(parts: list[Any]) -> bytes:
    (text,) = parts
    return str.encode(text, "latin-1")


def _fraction(parts: list[Any]) -> Fraction:
    if [type(part) for part in parts] != [int, int]:  # as text, ten characters can ask for gigabytes
        raise TypeError("a fraction of other things than integers")
    return Fraction(*parts)


def _fill_list(target: list[Any], parts: list[Any]) -> None:
    target[:] = parts


def _fill_set(target: set[Any], parts: list[Any]) -> None:
    target.clear()
    target.update(parts)


def _fill_mapping(target: dict[Any, Any], parts: list[Any]) -> None:
    target.clear()
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        target[key] = value


def _fill_defaultdict(target: defaultdict[Any, Any], parts: list[Any]) -> None:
    target.default_factory = parts[0]
    _fill_mapping(target, parts[1:])


def _fill_deque(target: deque[Any], parts: list[Any]) -> None:
    target.clear()
    target.extend(parts[1:])


def _fill_bytearray(target: bytearray, parts: list[Any]) -> None:
    target[:] = _bytes(parts)


def _iso(kind: Any) -> Kind:
    return Kind(kind.__name__, lambda value: [kind.isoformat(value)], lambda parts: kind.fromisoformat(*parts))


# A value of a class that is derived from one of these travels as its base. int, float, str, bool and None are JSON's.
KINDS: dict[type, Kind] = {
    tuple: Kind("tuple", tuple.__iter__, tuple),
    frozenset: Kind("frozenset", frozenset.__iter__, frozenset),
    bytes: Kind("bytes", lambda value: [bytes.decode(value, "latin-1")], _bytes),
    complex: Kind("complex", lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    range: Kind("range", lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    slice: Kind("slice", lambda value: [value.start, value.stop, value.step], lambda parts: slice(*parts)),
    type(...): Kind("...", lambda value: [], lambda parts: ...),
    type({}.keys()): Kind("keys", iter, lambda parts: dict.fromkeys(parts).keys()),
    Decimal: Kind("Decimal", lambda value: [Decimal.__str__(value)], lambda parts: Decimal(*parts)),
    Fraction: Kind("Fraction", lambda value: [value.numerator, value.denominator], _fraction),
    timedelta: Kind("timedelta", lambda value: [value.days, value.seconds, value.microseconds], lambda parts: timedelta(*parts)),
    datetime: _iso(datetime),
    date: _iso(date),
    time: _iso(time),
    list: Kind("list", list.__iter__, lambda parts: [], _fill_list),
    set: Kind("set", set.__iter__, lambda parts: set(), _fill_set),
    dict: Kind("dict", _pairs(dict.items), lambda parts: {}, _fill_mapping),
    Counter: Kind("Counter", _pairs(dict.items), lambda parts: Counter(), _fill_mapping),
    OrderedDict: Kind("OrderedDict", _pairs(OrderedDict.items), lambda parts: OrderedDict(), _fill_mapping),
    defaultdict: Kind(
        "defaultdict", lambda value: [value.default_factory, *_pairs(dict.items)(value)], lambda parts: defaultdict(), _fill_defaultdict
    ),
    deque: Kind("deque", lambda value: [value.maxlen, *value], lambda parts: deque((), parts[0]), _fill_deque),
    bytearray: Kind("bytearray", lambda value: [bytearray.decode(value, "latin-1")], lambda parts: bytearray(), _fill_bytearray),
}
BY_TAG = {kind.tag: kind for kind in KINDS.values()}
PLAIN = (str, bool, float, type(None))
BASES: dict[type, Callable[[Any], Any]] = {int: int.__int__, float: float.__float__, str: str.__str__}
CLASSES = {name: found for name, found in vars(builtins).items() if isinstance(found, type) and not name.startswith("_")}
NOT_TO_IMPORT = {"antigravity", "this"}  # they act when imported


def base_of(kind: type) -> Any:
    """The type as which a `kind` travels, None where it does not."""
    return kind if kind in KINDS else next((one for one in kind.__mro__ if one in KINDS or one in BASES), None)


def content(container: Any) -> list[Any]:
    """The parts of a mutable container."""
    return list(KINDS[base_of(type(container))].parts(container))


class References:
    """What is referred to by number: this side's things, and its proxies of the other's. One thing has one number and one proxy."""

    def __init__(self, proxy: type, make_proxy: Callable[[], Any]) -> None:
        self.proxy, self._make_proxy = proxy, make_proxy
        self.kept: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._proxies: dict[int, Any] = {}
        self._proxy_numbers: dict[int, int] = {}

    def keep(self, value: Any) -> int:
        """The number of this side's `value`, which from now on cannot be freed, lest its id be given to another."""
        number = self._numbers.setdefault(id(value), len(self.kept))
        if number == len(self.kept):
            self.kept.append(value)
        return number

    def has(self, value: Any) -> bool:
        """Whether the other side was ever told of `value`."""
        return id(value) in self._numbers

    def proxy_of(self, number: int) -> Any:
        if number not in self._proxies:
            self._proxies[number] = made = self._make_proxy()
            self._proxy_numbers[id(made)] = number
        return self._proxies[number]

    def number_of(self, proxy: Any) -> int:
        return self._proxy_numbers[id(proxy)]


class Encoder:
    """Values to what JSON can hold. The containers `known` have the first numbers."""

    def __init__(self, references: References, known: Sequence[Any] = ()) -> None:
        self.references = references
        self.containers = list(known)
        self._numbers = {id(one): number for number, one in enumerate(self.containers)}

    def value(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is int:
            return value if -SMALL < value < SMALL else ["int", hex(value)]
        if kind is self.references.proxy:
            return ["yours", self.references.number_of(value)]
        base = base_of(kind)
        if base in BASES:
            return self.value(BASES[base](value))
        if base is None or depth > MAX_DEPTH:
            return self._by_name(value)
        tag, parts, _, fill = KINDS[base]
        if fill is None:
            return [tag, *[self.value(part, depth + 1) for part in parts(value)]]
        number = self._numbers.setdefault(id(value), len(self.containers))
        if number == len(self.containers):
            self.containers.append(value)
        return ["@", number]

    def states(self, before: Sequence[list[Any]] = ()) -> list[Any]:
        """What every container so far holds, and those that it holds, by number; None for one that holds what it did `before`."""
        found: list[Any] = []
        for number, container in enumerate(self.containers):  # which grow meanwhile
            parts = content(container)
            if number < len(before) and len(parts) == len(before[number]) and all(map(operator.is_, parts, before[number])):
                found.append(None)
            else:
                found.append([KINDS[base_of(type(container))].tag, *map(self.value, parts)])
        return found

    def _by_name(self, value: Any) -> list[Any]:
        if isinstance(value, type) and CLASSES.get(value.__name__) is value:
            return ["class", value.__name__]
        if isinstance(value, types.ModuleType) and value.__name__ in sys.stdlib_module_names:
            return ["module", value.__name__]
        return ["mine", self.references.keep(value)]


class Decoder:
    """What an Encoder made back to values, of `states` at once. Raises any Exception where that is not what an Encoder makes.

    The containers `known` have the first numbers; those with a state are changed to it.
    """

    def __init__(self, references: References, states: list[Any], known: Sequence[Any] = ()) -> None:
        self.references = references
        self.containers = list(known)
        fills = []
        for number, state in enumerate(states):
            if state is None and number < len(known):
                continue  # it holds what it held
            (_, _, make, fill), parts = BY_TAG[state[0]], state[1:]
            if fill is None:
                raise TypeError(f"a {state[0]} with a number")
            if number == len(self.containers):
                self.containers.append(make(parts))
            fills.append((fill, self.containers[number], parts))
        for fill, container, parts in fills:
            fill(container, list(map(self.value, parts)))

    def value(self, encoded: Any, depth: int = 0) -> Any:
        if type(encoded) is dict or depth > MAX_DEPTH + 1:
            raise TypeError("a JSON object, or tuples in tuples too deep")
        if type(encoded) is not list:
            return encoded
        tag, *parts = encoded
        if tag not in BY_TAG:
            return self._reference(tag, *parts)
        if BY_TAG[tag].fill is not None:
            raise TypeError(f"a {tag} without a number")
        return BY_TAG[tag].make([self.value(part, depth + 1) for part in parts])

    def _reference(self, tag: Any, what: Any) -> Any:
        match tag, what:
            case "@", int() if what >= 0:
                return self.containers[what]
            case "int", str():
                return int(what, 16)
            case "mine", int():
                return self.references.proxy_of(what)
            case "yours", int() if what >= 0:
                return self.references.kept[what]
            case "class", str():
                return CLASSES[what]
            case "module", str() if what in sys.stdlib_module_names and what not in NOT_TO_IMPORT:
                return import_module(what)
        raise TypeError("an unknown tag")
