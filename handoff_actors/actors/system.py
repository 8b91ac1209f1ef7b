"""An actor system: the carriers, names and timers that the actors of one runtime share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from handoff_actors.actors.calls import Ref, Reply
from handoff_actors.actors.carriers import Carriers
from handoff_actors.actors.names import Names
from handoff_actors.actors.pykka_runtime import Incarnation
from handoff_actors.actors.reasons import Reason
from handoff_actors.actors.server import Actor
from handoff_actors.actors.timers import Timers
from handoff_actors.errors import ActorTimeoutError

_labels = count(1)


class ActorSystem:
    """Where actors live. Independent of any other in the process.

    Args:
        name: the prefix of its threads' names.
    """

    def __init__(self, name: str = "handoff") -> None:
        self.name = name
        self.carriers = Carriers(name)
        self.names = Names()
        self.timers = Timers(name)
        self.carriers.on_shortage(self.timers.call_later)

    def start(self, behaviour: Actor, name: str | None = None) -> Ref:
        """Start an actor without a supervisor; returns when its ``init`` is done.

        Raises:
            NameTakenError: another actor has the name.
            BaseException: what ``init`` raised; ``IgnoreStart`` among it.
        """
        ref = self.new_ref(name, type(behaviour).__name__)
        self.names.register(ref)
        try:
            self.incarnate(ref, behaviour)
        except BaseException as error:
            self.names.unregister(ref)
            ref.close(error)
            raise
        return ref

    @staticmethod
    def new_ref(name: str | None, kind: str) -> Ref:
        """An address nobody answers to yet."""
        return Ref(name, f"{kind}-{next(_labels)}")

    def incarnate(
        self,
        ref: Ref,
        behaviour: Actor,
        *,
        on_end: Callable[[Reason], None] | None = None,
        supervised: bool = False,
        timeout: float | None = None,
    ) -> Incarnation:
        """Begin a new life of ``ref``; returns when its ``init`` is done.

        Args:
            ref: the address; its name is registered by the caller.
            behaviour: a fresh actor.
            on_end: called with the reason once this incarnation has ended.
            supervised: messages wait for a next incarnation when this one ends.
            timeout: seconds ``init`` may take, on a thread of its own then; None runs it on
                the calling thread, without limit.

        Raises:
            ActorTimeoutError: ``init`` took too long; what it still does has no effect.
            BaseException: what ``init`` raised.
        """
        incarnation = Incarnation(self, ref, behaviour, on_end=on_end, supervised=supervised)
        if timeout is None:
            incarnation.initialise()
            incarnation.open()
            return incarnation
        ready = Reply()

        def initialise() -> None:
            try:
                incarnation.initialise()
            except BaseException as error:  # it is the starter's
                ready.fail(error)
            else:
                if not ready.set(True):
                    incarnation.last_word(late)

        late = ActorTimeoutError(
            f"{ref.label} was not ready within {timeout} s", name=ref.label, timeout=timeout
        )
        self.carriers.release_deferred()
        self.carriers.submit(initialise)
        if not ready.wait(timeout):
            ready.fail(late)
            ready.wait(None)
        ready.result()
        incarnation.open()
        return incarnation

    def close(self, timeout: float = 1.0) -> list[str]:
        """End the timers and the threads.

        Returns:
            The names of threads that were still busy after ``timeout`` seconds.
        """
        self.timers.close(timeout)
        return [thread.name for thread in self.carriers.close(timeout)]
