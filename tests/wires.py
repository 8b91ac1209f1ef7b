"""Machines of their own, as far as the network goes, and a switch between them that can be cut.

    with Wires("a", "b") as wires:
        subprocess.Popen([*wires.on("a"), "program"])   sees its own network only; reaches b
        wires.cut("a", "b")                             silently: packets go to nobody
        wires.heal("a", "b")
        wires.slow("a", 40)                             what a sends, in Mbit/s

Made of network namespaces that hang on processes, so that nothing stays however the tests end. As
root, or where users may have namespaces of their own; elsewhere ``Wires`` raises ``NoWiresError``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

_NOBODY = "02:00:00:00:00:ff"
_TOOLS = ("unshare", "nsenter", "ip")


class NoWiresError(Exception):
    """This machine does not let us; says why."""


class Wires:
    """See the module."""

    def __init__(self, *names: str) -> None:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if missing:
            raise NoWiresError(f"there is no {', '.join(missing)} here")
        self._spaces: dict[str, subprocess.Popen[bytes]] = {}
        self._numbers = {name: number for number, name in enumerate(names, 1)}
        self._user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        try:
            own = [] if os.geteuid() == 0 else ["--map-root-user"]
            self._space("", ["unshare", *own, "--net"])
            self._ip("", "link add switch type bridge")
            self._ip("", "link set switch up")
            for name, number in self._numbers.items():
                space = self._space(name, [*self.on(""), "unshare", "--net"])
                self._ip("", f"link add port{number} type veth peer name wire netns {space}")
                self._ip("", f"link set port{number} master switch up")
                self._ip(name, f"link set wire address {self._mac(name)}")
                self._ip(name, f"address add {self.address(name)}/24 dev wire")
                self._ip(name, "link set lo up")
                self._ip(name, "link set wire up")
            for a in names:
                for b in names:
                    self._aim(a, b, self._mac(b))
        except BaseException:
            self.close()
            raise

    def _space(self, name: str, how: list[str]) -> int:
        keeper = subprocess.Popen(
            [*how, "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._spaces[name] = keeper
        assert keeper.stdout is not None
        said = keeper.stdout.readline()
        if said.strip() or keeper.poll() is not None or not said:
            raise NoWiresError(f"no network namespace can be made: {said.decode().strip()}")
        return keeper.pid

    def _ip(self, name: str, command: str, tool: str = "ip") -> None:
        done = subprocess.run([*self.on(name), tool, *command.split()], capture_output=True)
        if done.returncode:
            raise NoWiresError(f"{tool} {command}: {done.stderr.decode().strip()}")

    def _mac(self, name: str) -> str:
        return f"02:00:00:00:00:{self._numbers[name]:02x}"

    def _aim(self, a: str, b: str, mac: str) -> None:
        if a != b:
            to = f"{self.address(b)} lladdr {mac} dev wire nud permanent"
            self._ip(a, f"neighbour replace {to}")

    def on(self, name: str) -> list[str]:
        """What to put before a command that is to run on that machine; its pid stays its own."""
        return ["nsenter", f"--target={self._spaces[name].pid}", *self._user, "--net", "--"]

    def address(self, name: str) -> str:
        return f"10.77.0.{self._numbers[name]}"

    def cut(self, a: str, b: str) -> None:
        """Neither hears the other any more, and nobody is told."""
        self._aim(a, b, _NOBODY)
        self._aim(b, a, _NOBODY)

    def heal(self, a: str, b: str) -> None:
        self._aim(a, b, self._mac(b))
        self._aim(b, a, self._mac(a))

    def slow(self, name: str, megabits: int | None) -> None:
        """Bound what a machine sends; None: not any more."""
        with contextlib.suppress(NoWiresError):
            self._ip(name, "qdisc del dev wire root", "tc")
        if megabits is not None:
            rate = f"rate {megabits}mbit burst 100kb latency 400ms"
            self._ip(name, f"qdisc add dev wire root tbf {rate}", "tc")

    def sent(self, name: str) -> int:
        """Bytes that a machine has sent."""
        table = Path(f"/proc/{self._spaces[name].pid}/net/dev").read_text()
        (row,) = [line for line in table.splitlines() if line.strip().startswith("wire:")]
        return int(row.partition(":")[2].split()[8])

    def close(self) -> None:
        for keeper in reversed(self._spaces.values()):
            for pipe in (keeper.stdin, keeper.stdout):
                assert pipe is not None
                pipe.close()
            keeper.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
