"""The pytest plugin of ``handoff_actors``: runtimes as fixtures, and a check for what is left.

It stands beside the package, so that pytest pays for importing the library only in the tests that
use it. See ``docs/testing.md``.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import handoff_actors
    from handoff_actors.testing.leaks import Leaks

_nodes: weakref.WeakKeyDictionary[Any, tuple[int, Any]] = weakref.WeakKeyDictionary()
"""How many nodes the fixture ``handoff_cluster`` is to give a runtime, and what they offer."""
_CLAIMS = 10.0
"""Seconds that attempts which are just ending have to give their claims back."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini options."""
    parser.addini(
        "handoff_leaks",
        "check after every test that it left no thread, process, descriptor or shared memory",
        type="bool",
        default=False,
    )
    parser.addini(
        "handoff_leaks_patience",
        "seconds that what a test used has to be gone",
        default="5.0",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "handoff(**options): options of start() for the fixture handoff_runtime"
    )


@pytest.fixture
def handoff_leaks(pytestconfig: pytest.Config) -> Iterator[Leaks]:
    """Fails the test if afterwards a thread, process, socket, descriptor or segment is left."""
    from handoff_actors.testing.leaks import Leaks

    before = Leaks()
    yield before
    try:
        before.check(float(pytestconfig.getini("handoff_leaks_patience")))
    except AssertionError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(autouse=True)
def _handoff_leaks_everywhere(request: pytest.FixtureRequest) -> None:
    """With the ini option, every test is checked."""
    if request.config.getini("handoff_leaks"):
        request.getfixturevalue("handoff_leaks")


@pytest.fixture
def handoff_runtime(
    request: pytest.FixtureRequest,
    handoff_leaks: Leaks,  # noqa: ARG001  it checks after the runtime was stopped
) -> Iterator[handoff_actors.Runtime]:
    """The default runtime, started for this test alone; ``@pytest.mark.handoff`` has its options.

    It is stopped afterwards. The test fails if claims are left, or anything else is.
    """
    import handoff_actors

    options: dict[str, Any] = {"shutdown_timeout": 2.0}
    for marker in reversed(list(request.node.iter_markers("handoff"))):
        options.update(marker.kwargs)
    nodes = options.pop("nodes", 2)
    offered = options.pop("node_capabilities", {"cpu": 2})
    handoff_actors.stop()
    runtime = handoff_actors.start(**options)
    _nodes[runtime] = (nodes, offered)
    try:
        yield runtime
        claims = _claims_left(runtime)
    finally:
        handoff_actors.stop()
    if claims:
        pytest.fail(f"claims left behind: {claims}", pytrace=False)


@pytest.fixture
def handoff_cluster(handoff_runtime: handoff_actors.Runtime) -> handoff_actors.Runtime:
    """``handoff_runtime`` with two further nodes, ``node-1`` and ``node-2``, up.

    ``@pytest.mark.handoff(nodes=3)`` has another number of them, ``node_capabilities=`` what each
    offers (two cpus). They are processes of this machine, and end with the test.
    """
    import handoff_actors

    count, offered = _nodes[handoff_runtime]
    names = [f"node-{i + 1}" for i in range(count)]
    handoff_actors.start_nodes(count, names=names, capabilities=offered)
    return handoff_runtime


def _claims_left(runtime: handoff_actors.Runtime) -> list[Any]:
    """The claims of runs that have ended, after the time that they may take to be given back."""
    end = time.monotonic() + _CLAIMS
    while runtime.running:
        status = runtime.status()
        going = {run.dag_id for run in status.runs if run.state == "running"}
        left = [claim for claim in status.claims if claim.dag_id not in going]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.002)
    return []
