"""A service whose requests run DAGs: a tutorial in asyncio, health and metrics.

    pip install uvicorn
    uvicorn examples.service:app
    curl -d 'the cat and the dog' localhost:8000/words

It is plain ASGI, so that there is nothing to learn but the library; in Starlette, FastAPI or
Litestar the body of ``lifespan`` goes into their lifespan function, ``count_words`` into a route.

    POST /words     count the words of the body, as a DAG
    GET  /health    200 while the runtime is well, 503 when it is not
    GET  /metrics   numbers, in the text format of Prometheus
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import handoff_actors as handoff

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# 1. The work, as a DAG. It is built once; each request runs it with inputs of its own.

dag = handoff.new("words")
dag.add_function(handoff.Function("text", type="input"))


@dag.function
def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return text.lower().split()


@dag.function
def counts(words: list[str]) -> dict[str, int]:
    """How often each word is there, the most frequent first."""
    return dict(Counter(words).most_common())


@dag.function
def longest(words: list[str]) -> str:
    """The longest word."""
    return max(words, key=len, default="")


# 2. The life of the runtime is that of the application. Each function of handoff.aio is awaitable
#    and none of them blocks the loop, however long a DAG takes.


async def lifespan(receive: Receive, send: Send) -> None:
    """Start with the server, stop with it."""
    await receive()
    await handoff.aio.start()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await handoff.aio.stop()  # what still runs is cancelled
    await send({"type": "lifespan.shutdown.complete"})


# 3. The requests. When a client goes away its task is cancelled, and the run with it; one that
#    takes too long ends too. Every run has an id of its own, so one DAG serves many at once.

_served = 0


async def count_words(text: str) -> tuple[int, Any]:
    """Run the DAG for one request."""
    global _served
    _served += 1
    try:
        with await handoff.aio.execute(
            dag, inputs={"text": text}, dag_id=f"words-{_served}", timeout=10
        ) as result:
            return 200, {"counts": result.results["counts"], "longest": result.results["longest"]}
    except handoff.ExecutionError as error:
        return 500, {"error": str(error)}


async def health() -> tuple[int, Any]:
    """Whether the runtime is well, and what of it has been restarted."""
    try:
        status = await handoff.aio.status()
    except handoff.HandoffError as error:
        return 503, {"error": str(error)}
    running = sum(run.state == "running" for run in status.runs)
    return 200, {"status": "ok", "running": running, "restarts": dict(status.restarts)}


async def metrics() -> tuple[int, str]:
    """The status as numbers. With OpenTelemetry's SDK you get more, without writing any of this."""
    status = await handoff.aio.status()
    lines = [
        f"handoff_requests_total {_served}",
        f"handoff_runs_active {sum(run.state == 'running' for run in status.runs)}",
        f"handoff_functions_running {len(status.running)}",
        f"handoff_restarts_total {sum(status.restarts.values())}",
    ]
    for node in status.nodes:
        for name, amount in node.capabilities.items():
            used = amount - node.available.get(name, 0.0)
            lines.append(f'handoff_claimed{{node="{node.name}",resource="{name}"}} {used:g}')
    return 200, "\n".join(lines) + "\n"


# 4. ASGI: three kinds of calls, and the bytes of a request.


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """The application."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    route = scope["method"], scope["path"]
    answer: tuple[int, Any]
    if route == ("POST", "/words"):
        answer = await count_words((await body(receive)).decode("utf-8", "replace"))
    elif route == ("GET", "/health"):
        answer = await health()
    elif route == ("GET", "/metrics"):
        answer = await metrics()
    else:
        answer = 404, {"error": "there is no such place"}
    status, content = answer
    text = content if isinstance(content, str) else json.dumps(content)
    kind = b"text/plain" if isinstance(content, str) else b"application/json"
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def body(receive: Receive) -> bytes:
    """All of a request's body."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
