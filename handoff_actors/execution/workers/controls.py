"""The kinds of control messages between a worker process and its parent."""

from __future__ import annotations

# The first three are for the parent, the others for the child.
HELLO, TAKEN, REQUEST, TAKE, CANCEL, REPLY = range(6)
