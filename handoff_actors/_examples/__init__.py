"""The examples, importable as ``handoff_actors._examples.census`` wherever the package is.

A wheel has copies of them here; in a checkout, or an editable installation of one, they are the
files of its folder ``examples``. Worker processes import them by the same names.
"""

from __future__ import annotations

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2] / "examples"
if _checkout.is_dir():
    __path__.append(str(_checkout))
