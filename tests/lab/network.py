"""The lab's network: a bridge in a namespace of its own, a port for each host and one for the launching machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tests.lab.machine import ENVIRONMENT

MACHINE = Path(__file__).with_name("machine.py")
LAUNCHER = "launcher"
SUBNETS = 512  # of 198.18.0.0/15, which RFC 2544 sets aside for test networks


def start_machine(mode: str, config: Mapping[str, object], log: Path) -> subprocess.Popen[bytes]:
    """Start `machine.py`, which lives until its input is closed, be it by our death; it says its pid first."""
    argv = [sys.executable, "-I", "-S", str(MACHINE), mode, json.dumps(config)]
    with log.open("ab") as errors:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=ENVIRONMENT,
            start_new_session=True,
        )


def hear(process: subprocess.Popen[bytes], log: Path) -> str:
    """Its next line; AssertionError with what it wrote to its log when it has none."""
    line = _output(process).readline().decode().strip()
    assert line, f"a machine of the lab did not start: {log.read_text()}"
    return line


def _output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def end_machine(process: subprocess.Popen[bytes]) -> None:
    """End it and all that runs there."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait(timeout=30)
    _output(process).close()


def batch(commands: list[str], pid: int | None = None) -> None:
    """`ip` commands in the network namespace of a process, or here."""
    inside = ["nsenter", "-n", "-t", str(pid)] if pid else []
    subprocess.run(
        [*inside, "ip", "-batch", "-"],
        input="\n".join(commands),
        text=True,
        check=True,
        capture_output=True,
        env=ENVIRONMENT,
    )


class Network:
    """198.18.x.0/24: .1 is the launching machine, hosts count from .11, .250 is an address that nobody has."""

    def __init__(self, folder: Path, cgroups: list[str]) -> None:
        log = folder / "switch.log"
        self._switch = start_machine("switch", {"folder": str(folder), "cgroups": cgroups}, log)
        self._pid = int(hear(self._switch, log))
        try:
            self.interface, self.prefix = self._reserve()
            self._connect()
        except BaseException:
            self.close()
            raise
        self.gateway = f"{self.prefix}.1"
        self.silent = f"{self.prefix}.250"

    def _reserve(self) -> tuple[str, str]:
        """A subnet for us alone: whoever makes the interface of that name has it."""
        for attempt in range(SUBNETS):
            n = (os.getpid() + attempt) % SUBNETS
            peer = f"type veth peer name {LAUNCHER} netns {self._pid}"
            added = subprocess.run(
                f"ip link add flab{n} {peer}".split(), capture_output=True, text=True, env=ENVIRONMENT
            )
            if added.returncode == 0:
                return f"flab{n}", f"198.{18 + n // 256}.{n % 256}"
            assert "File exists" in added.stderr, added.stderr
        raise AssertionError(f"all {SUBNETS} subnets of the lab are taken: see `ip link`")

    def _connect(self) -> None:
        batch(
            [
                "link set lo up",
                "link add switch type bridge",
                "link set switch up",
                f"link set {LAUNCHER} master switch up",
            ],
            self._pid,
        )
        batch(
            [
                f"addr add {self.prefix}.1/24 dev {self.interface}",
                f"link set {self.interface} up",
                # A neighbour that is never asked for, so that a dial times out and does not fail with "no route".
                f"neigh add {self.prefix}.250 lladdr 02:00:00:00:00:fa dev {self.interface} nud permanent",
            ]
        )

    def address(self, number: int) -> str:
        return f"{self.prefix}.{11 + number}"

    def plug(self, number: int, pid: int) -> None:
        """Give the namespace of a process the interface of a host; the same address and MAC each time."""
        port = f"port{number}"
        mac = f"02:00:00:00:01:{number:02x}"
        batch(
            [
                f"link add {port} type veth peer name eth0 address {mac} netns {pid}",
                f"link set {port} master switch up",
            ],
            self._pid,
        )
        batch(["link set lo up", f"addr add {self.address(number)}/24 dev eth0", "link set eth0 up"], pid)

    def unplug(self, number: int) -> None:
        """Remove the port of a host that has gone; the kernel does so too, but in its own time."""
        with contextlib.suppress(subprocess.CalledProcessError):
            batch([f"link del port{number}"], self._pid)

    def cut(self, number: int | None) -> None:
        """Pull the cable of a host, or with None of the launching machine."""
        batch([f"link set {self._port(number)} down"], self._pid)

    def mend(self, number: int | None) -> None:
        batch([f"link set {self._port(number)} up"], self._pid)

    @staticmethod
    def _port(number: int | None) -> str:
        return LAUNCHER if number is None else f"port{number}"

    def close(self) -> None:
        """Remove the interface here, at once, and the switch."""
        if hasattr(self, "interface"):
            subprocess.run(["ip", "link", "del", self.interface], capture_output=True, env=ENVIRONMENT)
        end_machine(self._switch)
