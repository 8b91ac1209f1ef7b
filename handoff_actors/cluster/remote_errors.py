"""Exceptions to bytes and back, with their class, chain, notes, groups and tracebacks.

Guarantees: whatever the exception is, something crosses. It is of its own class wherever that can
be (checked by a round trip before it is sent), else a stand-in of the same name that the same
``except`` clauses for built-in classes catch. The traceback is the remote one: real frames
that show file, line, function and source, so it prints as if it had been raised here.
"""

from __future__ import annotations

import io
import os
import pickle
import types
from typing import Any

from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.cluster.strays import is_built_in
from handoff_actors.errors import describe

_FRAMES = 50  # of each end of a long traceback are kept
_CHAIN = 100  # so many linked exceptions are kept
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

_Frame = tuple[str, int, str, str]  # file, line, name, module
_LINKS = ("__cause__", "__context__")


def dump_exception(error: BaseException) -> Payload:
    """Pickle an exception; never raises but MemoryError.

    What is left out: attributes that cannot be pickled, and the frames of this library that lead
    to the user's code.
    """
    nodes: list[Any] = []
    seen: dict[int, int] = {}
    _collect(error, nodes, seen)
    return dumps(nodes)


def load_exception(payload: Payload) -> BaseException:
    """The exception that ``payload`` was made of."""
    nodes: list[Any] = loads(payload, "exception")
    made: list[BaseException] = []
    for head, members, _, _, _ in nodes:
        made.append(_revive(head, [made[i] for i in members]))
    for error, (_, _, frames, links, suppressed) in zip(made, nodes, strict=True):
        for name, index in zip(_LINKS, links, strict=True):
            if index is not None:
                setattr(error, name, made[index])
        error.__suppress_context__ = suppressed
        error.__traceback__ = _traceback(frames)
    return made[-1]


def _collect(error: BaseException, nodes: list[Any], seen: dict[int, int]) -> int:
    """Add ``error`` after what it refers to; returns its place."""
    seen[id(error)] = -1
    links: list[int | None] = []
    for name in _LINKS:
        linked = getattr(error, name)
        place = None
        if linked is not None and len(seen) < _CHAIN:
            place = seen[id(linked)] if id(linked) in seen else _collect(linked, nodes, seen)
        links.append(None if place == -1 else place)
    members: list[int] = []
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            place = seen.get(id(member), -1)
            members.append(place if place >= 0 else _collect(member, nodes, seen))
    head = _head(error)
    frames = _frames(error.__traceback__)
    seen[id(error)] = len(nodes)
    nodes.append((head, members, frames, tuple(links), error.__suppress_context__))
    return len(nodes) - 1


# One exception without what it is linked to.


def _head(error: BaseException) -> bytes:
    """The pickle of ``error`` alone: whole, rebuilt, or a stand-in, whichever works first."""
    cls = type(error)
    if isinstance(error, BaseExceptionGroup):
        state = _picklable_state(error)
        for kind in (cls, ExceptionGroup, BaseExceptionGroup):
            found = _try((_new_group, (kind, error.message, state)))
            if found is not None:
                return found
    else:
        found = _try(error)
        if found is not None and _same(error, found):
            return found
        rebuilt = (_rebuild, (cls, _picklable_args(error), _picklable_state(error)))
        found = _try(rebuilt)
        if found is not None and _same(error, found):
            return found
    found = _try((_stand_in, _stand_in_for(error)))
    assert found is not None, "a stand-in consists of texts and a class that pickles"
    return found


def _try(what: Any) -> bytes | None:
    from handoff_actors.cluster.by_value import ByValuePickler

    file = io.BytesIO()
    try:
        ByValuePickler(file).dump(what)
    except MemoryError:
        raise
    except (Exception, SystemExit, GeneratorExit):  # a user's reducer may raise anything
        return None
    return file.getvalue()


def _same(error: BaseException, head: bytes) -> bool:
    """Whether ``head`` gives an exception like ``error``."""
    try:
        copy = _revive(head, [])
        return type(copy) is type(error) and _text(copy) == _text(error)
    except (Exception, SystemExit, GeneratorExit):  # a user's constructor may raise anything
        return False


def _revive(head: bytes, members: list[BaseException]) -> BaseException:
    found = pickle.loads(head)
    if isinstance(found, tuple):
        make, args = found
        found = _new_group(*args, members) if make is _new_group else make(*args)
    assert isinstance(found, BaseException)
    return found


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:  # a user's __str__ may raise anything
        return f"<an exception whose str() raised {type(problem).__name__}>"


def _picklable_args(error: BaseException) -> tuple[Any, ...]:
    return tuple([arg if _try(arg) is not None else _Shown(arg) for arg in _made_of(error)])


class _Shown:
    """Stands for an argument that cannot be pickled, and looks like it."""

    __slots__ = ("text",)

    def __init__(self, value: object) -> None:
        self.text = describe(value, 1000)

    def __repr__(self) -> str:
        return self.text


def _made_of(error: BaseException) -> tuple[Any, ...]:
    """What the built-in class below that of ``error`` is made of."""
    reduced = _built_in(type(error)).__reduce__(error)
    return tuple(reduced[1])


def _built_in(cls: type[BaseException]) -> type[BaseException]:
    return next(c for c in cls.__mro__ if is_built_in(c))


def _picklable_state(error: BaseException) -> dict[str, Any]:
    return {name: value for name, value in vars(error).items() if _try(value) is not None}


def _rebuild(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    """An exception made without its constructor; the built-in class below has its fields."""
    error = cls.__new__(cls, *args)
    _built_in(cls).__init__(error, *args)
    error.__dict__.update(state)
    return error


def _new_group(
    cls: type[BaseExceptionGroup[Any]],
    message: str,
    state: dict[str, Any],
    members: list[BaseException],
) -> BaseException:
    error = cls.__new__(cls, message, members)
    error.__dict__.update(state)
    return error


def _stand_in_for(error: BaseException) -> tuple[Any, ...]:
    cls = type(error)
    base = next(c for c in cls.__mro__ if is_built_in(c) and _plain(c))
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    return base, (cls.__name__, cls.__qualname__, cls.__module__), _text(error), notes


def _plain(cls: type) -> bool:
    """Whether exceptions of a built-in class can be made of a text alone."""
    try:
        return str(cls.__new__(cls, "text")) is not None
    except TypeError:
        return False


def _stand_in(
    base: type[BaseException], names: tuple[str, str, str], text: str, notes: list[str]
) -> BaseException:
    """An exception named as one that could not cross, and with its text."""
    name, qualname, module = names
    space = {"__module__": module, "__qualname__": qualname, "__str__": lambda _self: text}
    cls: type[BaseException] = type(name, (base,), space)
    error: BaseException = cls.__new__(cls, text)
    error.args = (text,)
    for note in notes:
        error.add_note(note)
    return error


# Tracebacks.


def _frames(traceback: types.TracebackType | None) -> list[_Frame]:
    frames: list[_Frame] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        name = str(traceback.tb_frame.f_globals.get("__name__", ""))
        frames.append((code.co_filename, traceback.tb_lineno or 0, code.co_qualname, name))
        traceback = traceback.tb_next
    own = 0
    while own < len(frames) - 1 and frames[own][0].startswith(_OWN):
        own += 1
    frames = frames[own:]
    if len(frames) > 2 * _FRAMES:
        frames = frames[:_FRAMES] + frames[-_FRAMES:]
    return frames


def _frame_here(raiser: BaseException) -> None:
    raise raiser


_CODE = _frame_here.__code__.replace(
    # All of it is on the first line, and no part of that line is to be underlined.
    co_linetable=bytes([0x80 | 13 << 3 | 7, 0]) * (len(_frame_here.__code__.co_code) // 16 + 1)
)


def _traceback(frames: list[_Frame]) -> types.TracebackType | None:
    """A traceback that shows ``frames``."""
    made: types.TracebackType | None = None
    for filename, line, name, module in reversed(frames):
        code = _CODE.replace(
            co_filename=filename,
            co_name=name.rpartition(".")[2],
            co_qualname=name,
            co_firstlineno=max(line, 1),
        )
        function = types.FunctionType(code, {"__name__": module, "__file__": filename})
        try:
            function(_Probe())
        except _Probe as probe:
            there = probe.__traceback__
            assert there is not None
            assert there.tb_next is not None
            frame = there.tb_next.tb_frame
            made = types.TracebackType(made, frame, there.tb_next.tb_lasti, max(line, 1))
    return made


class _Probe(Exception):  # noqa: N818  no error
    """Raised and caught to get a frame."""
