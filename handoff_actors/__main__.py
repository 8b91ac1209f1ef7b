"""``python -m handoff_actors``: the command ``handoff``."""

from __future__ import annotations

from handoff_actors.cli import main

if __name__ == "__main__":
    main()
