"""How an agent is started: the command, and what it is told on standard input."""

from __future__ import annotations

import json
import os
from pathlib import Path

from forgectl.agent import bootstrap
from forgectl.agent.forkserver.spawn import fields, lock_of, log_of
from forgectl.protocol.supervision import AgentConfig
from forgectl.wire.codec import to_json


def command(python: str) -> list[str]:
    """It says its pid, as JSON, on standard output, once it listens; to be started in "/"."""
    return [python, "-S", "-I", bootstrap.__file__]


def environment(config: AgentConfig) -> dict[str, str]:
    """That of this process, and marks to be found by."""
    return {**os.environ, "FORGE_RUN_ID": config.run, "FORGE_HOST": config.host, "FORGE_ROLE": "agent"}


def told(config: AgentConfig) -> bytes:
    """First what its first process needs, then all."""
    run_dir = Path(config.run_dir)
    lock = lock_of(run_dir, config.host)
    parts = [os.fsencode(lock.parent), os.fsencode(lock)]
    for number, plan in enumerate(config.ahead):
        parts += fields(plan, log_of(run_dir, config.host, number))
    head = b"".join(part + b"\0" for part in parts)
    return b"%0*d" % (bootstrap.HEAD, len(head)) + head + json.dumps(to_json(config)).encode() + b"\n"
