"""What Monarch starts in place of a rank: asks the agent to fork the rank, and ends as it ends.

Run as `python -S -I forward.py SOCKET VERSION RUN MESH GENERATION RANK`: a bare interpreter, so that a rank costs 10 ms
more than its fork. The standard library alone, and nothing of forgectl.
"""

import json
import os
import signal
import socket
import sys

MONARCHS = ("HYPERACTOR_", "MONARCH_", "BOOTSTRAP_")
"""What Monarch tells its process by: everything else the rank gets from its plan."""


def main() -> None:
    """Hand the rank over, wait for its end, mirror it."""
    path, version, run, mesh, generation, rank = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches us too; the run ends in its own order
    request = {
        "type": "Forward",
        "version": version,
        "run": run,
        "mesh": mesh,
        "generation": int(generation),
        "rank": int(rank),
        "env": {k: v for k, v in os.environ.items() if k.startswith(MONARCHS)},
    }
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder, name = os.path.split(path)
    try:
        os.chdir(folder)  # socket addresses are limited to 107 bytes
        agent.connect(name)
    except OSError:  # it has ended, and with it all that was to be forked
        os._exit(1)
    os.chdir("/")
    agent.sendall(json.dumps(request).encode() + b"\n")
    answer = agent.makefile("rb").readline()
    if not answer:  # the agent is gone, or would not have it
        os._exit(1)
    status = json.loads(answer)["status"]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
