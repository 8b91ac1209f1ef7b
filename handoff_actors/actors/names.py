"""Names of actors: unique within one system, free again before the last ``Down`` is sent."""

from __future__ import annotations

import threading

from handoff_actors.actors.calls import Ref
from handoff_actors.errors import ActorError


class NameTakenError(ActorError):
    """Another actor answers to this name."""


class Names:
    """A register of names. Thread-safe; a look-up takes no lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refs: dict[str, Ref] = {}

    def register(self, ref: Ref) -> None:
        """Let ``ref`` answer to its name.

        Raises:
            NameTakenError: another one does.
        """
        if ref.name is None:
            return
        with self._lock:
            if self._refs.setdefault(ref.name, ref) is not ref:
                raise NameTakenError(f"an actor named {ref.name!r} is there", name=ref.name)

    def unregister(self, ref: Ref) -> None:
        """Free the name, if it is this actor's."""
        with self._lock:
            if ref.name is not None and self._refs.get(ref.name) is ref:
                del self._refs[ref.name]

    def whereis(self, name: str) -> Ref | None:
        """The actor of that name; between two of its lives too."""
        return self._refs.get(name)

    def known(self, name: str) -> Ref:
        """The actor of that name, which is there.

        Raises:
            ActorError: it is not.
        """
        ref = self._refs.get(name)
        if ref is None:
            raise ActorError(f"no actor is named {name!r}", name=name)
        return ref

    def all(self) -> dict[str, Ref]:
        """A copy of the register."""
        with self._lock:
            return dict(self._refs)
