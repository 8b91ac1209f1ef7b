"""Tables: commits are whole, and only the newest incarnation may make one."""

from __future__ import annotations

import pytest

from handoff_actors.actors.table import StaleIncarnationError, Table, birth_number


def test_a_commit_changes_and_deletes_in_one_step() -> None:
    table: Table[str, int] = Table({"a": 1, "b": 2})
    handle = table.take()
    handle.commit({"c": 3}, ["a", "unknown"])
    assert dict(table.view) == {"b": 2, "c": 3}
    assert dict(handle.view) == {"b": 2, "c": 3}


def test_the_view_is_read_only() -> None:
    table: Table[str, int] = Table()
    with pytest.raises(TypeError):
        table.view["a"] = 1  # type: ignore[index]


def test_a_superseded_handle_changes_nothing() -> None:
    table: Table[str, int] = Table()
    old, new = table.take(), table.take()
    with pytest.raises(StaleIncarnationError):
        old.commit({"a": 1})
    assert not table.view
    new.commit({"a": 2})
    assert table.view["a"] == 2
    assert table.is_current(new.incarnation)
    assert not table.is_current(old.incarnation)


def test_one_born_earlier_cannot_take_it_back() -> None:
    # A child whose init was too slow may reach its take() after its successor's.
    table: Table[str, int] = Table()
    late = birth_number()
    handle = table.take(birth_number())
    with pytest.raises(StaleIncarnationError):
        table.take(late)
    handle.commit({"a": 1})


def test_a_fenced_handle_is_refused_before_anybody_takes_over() -> None:
    table: Table[str, int] = Table()
    handle = table.take()
    handle.fence()
    with pytest.raises(StaleIncarnationError):
        handle.commit({"a": 1})
    following = table.take()
    handle.fence()
    following.commit({"a": 2})


def test_a_deletion_that_cannot_be_hashed_changes_nothing() -> None:
    table: Table[str, int] = Table({"a": 1})
    handle = table.take()
    with pytest.raises(TypeError):
        handle.commit({"b": 2}, ["a", []])  # type: ignore[list-item]
    assert dict(table.view) == {"a": 1}
