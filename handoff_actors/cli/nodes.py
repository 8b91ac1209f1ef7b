"""``handoff node`` and ``handoff status``: being a node, and looking at a cluster."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from handoff_actors.cli import options
from handoff_actors.errors import ConfigurationError, amounts_text
from handoff_actors.resources.machine import machine_capabilities

if TYPE_CHECKING:
    from handoff_actors.cluster.tls import TLS

F = TypeVar("F", bound=Callable[..., Any])

_LEVELS = ("debug", "info", "warning", "error")


def _access(command: F) -> F:
    """The options with which a node shows that it belongs to a cluster."""
    for option in reversed(
        (
            click.option(
                "--authkey-file",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                metavar="FILE",
                help="The key of the cluster, hex digits; else HANDOFF_AUTHKEY.",
            ),
            *(
                click.option(
                    f"--tls-{name}",
                    type=click.Path(exists=True, dir_okay=False),
                    metavar="FILE",
                    help=f"{what} (PEM).",
                )
                for name, what in (
                    ("cert", "This node's certificate"),
                    ("key", "Its private key"),
                    ("ca", "The authority that signed all nodes' certificates"),
                )
            ),
        )
    ):
        command = option(command)
    return command


def _tls(cert: str | None, key: str | None, authority: str | None) -> Mapping[str, str] | None:
    given = {"certfile": cert, "keyfile": key, "cafile": authority}
    if not any(given.values()):
        return None
    if not all(given.values()):
        raise click.UsageError("--tls-cert, --tls-key and --tls-ca go together")
    return {name: str(path) for name, path in given.items()}


def _key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.pop("HANDOFF_AUTHKEY", None)
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        click.echo(f"warning: others on this machine can read {file}: chmod 600 it", err=True)
    key = file.read_text().strip()
    if not key:
        raise click.UsageError(f"{file} is empty")
    return key


@click.command()
@click.option("--name", metavar="NAME", help="Of this node, unique in the cluster.")
@click.option(
    "--listen",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT",
    help="Where others can connect; port 0 is any.",
)
@click.option(
    "--connect",
    "seeds",
    multiple=True,
    metavar="HOST:PORT",
    help="A node of the cluster to join. May be repeated; tried until it answers.",
)
@click.option("--cpu", type=click.FloatRange(min=0), metavar="N", help="What it offers.")
@click.option("--memory", type=click.FloatRange(min=0), metavar="MB", help="What it offers.")
@options.resources
@options.isolation
@_access
@click.option(
    "--insecure", is_flag=True, help="Listen for other machines without key or certificates."
)
@click.option(
    "--heartbeat-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="After so much silence another node is given up.",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="What functions in progress get to end on SIGTERM.",
)
@click.option(
    "--log-level", type=click.Choice(_LEVELS), default="info", show_default=True, help="On stderr."
)
def node(
    name: str | None,
    listen: str,
    seeds: tuple[str, ...],
    cpu: float | None,
    memory: float | None,
    resources: tuple[str, ...],
    isolation: str,
    authkey_file: Path | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    insecure: bool,
    heartbeat_timeout: float,
    drain: float,
    log_level: str,
) -> None:
    """Be a node, until SIGTERM or Ctrl-C: then finish what runs, and go."""
    from handoff_actors.node_service import serve
    from handoff_actors.runtime import Runtime

    _log_to_stderr(log_level)
    capabilities = machine_capabilities()
    capabilities.update(options.amounts(resources))
    for resource, amount in (("cpu", cpu), ("memory", memory)):
        if amount is not None:
            capabilities[resource] = amount
    runtime = Runtime(
        name=name,
        listen=listen,
        authkey=_key(authkey_file),
        tls=_tls(tls_cert, tls_key, tls_ca),
        insecure=insecure,
        isolation=isolation,
        heartbeat_timeout=heartbeat_timeout,
        capabilities=capabilities,
    ).start()
    logger = logging.getLogger("handoff_actors.node")
    logger.info(
        "node %s listens on %s (pid %d) and offers %s",
        runtime.node(),
        runtime.address,
        os.getpid(),
        amounts_text(capabilities),
    )
    serve(runtime, seeds, drain, lambda line: logger.info("%s", line))


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler()
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("handoff_actors")
    logger.addHandler(handler)
    logger.setLevel(level.upper())


@click.command()
@click.argument("address", metavar="HOST:PORT")
@_access
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
)
def status(
    address: str,
    authkey_file: Path | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    as_json: bool,
    timeout: float,
) -> None:
    """Show the cluster as the node at HOST:PORT sees it, without joining."""
    from handoff_actors.cluster.tls import TLS

    key = _key(authkey_file)
    if key is None:
        raise click.UsageError("the key of the cluster: --authkey-file, or HANDOFF_AUTHKEY")
    found = described(address, key, TLS.of(_tls(tls_cert, tls_key, tls_ca)), timeout)
    if as_json:
        click.echo(json.dumps(found, default=str, indent=2))
        return
    rows = [
        (
            info["name"],
            info["state"],
            info["address"] or "-",
            str(info["pid"]),
            amounts_text(info["available"]) if info["state"] == "up" else "-",
            amounts_text(info["capabilities"]),
        )
        for info in found["nodes"]
    ]
    header = ("NODE", "STATE", "ADDRESS", "PID", "FREE", "OF")
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    for row in (header, *rows):
        click.echo("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    click.echo()
    click.echo(found["status"])


def described(address: str, key: str, tls: TLS | None, timeout: float) -> dict[str, Any]:
    """What the node at ``address`` tells of its cluster.

    Raises:
        NodeError: it cannot be reached, or has another key.
        ConfigurationError: ``address`` is none, or what is there tells nothing.
    """
    from handoff_actors.cluster import addresses
    from handoff_actors.cluster.gateway import Caller, Place
    from handoff_actors.life import key_bytes

    host, port = addresses.parse(address)
    caller = Caller(Place("handoff status", host, port, tls, timeout=timeout), key_bytes(key))
    try:
        found = caller.call("describe")
    finally:
        caller.close()
    if not isinstance(found, dict):
        raise ConfigurationError(f"what listens on {address} tells nothing of itself")
    return found
