"""What the actors cost, beside a ping-pong over two ``SimpleQueue``s in the same run.

Run it as ``python tests/benchmarks/bench_actors.py``; it prints and asserts nothing.
"""

from __future__ import annotations

import statistics
import threading
import time
from queue import SimpleQueue
from typing import Any

from handoff_actors.actors.dynamic_supervisor import DynamicSupervisor, start_soon
from handoff_actors.actors.reasons import Exit
from handoff_actors.actors.server import Actor, Crash
from handoff_actors.actors.specs import ChildSpec, StartChild, SupervisorFlags
from handoff_actors.actors.supervisor import Supervisor
from handoff_actors.actors.system import ActorSystem

ROUNDS = 5
CALLS = 4000
RESTARTS = 1000
CHILDREN = 3000


class Echo(Actor):
    """Answers with the request."""

    def handle(self, message: Any) -> Any:
        """See the class."""
        return message


def ping_pong() -> float:
    """Seconds per round trip between two threads over two ``SimpleQueue``s."""
    there: SimpleQueue[int | None] = SimpleQueue()
    back: SimpleQueue[int] = SimpleQueue()

    def answer() -> None:
        while (item := there.get()) is not None:
            back.put(item)

    thread = threading.Thread(target=answer)
    thread.start()
    began = time.perf_counter()
    for number in range(CALLS):
        there.put(number)
        back.get()
    took = time.perf_counter() - began
    there.put(None)
    thread.join()
    return took / CALLS


def calls(system: ActorSystem) -> float:
    """Seconds per call."""
    ref = system.start(Echo())
    began = time.perf_counter()
    for number in range(CALLS):
        ref.call(number)
    return (time.perf_counter() - began) / CALLS


def restarts(system: ActorSystem) -> list[float]:
    """Seconds from the crash to the answer of the next incarnation, each."""
    sup = system.start(
        Supervisor([ChildSpec("a", Echo, name="a")], SupervisorFlags(max_restarts=10**9))
    )
    ref = system.names.whereis("a")
    assert ref is not None
    took = []
    error = ValueError("crash")
    for number in range(RESTARTS):
        began = time.perf_counter()
        ref.cast(Crash(error))
        ref.call(number)
        took.append(time.perf_counter() - began)
    _stop(sup)
    return sorted(took)


def children(system: ActorSystem) -> tuple[float, float, float]:
    """Seconds per child: started by a call, started by a cast, stopped."""
    sup = system.start(DynamicSupervisor())
    spec = ChildSpec("c", Echo, restart="temporary")
    began = time.perf_counter()
    for _ in range(CHILDREN):
        sup.call(StartChild(spec))
    called = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(CHILDREN):
        ref = start_soon(system, sup, spec)
    ref.call(1)
    cast = time.perf_counter() - began
    began = time.perf_counter()
    _stop(sup)
    stopped = time.perf_counter() - began
    return called / CHILDREN, cast / CHILDREN, stopped / (2 * CHILDREN)


def _stop(ref: Any) -> None:
    incarnation = ref.incarnation
    incarnation.exit(Exit.SHUTDOWN)
    incarnation.ended.wait(30)


def main() -> None:
    """Measure and print."""
    system = ActorSystem("bench")
    pairs = [(ping_pong(), calls(system)) for _ in range(ROUNDS)]
    floor = statistics.median(pair[0] for pair in pairs)
    call = statistics.median(pair[1] for pair in pairs)
    print(f"SimpleQueue ping-pong  {floor * 1e6:8.1f} us")
    print(f"call round trip        {call * 1e6:8.1f} us   {call / floor:.2f}x  (at most 2x)")
    took = restarts(system)
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    print(f"restart p50            {p50 * 1e3:8.3f} ms   (at most 1)")
    print(f"restart p99            {p99 * 1e3:8.3f} ms   (at most 5)")
    called, cast, stopped = children(system)
    print(f"dynamic start, call    {called * 1e6:8.1f} us")
    print(f"dynamic start, cast    {cast * 1e6:8.1f} us   (at most 60)")
    print(f"dynamic stop, each     {stopped * 1e6:8.1f} us")
    system.close()


if __name__ == "__main__":
    main()
