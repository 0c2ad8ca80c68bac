"""How an agent is started: its command, environment and standard input."""

from __future__ import annotations

import json
import os
from pathlib import Path

from forgectl.agent import bootstrap
from forgectl.agent.forkserver.spawn import fields, lock_of, log_of
from forgectl.protocol.supervision import AgentConfig
from forgectl.wire.codec import to_json


def command(python: str) -> list[str]:
    """The command, to be run in "/". The agent prints its pid, as JSON, once it listens."""
    return [python, "-S", "-I", bootstrap.__file__]


def environment(config: AgentConfig) -> dict[str, str]:
    """The environment of this process, and the marks by which the agent can be found."""
    return {**os.environ, "FORGE_RUN_ID": config.run, "FORGE_HOST": config.host, "FORGE_ROLE": "agent"}


def standard_input(config: AgentConfig) -> bytes:
    """The fields that bootstrap.py reads, then the whole configuration as a line of JSON."""
    run_dir = Path(config.run_dir)
    lock = lock_of(run_dir, config.host)
    parts = [os.fsencode(lock.parent), os.fsencode(lock)]
    for number, plan in enumerate(config.ahead):
        parts += fields(plan, log_of(run_dir, config.host, number))
    head = b"".join(part + b"\0" for part in parts)
    return b"%0*d" % (bootstrap.HEAD, len(head)) + head + json.dumps(to_json(config)).encode() + b"\n"
