"""The line between judge and candidate: frames of JSON, and the two ends that ask each other and answer.

An End asks questions and, while it waits for an answer, answers the other's. Exceptions travel as values do: the names of their classes,
their arguments, their text, and the reason as it is told to people.

The surprise: an end that has met Malformed or Gone stays broken, and neither is an Exception. A check that catches whatever a call raises
must not take a dead program for one that raised.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from os import read, write
from typing import Any

from benchmarks.code.sandbox.values import CLASSES, Decoder, Encoder, References, content

MAX_MESSAGE = 64 << 20  # bytes
CHUNK = 1 << 16
REASON_CHARS = 500
SOURCES: dict[str, str] = {}  # what `execute` has executed in this process, by name

_compact = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_parse = json.JSONDecoder().decode


class Malformed(BaseException):
    """What arrived is no message of ours."""


class Gone(BaseException):
    """The other end has closed."""


class End:
    """One end of the line. `operations`: what the other may ask for, by name; `proxy`: the class, made with an End, of its objects here."""

    def __init__(self, channel: socket.socket | int, operations: dict[str, Callable[..., Any]], proxy: Callable[[End], Any]) -> None:
        self.file = channel if isinstance(channel, int) else channel.fileno()
        self.operations = operations
        self.references = References(proxy, lambda: proxy(self))  # type: ignore[arg-type]
        self.broken: Malformed | Gone | None = None
        self._received = bytearray()

    def ask(self, operation: str, *operands: Any) -> Any:
        """What the other end's `operation` returns; what it raises is raised. Raises Gone and Malformed."""
        encoder = Encoder(self.references)
        asked = encoder.value(operands)
        self._send("ask", operation, asked, encoder.states())
        return self.result(operation, encoder.containers)

    def result(self, operation: str = "", known: Sequence[Any] = ()) -> Any:
        """Wait for the answer to `operation`, whose operands held the containers `known`."""
        while True:
            word, *message = self._receive()
            if word == "ask":
                self._answer(message)
                continue
            try:
                encoded, states = message
                value = Decoder(self.references, states, known).value(encoded)
                error = None if word == "answer" else exception_of(*value)
            except Exception as problem:  # RecursionError and MemoryError too: the message is to blame
                raise self._break(Malformed(f"a malformed answer ({type(problem).__name__})")) from problem
            if error is None:
                return value
            if isinstance(error, StopIteration | StopAsyncIteration) and operation != "next":
                raise RuntimeError(f"the program raised {reason_of(error)}")  # as PEP 479: it would silently end a loop of the check
            raise error

    def serve(self) -> None:
        """Answer questions until the other end closes. Raises Malformed."""
        while True:
            try:
                self._answer(self._receive()[1:])
            except Gone:
                return

    def answer(self, operation: Callable[[], Any], known: Sequence[Any] = ()) -> None:
        """Send what `operation` returns or raises, and what it has changed of the containers `known`."""
        before = list(map(content, known))
        word, encoder = "answer", Encoder(self.references, known)
        try:
            encoded = encoder.value(operation())
            states = encoder.states(before)
        except Gone:
            raise
        except BaseException as error:
            word, encoder = "raise", Encoder(self.references, known)
            encoded = encoder.value(parts_of(error))
            states = encoder.states(before)
        self._send(word, encoded, states)

    def _answer(self, message: list[Any]) -> None:
        try:
            name, encoded, states = message
            operation, decoder = self.operations[name], Decoder(self.references, states)
            operands = decoder.value(encoded)
        except Exception as problem:
            raise self._break(Malformed(f"a malformed question ({type(problem).__name__})")) from problem
        self.answer(lambda: operation(*operands), decoder.containers)

    def _send(self, *message: Any) -> None:
        if self.broken is not None:
            raise self.broken
        data = _compact(message).encode("utf-8", "surrogatepass")  # Python's strings may hold lone surrogates
        rest = memoryview(len(data).to_bytes(4, "big") + data)
        try:
            while rest:
                rest = rest[write(self.file, rest) :]
        except OSError as error:
            raise self._break(Gone()) from error

    def _receive(self) -> list[Any]:
        """The next message: a word and what belongs to it."""
        if self.broken is not None:
            raise self.broken
        size = int.from_bytes(self._take(4), "big")
        if size > MAX_MESSAGE:
            raise self._break(Malformed(f"a message of {size} bytes; the most is {MAX_MESSAGE}"))
        try:
            message = _parse(str(self._take(size), "utf-8", "surrogatepass"))
            if type(message) is not list or not message or message[0] not in ("ask", "answer", "raise"):
                raise ValueError
        except Exception as problem:
            raise self._break(Malformed(f"no message ({type(problem).__name__})")) from problem
        return message

    def _take(self, size: int) -> bytearray:
        while len(self._received) < size:
            try:
                more = read(self.file, CHUNK)
            except OSError:
                more = b""
            if not more:
                raise self._break(Gone())
            self._received += more
        taken = self._received[:size]
        del self._received[:size]
        return taken

    def _break(self, error: Malformed | Gone) -> Malformed | Gone:
        self.broken = error
        return error


def execute(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Execute `source` as the file `name`, which `reason_of` quotes."""
    SOURCES[name] = source
    exec(compile(source, name, "exec", dont_inherit=True), namespace)


def reason_of(error: BaseException) -> str:
    """The exception in one line; one without a message (a bare assert) is told by the line that raised it."""
    told = getattr(error, "told", None)  # where it was raised, its line was at hand
    if type(told) is str:
        return told
    name = type(error).__name__
    try:
        message = " ".join(str(error).split("\n"))
    except BaseException:
        return name
    trace = error.__traceback__
    while trace is not None:
        source = SOURCES.get(trace.tb_frame.f_code.co_filename)
        if source is not None and not str(error):
            message = source.split("\n")[trace.tb_lineno - 1].strip()
        trace = trace.tb_next
    return f"{name}: {message}"[:REASON_CHARS] if message else name


def parts_of(error: BaseException) -> tuple[Any, ...]:
    """What `exception_of` makes the exception of, on the other side."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return tuple(one.__name__ for one in type(error).__mro__), error.args, text, reason_of(error)


def exception_of(names: tuple[str, ...], arguments: tuple[Any, ...], text: str, told: str) -> BaseException:
    """An exception of the first builtin class among `names`, or of a class of its own, named as the first, that is derived from it."""
    base = next(CLASSES[name] for name in names if name in CLASSES and issubclass(CLASSES[name], BaseException))
    kind = base if base.__name__ == names[0] else type(names[0], (base,), {"__str__": lambda self: text})
    try:
        error = kind(*arguments)
    except Exception:  # what its class demands did not travel
        error = RuntimeError(text)
    if type(told) is not str:
        raise TypeError("a reason that is no text")
    error.told = told
    return error
