"""What a call to an actor on another host costs, beside plain Monarch's to the same worker, over the same TLS."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator

from forge import Forge
from measure import PROGRAMS, BenchmarkError, Row
from reaching import lab

CALL = 1.15


def call(forge: Forge, options: Namespace) -> Iterator[Row]:
    """By turns in one process, the run's driver on this machine; the actor on a host with a sshd of its own."""
    spec = forge.folder() / "spec.yaml"
    with lab(forge) as hosts:
        host = hosts.names[0]
        actors = {"echo": {"class": "echo_forge:Echo", "hosts": [host]}}
        places = [{"name": host, "python": sys.executable}]
        body = {"hosts": places, "workdir": str(PROGRAMS), "sync": "none", "actors": actors}
        spec.write_text(json.dumps({"name": "call", **body, "driver": {"run": "far_calls.py"}}))
        done = subprocess.run(forge.argv("launch", str(spec)), env=forge.env, capture_output=True, text=True)
    found = [line.partition("RESULT ")[2] for line in done.stdout.splitlines() if "RESULT " in line]
    if done.returncode or not found:
        raise BenchmarkError(f"the run ended with {done.returncode}:\n{done.stderr[-3000:]}")
    ours, plain = zip(*json.loads(found[0]), strict=True)
    yield Row("call", "to another host: forgectl", "ms", tuple(1000 * s for s in ours))
    yield Row("call", "to another host: monarch", "ms", tuple(1000 * s for s in plain))
    ratios = tuple(a / b for a, b in zip(ours, plain, strict=True))
    yield Row("call", "to another host: forgectl / monarch", "", ratios, CALL)
