"""A rank that prints to the log LOG, as told by lines on its stdin, and answers each on the stdout it came with.

out N TEXT    print TEXT N times             err N TEXT   the same on standard error
part TEXT     TEXT without a newline         raw HEX      bytes to sys.stdout.buffer
fork TEXT     a child prints TEXT            show         facts of the streams, as JSON
"""

import json
import os
import sys
from pathlib import Path

from forgectl.agent.rank_logs import open_log
from forgectl.rank import stdio

answers = os.fdopen(os.dup(1), "w")
commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
log = open_log(Path(sys.argv[1]))
os.dup2(log, 1)
os.dup2(log, 2)
stdio.install()


def fork(text: str) -> None:
    pid = os.fork()
    if pid == 0:
        print(text)
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0


def facts() -> object:
    return [
        {
            "fileno": s.fileno(),
            "isatty": s.isatty(),
            "encoding": s.encoding,
            "errors": s.errors,
            "mode": s.mode,
            "name": s.name,
            "line_buffering": s.line_buffering,
            "writable": s.writable(),
            "readable": s.readable(),
            "same": s is original,
        }
        for s, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__))
    ]


for line in commands:
    what, _, rest = line.rstrip("\n").partition(" ")
    answer: object = None
    if what in ("out", "err"):
        count, _, text = rest.partition(" ")
        for _repeat in range(int(count)):
            print(text, file=sys.stdout if what == "out" else sys.stderr)
    elif what == "part":
        print(rest, end="", flush=True)
    elif what == "raw":
        answer = sys.stdout.buffer.write(bytes.fromhex(rest))
    elif what == "fork":
        fork(rest)
    elif what == "show":
        answer = facts()
    print(json.dumps(answer), file=answers, flush=True)
