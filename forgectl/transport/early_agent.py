"""Starts an agent on this machine before its controller, so that both get ready at the same time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess

from forgectl.agent import start_command
from forgectl.protocol.supervision import AgentConfig
from forgectl.system.daemons import let_go


class EarlyAgent:
    """An agent that was started early. It closes `pipe` once it listens.

    Its controller waits at `pipe`, and starts another agent if this one does not listen. `preloads` is whether a fork
    server of the agent imports modules.
    """

    def __init__(self, config: AgentConfig, python: str) -> None:
        """Start it; raises OSError."""
        self.preloads = any(plan.preload for plan in config.ahead)
        self.pipe, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                start_command.command(python),
                env=start_command.environment(config),
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=theirs,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            os.close(self.pipe)
            raise
        finally:
            os.close(theirs)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(start_command.standard_input(config))

    def wait(self) -> None:
        """Wait until it listens or has ended, for at most 30 s."""
        select.select([self.pipe], [], [], start_command.START_SECONDS)

    def end(self) -> None:
        """SIGKILL it, as there will be no controller; all that it started dies with it."""
        from forgectl.system.processes import identify, signal_exactly  # late: imports would delay the agent's start

        if select.select([self.pipe], [], [], start_command.START_SECONDS)[0]:
            with contextlib.suppress(ValueError, KeyError, OSError):
                identity = identify(int(json.loads(os.read(self.pipe, 4096))["pid"]))
                if identity is not None:
                    signal_exactly(identity, signal.SIGKILL)

    def let_go(self) -> None:
        """Close our end of the pipe, which the controller has now. The agent is a daemon: nobody waits for it here."""
        os.close(self.pipe)
        let_go(self._process)
