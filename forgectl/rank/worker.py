"""Monarch's worker on a host: starts the forwarders of the actor ranks there, and carries messages to them by TLS.

Run as `boot.py worker PARENT DESCRIPTOR`: on standard input comes one JSON object, `address` (to listen on), `folder`
(0700, for the sockets of ranks; at most 80 bytes) and `certificate`, `key`, `authority` (PEM texts, which so never
touch a disk). On DESCRIPTOR it says `{"port": …}` once it serves, or `{"error": …}`. It dies with PARENT.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
from typing import Any

from forgectl.processes import die_with_parent


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    parent, report = int(arguments[0]), int(arguments[1])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends in its own order
    os.set_inheritable(report, False)
    os.umask(0o077)
    try:
        _serve(json.loads(sys.stdin.buffer.readline()), report)
    except Exception as e:
        _say(report, {"error": f"{type(e).__name__}: {e}"})
        raise


def _serve(request: dict[str, str], report: int) -> None:
    address = request["address"]
    listener = listen(address)
    port = listener.getsockname()[1]
    os.environ["TMPDIR"] = request["folder"]  # before Monarch looks
    engine: Any = importlib.import_module("forgectl.actor.engine")
    identity = {part: request[part] for part in ("certificate", "key", "authority")}
    engine.serve_worker(listener.detach(), address, lambda: _say(report, {"port": port}), **identity)


def listen(address: str) -> socket.socket:
    """A TCP socket on a free port of `address` alone: bound before the port is told, so that nobody can take it."""
    family, _, _, _, where = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    return socket.create_server(where[:2], family=family, backlog=128)


def _say(report: int, answer: dict[str, Any]) -> None:
    os.write(report, json.dumps(answer).encode() + b"\n")
    os.close(report)
