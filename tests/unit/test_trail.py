"""Who ran what, found from when threads began stretches of work."""

from __future__ import annotations

from handoff_actors.execution.trail import Trail


def settled(n, stretches, spans):
    trail = Trail(n)
    numbers = {name: trail.worker(name) for _, name in stretches}
    trail.stretches += [(began, numbers[name]) for began, name in stretches]
    starts = [spans[i][0] if i in spans else 0.0 for i in range(n)]
    ends = [spans[i][1] if i in spans else 0.0 for i in range(n)]
    for _ in range(2):  # a second look changes nothing
        trail.settle(starts, ends)
    return [trail.crew[number] for number in trail.by]


def test_functions_of_a_stretch_follow_one_another():
    stretches = [(1.0, "a"), (1.5, "b"), (9.0, "b")]
    spans = {0: (1.0, 2.0), 3: (2.0, 3.0), 1: (1.5, 2.5), 2: (2.5, 2.75), 4: (9.0, 9.5)}
    assert settled(6, stretches, spans) == ["a", "b", "b", "a", "b", ""]


def test_what_cannot_be_told_stays_as_it_was_noted():
    trail = Trail(3)
    trail.by[0] = trail.worker("pid 7")
    trail.by[2] = trail.worker("thread 1")  # of an attempt that failed; another one ran it again
    trail.stretches.append((5.0, trail.worker("thread 2")))
    trail.settle([1.0, 2.0, 5.0], [2.0, 3.0, 6.0])
    assert [trail.crew[number] for number in trail.by] == ["pid 7", "", "thread 2"]
