"""Wakers of coroutines: what a step of a pipeline calls when there is something for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


def on_loop(event: asyncio.Event) -> Callable[[], object]:
    """A waker for a coroutine of the running loop."""
    loop = asyncio.get_running_loop()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(event.set)

    return wake
