"""Which bytes of a file are in use: where there is room for more, what is given up. Pure.

Guarantees: no two extents that are in use overlap; neighbours that are free are one; what is free
at the end of the file is not part of it any more.
"""

from __future__ import annotations

from bisect import bisect_left


class Extents:
    """See the module.

    Attributes:
        end: no byte from here on is in use: the length that the file needs.
        used: bytes in use.
    """

    __slots__ = ("_sizes", "_starts", "end", "used")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._sizes: list[int] = []
        self.end = 0
        self.used = 0

    def take(self, size: int) -> int:
        """Where there is room for so many bytes (at least one): the first gap that is enough."""
        self.used += size
        for k, free in enumerate(self._sizes):
            if free >= size:
                start = self._starts[k]
                if free == size:
                    del self._starts[k], self._sizes[k]
                else:
                    self._starts[k], self._sizes[k] = start + size, free - size
                return start
        start, self.end = self.end, self.end + size
        return start

    def give(self, start: int, size: int) -> None:
        """An extent that was taken is free again."""
        self.used -= size
        starts, sizes = self._starts, self._sizes
        k = bisect_left(starts, start)
        if k and starts[k - 1] + sizes[k - 1] == start:
            k -= 1
            sizes[k] += size
        else:
            starts.insert(k, start)
            sizes.insert(k, size)
        if k + 1 < len(starts) and starts[k] + sizes[k] == starts[k + 1]:
            sizes[k] += sizes.pop(k + 1)
            del starts[k + 1]
        if starts[k] + sizes[k] == self.end:
            self.end = starts.pop(k)
            del sizes[k]
