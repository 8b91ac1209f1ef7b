"""A duty: a loop that must never stand still, on a thread that does brief jobs in between.

Reading from a connection is one. What a message sets off, say a function that has proved short, is
done best by the thread that read it: to wake another one costs more than the job. But any job may
turn out to be long, or never end.

    carrier A: read, handle ─ job ─ read, handle ─ job ......................... it is A's only one
    timers:        look          look          look  still the same: pass on
    carrier B:                                         └─ read, handle ─ ... until it is over; ends

Guarantees: exactly one thread attends to it at a time; a job keeps it waiting for two ``TICK``s at
most, and not at all when it says that it blocks (``Carriers.release_deferred``); no thread waits
beside it for that, and no timer is set while there is nothing to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from handoff_actors.actors.carriers import Carrier, Carriers
from handoff_actors.actors.timers import Timers

TICK = 0.002
"""Seconds between looks whether the job is still the same."""


class Duty:
    """See the module.

    Args:
        carriers: whose threads attend to it.
        timers: for the looks.
        attend: the loop: calls ``do_jobs`` between its rounds, and returns False when that does, or
            True when the duty is over.
    """

    __slots__ = ("_attend", "_carriers", "_gate", "_lock", "_seen", "_ticking", "_timers")

    def __init__(self, carriers: Carriers, timers: Timers, attend: Callable[[], bool]) -> None:
        self._carriers = carriers
        self._timers = timers
        self._attend = attend
        self._lock = threading.Lock()
        self._ticking = False
        # Who takes the only thing out of it decides who attends from then on.
        self._gate: list[Carrier] = []
        self._seen = self._gate

    def begin(self) -> None:
        """Have a carrier attend to it."""
        self._carriers.submit(self._carry)

    def _carry(self) -> None:
        carrier = self._carriers.current()
        assert carrier is not None
        carrier.duty = self
        try:
            # Who attends is one thread more than jobs need.
            carrier.ends = self._attend()
        finally:
            carrier.duty = None

    def do_jobs(self) -> bool:
        """Do what was deferred to this thread; False if another one attends now.

        Called by whoever attends, and only by it.
        """
        carrier = self._carriers.current()
        if carrier is None or not carrier.deferred:
            return True
        gate = self._gate = [carrier]
        if not self._ticking:
            self._arm()
        deferred = carrier.deferred
        while deferred and gate:
            carrier.do(deferred.popleft())
        try:
            gate.pop()
        except IndexError:
            return False  # what is deferred still follows on this thread, as on any carrier
        return True

    def leave(self, carrier: Carrier) -> None:
        """``carrier`` is about to block: if it is at a job, have another one attend at once."""
        gate = self._gate
        if carrier in gate:
            self._pass_on(gate)

    def _pass_on(self, gate: list[Carrier]) -> None:
        try:
            gate.pop()
        except IndexError:
            return  # the job has ended, or somebody else was faster
        self.begin()

    def _arm(self) -> None:
        with self._lock:
            if self._ticking:
                return
            self._ticking = True
        self._timers.call_later(TICK, self._look)

    def _look(self) -> None:
        """On the timer thread."""
        gate, seen = self._gate, self._seen
        self._seen = gate
        self._ticking = False
        if gate is not seen:
            self._arm()  # there are jobs: look again
        elif gate:
            self._pass_on(gate)
        elif self._gate is not gate:
            self._arm()  # one began in this moment, and may have seen that this was armed
