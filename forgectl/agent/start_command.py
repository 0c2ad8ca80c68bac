"""How an agent is started: its command, environment and standard input, and what its output means."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from forgectl.agent import bootstrap
from forgectl.agent.forkserver.spawn import fields, lock_of, log_of
from forgectl.errors import UnreachableError
from forgectl.protocol.supervision import AgentConfig
from forgectl.wire.codec import to_json

START_SECONDS = 30.0
"""How long an agent may take until it listens."""


class AgentKilledError(UnreachableError):
    """An agent ended before it listened and printed nothing: it was killed, and another attempt may succeed."""


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


def reported_pid(config: AgentConfig, python: str, out: bytes, err: bytes, code: int | None) -> int:
    """The pid that an agent printed on standard output. Raises UnreachableError with the last line of its errors.

    `code`: its exit code, negative for a signal.
    """
    with contextlib.suppress(ValueError, KeyError):
        return int(json.loads(out)["pid"])
    lines = err.decode(errors="replace").strip().splitlines()
    if not lines:
        how = f"was killed by signal {-code}" if code and code < 0 else "ended before it listened"
        raise AgentKilledError(f"host {config.host}: its agent {how}", hint=f"see {config.run_dir}/agents")
    hint = f"install it there: {python} -m pip install psutil" if "psutil" in lines[-1] else None
    raise UnreachableError(f"host {config.host}: its agent could not start under {python}: {lines[-1]}", hint=hint)


def too_slow(config: AgentConfig) -> UnreachableError:
    """The error for an agent that does not listen within START_SECONDS."""
    return UnreachableError(f"host {config.host}: its agent did not start within {START_SECONDS:g} s")
