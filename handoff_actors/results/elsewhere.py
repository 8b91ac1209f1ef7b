"""What stands in the place of a value that is not there, not in memory, or was not yet read."""

from __future__ import annotations

from typing import Any, ClassVar


class Placeholder:
    """The base of what is in the place of a value and takes no memory that counts."""

    __slots__ = ()


class Elsewhere(Placeholder):
    """The base of what stands for a value that is on another node, on disk, or was not yet read."""

    __slots__ = ()
    is_here: ClassVar[bool] = True
    on_disk: ClassVar[bool] = False


class Unread:
    """A value that whoever asked for it has to read, on a thread that may wait."""

    __slots__ = ()

    @property
    def is_here(self) -> bool:
        """Whether reading it takes no other node."""
        return True

    def read(self) -> Any:
        """The value."""
        raise NotImplementedError


class Cell(Unread):
    """One value in a list that may have it on disk.

    Args:
        values: the list, with this value alone.
    """

    __slots__ = ("_values",)

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def read(self) -> Any:
        """The value.

        Raises:
            SpillError: it was on disk, and cannot be read back.
        """
        return self._values[0]
