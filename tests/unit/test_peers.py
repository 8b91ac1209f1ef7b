"""The rules of peers, on nodes that live in one process."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from handoff_actors.cluster.payload import dumps, loads
from handoff_actors.errors import NodeDownError, NodeUnreachableError, ValueNotFoundError
from tests.cluster_in_process import Net


@pytest.fixture
def net() -> Iterator[Net]:
    before = set(threading.enumerate())
    made = Net()
    yield made
    made.close()
    for thread in threading.enumerate():
        if thread not in before:
            thread.join(5.0)
            assert not thread.is_alive(), thread


class Heard:
    """What a watcher heard, in words."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, event: Any) -> None:
        kind = type(event).__name__.removeprefix("Peer").lower()
        self.events.append(f"{event.peer.name} {kind}")


def test_posts_arrive_in_order_and_as_copies(net: Net) -> None:
    got: list[Any] = []
    done = threading.Event()

    def on_post(peer: Any, message: Any) -> None:
        got.append((peer.name, message))
        if message == "end":
            done.set()

    a = net.node("a")
    net.node("b", lambda b: b.serve("s", on_post=on_post))
    first: list[int] = [0]
    peer = a.peer("b")
    peer.post("s", first)
    for number in range(100):
        peer.post("s", number)
    peer.post("s", "end")
    assert done.wait(10)
    assert got == [("a", [0]), *[("a", n) for n in range(100)], ("a", "end")]
    assert got[0][1] is not first


def test_a_call_is_answered_or_says_what_happened(net: Net) -> None:
    released = concurrent.futures.Future[str]()

    def on_call(_peer: Any, request: Any) -> Any:
        if request == "later":
            return released
        if request == "raise":
            raise KeyError("no such thing")
        return request * 2

    a = net.node("a")
    net.node("b", lambda b: b.serve("s", on_call=on_call))
    peer = a.peer("b")
    assert peer.call("s", 21, 5) == 42
    with pytest.raises(KeyError, match="no such thing"):
        peer.call("s", "raise", 5)
    with pytest.raises(NodeUnreachableError):
        peer.call("s", "later", 0.05)
    asked = peer.ask("s", "later", 5)
    released.set_result("now")
    assert asked.result(5) == "now"
    net.hold("a", "b")
    asked = peer.ask("s", 1, 5)
    net.kill("b")
    with pytest.raises(NodeDownError):
        asked.result(5)
    with pytest.raises(NodeDownError):
        peer.post("s", 1)
    with pytest.raises(NodeDownError, match="is not connected"):
        a.peer("b")
    with pytest.raises(NodeDownError, match="is not known"):
        a.peer("nobody")


def test_values_are_fetched(net: Net) -> None:
    def on_fetch(_peer: Any, key: Any) -> Any:
        if key == 0:
            raise ValueNotFoundError("none", dag_id=None, value_id=key)
        return dumps(b"x" * (2 << 20))

    a = net.node("a")
    net.node("b", lambda b: b.serve("s", on_fetch=on_fetch))
    assert loads(a.peer("b").fetch("s", 1, 5)) == b"x" * (2 << 20)
    with pytest.raises(ValueNotFoundError):
        a.peer("b").fetch("s", 0, 5)
    with pytest.raises(ValueNotFoundError, match="gives out no"):
        a.peer("b").fetch("other", 0, 5)


def test_watchers_hear_the_life_of_a_peer_in_order(net: Net) -> None:
    a = net.node("a")
    heard, late = Heard(), Heard()
    a.watch(heard)
    b = net.node("b")
    session, incarnation = a.peer("b").session, a.peer("b").incarnation
    a.watch(late)
    a.notifier.flush()
    net.suspect("b")
    assert a.peer("b").state == "suspect"
    net.back("b")
    b.publish(capabilities={"cpu": 2})
    net.cut("a", "b")
    net.heal("a", "b")
    assert a.peer("b").incarnation == incarnation
    assert a.peer("b").session != session
    assert a.peer("b").facts == {"capabilities": {"cpu": 2}}
    net.kill("b")
    net.node("b")
    assert a.peer("b").incarnation != incarnation
    a.notifier.flush()
    wanted = ["b up", "b suspect", "b back", "b facts", "b down", "b up", "b down", "b up"]
    assert heard.events == wanted
    assert late.events == wanted
    assert a.known()["b"].state == "up"
