"""The examples, each run as its reader would run it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import handoff_actors as handoff

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TRACES = sorted((ROOT.parent / "shared" / "data" / "workflows").glob("*.json"))


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# replay_workflow.py


def trace(tmp_path, tasks):
    """A trace of tasks: id to (parents, seconds, cores)."""
    document = {
        "name": "small",
        "workflow": {
            "specification": {
                "tasks": [{"id": i, "parents": list(p)} for i, (p, _, _) in tasks.items()]
            },
            "execution": {
                "tasks": [
                    {"id": i, "runtimeInSeconds": s, "coreCount": c, "memoryInBytes": 5_000_000}
                    for i, (_, s, c) in tasks.items()
                ]
            },
        },
    }
    path = tmp_path / "small.json"
    path.write_text(json.dumps(document))
    return path


def test_a_trace_is_replayed(tmp_path, capsys, leaks):
    replay = load("replay_workflow")
    tasks = {"a": ((), 2, 1), "b": (("a",), 5, 1), "c": (("a",), 5, 2), "d": (("b", "c"), 1, 1)}
    path = trace(tmp_path, tasks)
    makespan, least = replay.main(path, scale=0.01, cores=2, timeline=tmp_path / "out.json")
    # One after another, as b and c do not fit beside each other: 2 + 5 + 5 + 1.
    assert 0.13 <= makespan < 2
    assert least == pytest.approx(0.09)
    said = capsys.readouterr().out
    assert "small: 4 tasks on 3 levels, at most 2 at once" in said
    assert re.search(r"critical path +0.08 s +3 tasks", said)
    events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    assert {e["name"] for e in events if e.get("cat") == "function"} == set(tasks)
    assert any(e.get("cat") == "wait" for e in events)


@pytest.mark.skipif(not TRACES, reason="the recorded traces are not beside this checkout")
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name.partition("-")[0])
def test_recorded_traces_are_replayed(path, leaks):
    replay = load("replay_workflow")
    makespan, least = replay.main(path, scale=0.0002, cores=8)
    assert makespan >= 0.9 * least


# service.py


class Client:
    """Calls an ASGI application as a server would."""

    def __init__(self, app):
        self.app = app
        self.from_server, self.to_server = asyncio.Queue(), asyncio.Queue()

    async def __aenter__(self):
        self.life = asyncio.create_task(
            self.app({"type": "lifespan"}, self.from_server.get, self.to_server.put)
        )
        await self.from_server.put({"type": "lifespan.startup"})
        assert (await self.to_server.get())["type"] == "lifespan.startup.complete"
        return self

    async def __aexit__(self, *_):
        await self.from_server.put({"type": "lifespan.shutdown"})
        assert (await self.to_server.get())["type"] == "lifespan.shutdown.complete"
        await self.life

    async def request(self, method, path, *parts):
        parts = parts or (b"",)
        messages = [{"body": p, "more_body": True} for p in parts[:-1]] + [{"body": parts[-1]}]
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        await self.app({"type": "http", "method": method, "path": path}, receive, send)
        return sent[0]["status"], sent[1]["body"].decode()


def test_the_service_answers(default):
    service = load("service")

    async def use():
        async with Client(service.app) as client:
            status, text = await client.request("POST", "/words", b"the cat ", b"and the dog")
            assert status == 200
            assert json.loads(text) == {
                "counts": {"the": 2, "cat": 1, "and": 1, "dog": 1}, "longest": "the"
            }  # fmt: skip
            answers = await asyncio.gather(
                *(client.request("POST", "/words", b"word " * n) for n in range(40))
            )
            assert [json.loads(t)["counts"].get("word", 0) for _, t in answers] == list(range(40))
            status, text = await client.request("GET", "/health")
            assert (status, json.loads(text)) == (
                200, {"status": "ok", "running": 0, "restarts": {}}
            )  # fmt: skip
            status, text = await client.request("GET", "/metrics")
            assert "handoff_requests_total 41\n" in text
            assert re.search(r'handoff_claimed\{node=".*",resource="cpu"\} 0\n', text)
            assert (await client.request("GET", "/nothing"))[0] == 404
            handoff.stop()
            assert (await client.request("GET", "/health"))[0] == 503

    asyncio.run(use())


def test_a_client_that_goes_away_ends_its_run(default, eventually):
    service = load("service")
    service.dag = handoff.new("slow")
    service.dag.add_function(handoff.Function("text", type="input"))

    @service.dag.function
    async def counts(text):
        await asyncio.sleep(60)

    async def use():
        async with Client(service.app) as client:
            request = asyncio.create_task(client.request("POST", "/words", b"x"))
            while not (await handoff.aio.status()).running:
                await asyncio.sleep(0.001)
            request.cancel()
            await asyncio.wait([request])
            while (await handoff.aio.status()).running:
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(use(), 20))


def test_the_service_under_a_real_server():
    pytest.importorskip("uvicorn")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "examples.service:app", "--port", str(port)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        said = []
        while "Application startup complete" not in "".join(said[-2:]):
            line = server.stdout.readline()
            assert line, "".join(said)
            said.append(line)
        while "running on" not in "".join(said):
            said.append(server.stdout.readline())
        url = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{url}/words", data=b"one two one", timeout=20) as answer:
            assert json.load(answer)["counts"] == {"one": 2, "two": 1}
        server.terminate()
        rest, _ = server.communicate(timeout=20)
        assert "Application shutdown complete" in rest
    finally:
        server.kill()
        server.communicate()


# property_test.py and notebook.ipynb


def test_the_property_tests_pass():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "examples/property_test.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=110,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_the_property_tests_can_fail(monkeypatch):
    example = load("property_test")
    monkeypatch.setattr(example, "merge", lambda parts: {"a": -1})
    with handoff.Runtime() as runtime, pytest.raises(AssertionError):
        example.test_totals_are_those_of_all_orders(runtime)


def test_the_notebook_runs(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    sources = [cell.source for cell in book.cells]
    book.cells.append(
        nbformat.v4.new_code_cell("import threading; print(threading.active_count())")
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environment)
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of jupyter's own
            client = nbclient.NotebookClient(
                book, timeout=60, resources={"metadata": {"path": str(tmp_path)}}
            )
            client.execute()
    text = json.dumps(book)
    assert "<svg" in text
    assert "5/5" in text
    assert "attempt 1 failed, again at once: ConnectionError" in text
    assert "ZeroDivisionError('division by zero')" in text
    assert (tmp_path / "timeline.json").exists()
    assert sources == [cell.source for cell in book.cells[:-1]]
