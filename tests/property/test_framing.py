"""Frames: whatever is sent arrives whole, however the stream is cut."""

from __future__ import annotations

import pickle
import socket
import struct
import threading
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_actors.cluster.framing import FrameReader, Slots, payload_of, send_frame
from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.execution.workers.exits import exit_reason

sizes = st.one_of(st.integers(0, 40), st.integers(65_000, 66_000), st.just(200_000))
frames = st.lists(st.tuples(st.integers(), sizes, st.lists(sizes, max_size=4)), max_size=6)


class Pieces:
    """A socket that gives its stream in pieces, and sometimes nothing."""

    def __init__(self, data: bytes, pieces: list[int]) -> None:
        self.data = memoryview(data)
        self.pieces = deque(pieces)

    def _room(self, wanted: int) -> int:
        piece = self.pieces.popleft() if self.pieces else wanted
        if not piece and self.data:
            raise BlockingIOError
        return min(piece or wanted, wanted, len(self.data))

    def recv_into(self, view: memoryview) -> int:
        size = self._room(len(view))
        view[:size], self.data = self.data[:size], self.data[size:]
        return size

    def recvmsg_into(self, views: list[memoryview]) -> tuple[int, ...]:
        left = size = self._room(sum(map(len, views)))
        for view in views:
            part = min(left, len(view))
            view[:part], self.data = self.data[:part], self.data[part:]
            left -= part
        return (size,)


class Recorder:
    """A socket that takes so much at a time."""

    def __init__(self, pieces: list[int]) -> None:
        self.data = bytearray()
        self.pieces = deque(pieces)

    def sendmsg(self, parts: list[Any]) -> int:
        piece = self.pieces.popleft() if self.pieces else 1 << 30
        if not piece:
            raise BlockingIOError
        data = b"".join(parts)[:piece]
        self.data += data
        return len(data)


pieces = st.lists(st.one_of(st.just(0), st.integers(1, 50), st.integers(1, 70_000)), max_size=30)


@given(frames, pieces, pieces)
def test_frames_arrive_whole(
    sent: list[tuple[int, int, list[int]]], out: list[int], into: list[int]
) -> None:
    recorder = Recorder(out)
    waits: list[None] = []
    for number, size, buffers in sent:
        send_frame(
            recorder,  # type: ignore[arg-type]
            (number, b"m" * size),
            [bytes([i]) * n for i, n in enumerate(buffers)],
            lambda: waits.append(None),
        )
    stream = Pieces(bytes(recorder.data), into)
    reader = FrameReader(stream)  # type: ignore[arg-type]
    got = []
    while len(got) < len(sent):
        frame = reader.buffered() or reader.read()
        if frame is not None:
            got.append(frame)
    assert [
        ((number, b"m" * size), [bytearray([i]) * n for i, n in enumerate(buffers)])
        for number, size, buffers in sent
    ] == got
    stream.pieces.clear()
    with pytest.raises(EOFError):
        reader.read()


values = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(), st.binary(max_size=20_000)),
    lambda inner: st.lists(inner, max_size=4),
)


@given(st.lists(values, max_size=8))
def test_slots_keep_values(given_values: list[Any]) -> None:
    slots = Slots()
    numbers = [slots.add(dumps(value)) for value in given_values]
    assert [loads(payload_of(slots.slots[n], slots.buffers)) for n in numbers] == given_values


def test_more_buffers_than_a_system_call_takes() -> None:
    here, there = socket.socketpair()
    with here, there:
        buffers = [bytes([i % 256]) * (i % 7) for i in range(9000)]
        sender = threading.Thread(target=send_frame, args=(here, "many", buffers))
        sender.start()
        message, got = FrameReader(there).read() or (None, [])
        sender.join()
    assert message == "many"
    assert got == [bytearray(buffer) for buffer in buffers]


def test_large_buffers_are_not_copied_into_the_head() -> None:
    slots = Slots()
    large = pickle.PickleBuffer(bytearray(100_000))
    assert slots.add(Payload(b"x" * 10_000, [large])) == 0
    assert slots.slots == [(0, 1)]
    assert slots.buffers == [b"x" * 10_000, large]


def test_end_within_a_frame() -> None:
    here, there = socket.socketpair()
    with there:
        here.sendall(struct.pack("<QI", 1000, 0) + b"part")
        here.close()
        with pytest.raises(EOFError):
            FrameReader(there).read()


def test_full_socket_without_anybody_to_wait() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        with pytest.raises(BlockingIOError):
            send_frame(here, bytes(50_000_000))


@pytest.mark.parametrize(
    ("code", "ours", "words"),
    [
        (None, False, "unknown"),
        (0, False, "code 0"),
        (7, False, "code 7"),
        (-9, False, "SIGKILL (was the machine out of memory?)"),
        (-9, True, "by this library"),
        (-11, True, "SIGSEGV (a fault in native code)"),
        (-15, False, "SIGTERM"),
        (-63, False, "signal 63"),
    ],
)
def test_exit_reasons(code: int | None, ours: bool, words: str) -> None:
    assert words in exit_reason(code, ours)
