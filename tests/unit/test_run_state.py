"""The scheduler of one run, case by case."""

from __future__ import annotations

import pytest

from handoff_actors.errors import CrashedAttempt
from handoff_actors.execution.run_state import (
    LONGEST_DELAY,
    Crashed,
    Failure,
    History,
    Raised,
    RunState,
    Start,
    Step,
    Stopped,
    Succeeded,
    TimedOut,
    Withdrawn,
    find_links,
    keep_mask,
)
from handoff_actors.graph import DAG, Function, compile_plan

CRASH = CrashedAttempt("here", 17, -9, "killed by SIGKILL")
ERROR = ValueError("no")


def many(*values, **named):
    return values


def plan_of(*functions):
    """A plan of ``(id, args)`` or ``(id, args, fields)``; args None is an input."""
    dag = DAG("test")
    for id_, args, *rest in functions:
        fields = rest[0] if rest else {}
        if args is None:
            dag.add_function(Function(id_, type="input"))
        else:
            dag.add_function(Function(id_, args, many, **fields))
    return compile_plan(dag)


def diamond():
    return plan_of(("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b", "c"]))


def chain(length, **fields):
    return plan_of(*[(i, [i - 1] if i else [], fields) for i in range(length)])


def started(plan, *args, **kwargs):
    state = RunState(plan, *args, **kwargs)
    state.handle(Start())
    return state


def raised(token, final=False):
    return Raised(token, ERROR, "here", final)


class TestOrder:
    def test_start_has_ready_what_needs_nothing(self):
        plan = plan_of(("x", None), ("a", []), ("b", ["x"]), ("c", ["a"]))
        assert RunState(plan).handle(Start()) == Step(ready=[0, 1])

    def test_a_run_of_nothing_is_finished_when_it_starts(self):
        assert RunState(plan_of()).handle(Start()) == Step(finished=True)

    def test_a_run_of_inputs_only_is_finished_when_it_starts(self):
        assert RunState(plan_of(("x", None))).handle(Start()) == Step(finished=True)

    def test_a_function_is_ready_when_its_last_argument_is_there(self):
        state = started(diamond())
        assert state.handle(Succeeded([0])) == Step(ready=[1, 2])
        assert state.handle(Succeeded([2])) == Step()
        assert state.handle(Succeeded([1])) == Step(ready=[3])
        assert state.handle(Succeeded([3])) == Step(finished=True)

    def test_a_batch_is_as_good_as_one_by_one(self):
        state = started(diamond())
        state.handle(Succeeded([0]))
        assert state.handle(Succeeded([2, 1])) == Step(ready=[3])

    def test_the_second_report_of_a_success_says_nothing(self):
        state = started(diamond())
        assert state.handle(Succeeded([0, 0])) == Step(ready=[1, 2])
        assert state.handle(Succeeded([0])) == Step()
        state.check()

    def test_finished_is_said_once(self):
        state = started(plan_of(("a", [])))
        assert state.handle(Succeeded([0])).finished
        assert not state.handle(Succeeded([0])).finished
        assert state.handle(Stopped()) == Step()

    def test_the_tokens_outstanding_are_those_of_attempts_that_can_run(self):
        state = started(diamond())
        assert state.outstanding() == {0}
        state.handle(Succeeded([0]))
        state.handle(raised(1))
        assert state.outstanding() == {1 + 4, 2}


class TestFailures:
    def test_an_exception_is_retried_under_another_token(self):
        state = started(plan_of(("a", []), ("b", [])), max_retries=1)
        assert state.handle(raised(1)) == Step(ready=[3])
        assert state.token(1) == 3
        assert state.is_present(3)
        assert not state.is_present(1)

    def test_the_last_try_fails_the_run(self):
        state = started(plan_of(("a", []), ("b", [])), max_retries=2)
        state.handle(raised(1))
        state.handle(TimedOut(3, "here"))
        last = raised(5)
        assert state.handle(last) == Step(failure=Failure(1, last, 3, ()))
        assert state.stopped

    @pytest.mark.parametrize(("own", "runs"), [(0, 1), (1, 2), (4, 5)])
    def test_the_functions_own_max_retries_wins(self, own, runs):
        state = started(plan_of(("a", [], {"max_retries": own})), max_retries=2)
        for attempt in range(runs - 1):
            assert state.handle(raised(attempt)).ready == [attempt + 1]
        failure = state.handle(raised(runs - 1)).failure
        assert failure is not None
        assert failure.attempts == runs

    def test_a_final_error_is_not_retried(self):
        state = started(plan_of(("a", [])), max_retries=9)
        failure = state.handle(raised(0, final=True)).failure
        assert failure is not None
        assert failure.attempts == 1

    def test_the_delay_doubles_up_to_the_longest(self):
        state = started(plan_of(("a", [], {"retry_delay": 10.0})), max_retries=100)
        delays = [state.handle(raised(t)).retries for t in range(100)]
        assert delays[:4] == [[(10.0, 1)], [(20.0, 2)], [(40.0, 3)], [(LONGEST_DELAY, 4)]]
        assert delays[-1] == [(LONGEST_DELAY, 100)]

    def test_a_crash_is_retried_at_once_and_costs_no_retry(self):
        plan = plan_of(("a", [], {"retry_delay": 1.0, "max_crashes": 2}))
        state = started(plan, max_retries=1)
        assert state.handle(Crashed(0, CRASH)) == Step(ready=[1])
        assert state.handle(raised(1)) == Step(retries=[(1.0, 2)])
        assert state.handle(Crashed(2, CRASH)) == Step(ready=[3])
        last = Crashed(3, CRASH)
        assert state.handle(last).failure == Failure(0, last, 4, (CRASH, CRASH, CRASH))

    def test_max_crashes_of_zero_never_runs_twice(self):
        state = started(plan_of(("a", [], {"max_crashes": 0})))
        failure = state.handle(Crashed(0, CRASH)).failure
        assert failure is not None
        assert failure.attempts == 1

    def test_a_superseded_attempt_is_not_heard(self):
        state = started(plan_of(("a", []), ("b", ["a"])))
        state.handle(TimedOut(0, "here"))
        late = [Succeeded([0]), raised(0), TimedOut(0, "here"), Crashed(0, CRASH), Withdrawn([0])]
        assert [state.handle(event) for event in late] == [Step()] * 5
        assert state.handle(Succeeded([2])) == Step(ready=[1])

    def test_a_failure_after_a_success_is_not_heard(self):
        state = started(plan_of(("a", []), ("b", ["a"])))
        state.handle(Succeeded([0]))
        assert state.handle(raised(0)) == Step()
        assert state.histories == {}

    def test_a_token_of_an_attempt_that_never_was_is_not_heard(self):
        state = started(plan_of(("a", []), ("b", ["a"])))
        assert state.handle(Succeeded([2])) == Step()
        assert not state.done[0]

    def test_the_attempt_that_failed_the_run_cannot_succeed_any_more(self):
        state = started(plan_of(("a", []), ("b", [])), max_retries=0)
        assert state.handle(TimedOut(0, "here")).failure is not None
        assert state.handle(Succeeded([0, 1])) == Step()
        assert list(state.done) == [0, 1]
        state.check()

    def test_the_first_failure_is_the_only_one(self):
        state = started(plan_of(("a", []), ("b", [])), max_retries=0)
        assert state.handle(raised(0)).failure is not None
        assert state.handle(raised(1)) == Step()


class TestWithdrawal:
    def test_it_runs_again_under_the_same_token(self):
        state = started(plan_of(("a", []), ("b", [])))
        assert state.handle(Withdrawn([1, 0])) == Step(ready=[1, 0])
        assert state.histories == {}

    def test_what_has_ended_or_was_superseded_stays_away(self):
        state = started(plan_of(("a", []), ("b", []), ("c", [])))
        state.handle(Succeeded([0]))
        state.handle(raised(1))
        assert state.handle(Withdrawn([0, 1, 2, 4])) == Step(ready=[2, 4])


class TestStopped:
    def test_nothing_starts_any_more(self):
        state = started(diamond())
        assert state.handle(Stopped()) == Step()
        assert state.handle(Succeeded([0])) == Step()
        assert state.handle(Withdrawn([1])) == Step()
        assert state.handle(raised(1)) == Step()
        assert state.handle(Start()) == Step()

    def test_what_still_succeeds_is_counted(self):
        state = started(diamond())
        state.handle(Stopped())
        state.handle(Succeeded([0]))
        assert state.remaining == 3
        state.check()

    def test_it_never_finishes(self):
        state = started(plan_of(("a", [])))
        state.handle(Stopped())
        assert state.handle(Succeeded([0])) == Step()
        assert state.remaining == 0


class TestKeep:
    def test_all_is_no_mask(self):
        assert keep_mask(diamond(), "all") is None

    def test_sinks_and_inputs_stay(self):
        plan = plan_of(("x", None), ("a", ["x"]), ("b", ["a"]), ("c", []))
        assert keep_mask(plan, "sinks") == bytearray([0, 1, 1, 1])

    def test_named_ones_and_inputs_stay(self):
        plan = plan_of(("x", None), ("a", ["x"]), ("b", ["a"]))
        assert keep_mask(plan, ["a"]) == bytearray([1, 0, 1])

    @pytest.mark.parametrize("id_", ["x", "unknown", "inline"])
    def test_only_regular_functions_can_be_named(self, id_):
        dag = DAG("test")
        dag.add_function(Function("x", type="input"))
        dag.add_function(Function("inline", ["x"], many, type="inline"))
        dag.add_function(Function("a", ["inline"], many))
        with pytest.raises(KeyError):
            keep_mask(compile_plan(dag), [id_])

    def test_a_value_goes_with_its_last_consumer(self):
        plan = diamond()
        state = started(plan, kept=keep_mask(plan, "sinks"))
        assert state.handle(Succeeded([0])).freed == []
        assert state.handle(Succeeded([1])).freed == []
        assert state.handle(Succeeded([2])).freed == [0]
        assert state.handle(Succeeded([3])).freed == [1, 2]

    def test_an_unwanted_sink_goes_at_once(self):
        plan = plan_of(("a", []), ("b", ["a"]))
        state = started(plan, kept=keep_mask(plan, ["a"]))
        state.handle(Succeeded([0]))
        assert state.handle(Succeeded([1])).freed == [1]

    def test_an_argument_taken_twice_goes_once(self):
        plan = plan_of(("a", []), ("b", ["a", "a"]))
        state = started(plan, kept=keep_mask(plan, "sinks"))
        state.handle(Succeeded([0]))
        assert state.handle(Succeeded([1])).freed == [0]

    def test_a_value_outlives_the_failures_of_its_consumer(self):
        plan = chain(2)
        state = started(plan, kept=keep_mask(plan, "sinks"))
        state.handle(Succeeded([0]))
        assert state.handle(raised(1)).freed == []
        assert state.handle(Succeeded([3])).freed == [0]


class TestLinks:
    def test_a_chain_is_linked_through(self):
        assert find_links(chain(4), [True]) == [1, 2, 3, -1]

    def test_not_in_a_class_that_is_not_eligible(self):
        assert find_links(chain(3), [False]) is None

    def test_not_across_classes(self):
        plan = plan_of(("a", []), ("b", ["a"], {"cost": {"cpu": 1}}), ("c", ["b"]))
        assert find_links(plan, [True, True]) is None

    def test_not_where_it_branches_or_joins(self):
        assert find_links(diamond(), [True]) is None

    def test_not_from_an_input(self):
        assert find_links(plan_of(("x", None), ("a", ["x"])), [True]) is None

    @pytest.mark.parametrize("which", [0, 1])
    def test_not_where_a_call_is_more_than_plain(self, which):
        functions = [("a", []), ("b", ["a"])]
        functions[which] = (*functions[which], {"extra_args": (1,)})
        assert find_links(plan_of(*functions), [True]) is None

    def test_a_linked_function_is_never_ready(self):
        plan = chain(3)
        state = started(plan, links=find_links(plan, [True]))
        assert state.handle(Succeeded([0])) == Step()
        assert state.outstanding() == {1}
        assert state.handle(Succeeded([1, 2])) == Step(finished=True)

    def test_but_when_it_failed_or_was_given_back(self):
        plan = chain(3)
        state = started(plan, links=find_links(plan, [True]))
        state.handle(Succeeded([0]))
        assert state.handle(Withdrawn([1])) == Step(ready=[1])
        assert state.handle(raised(1)) == Step(ready=[4])
        assert state.handle(Succeeded([4])) == Step()
        state.check()


class TestGoingOn:
    def test_it_is_the_state_that_was(self):
        plan = plan_of(("x", None), ("a", ["x"]), ("b", ["a", "x"]), ("c", ["a"]), ("d", ["b"]))
        kept = keep_mask(plan, "sinks")
        state = started(plan, 5, kept)
        state.handle(Succeeded([0]))
        state.handle(raised(1))
        state.handle(Crashed(2, CRASH))
        again = RunState(plan, 5, kept, None, bytearray(state.done), state.histories)
        again.check()
        assert (again.left, again.needed) == (state.left, state.needed)
        assert again.remaining == state.remaining == 3
        assert again.outstanding() == state.outstanding() == {1 + 4, 2 + 4}
        assert again.handle(Succeeded([6])) == state.handle(Succeeded([6]))

    def test_its_histories_are_its_own(self):
        histories = {0: History(2, 1)}
        state = RunState(chain(1), done=bytearray(1), histories=histories)
        state.handle(raised(1))
        assert histories == {0: History(2, 1)}

    def test_what_was_done_already_is_finished_by_start(self):
        state = RunState(chain(2), done=bytearray([1, 1]))
        assert state.handle(Start()) == Step(finished=True)

    def test_start_goes_on_with_what_is_left(self):
        state = RunState(diamond(), done=bytearray([1, 0, 1, 0]))
        assert state.handle(Start()) == Step(ready=[1])

    def test_start_goes_on_with_a_linked_function_whose_worker_is_gone(self):
        plan = chain(3)
        links = find_links(plan, [True])
        state = RunState(plan, links=links, done=bytearray([1, 0, 0]))
        assert state.handle(Start()) == Step(ready=[1])
