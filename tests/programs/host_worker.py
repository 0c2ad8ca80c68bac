"""In an agent's place: starts Monarch's worker with the request on standard input, says what that says, stays."""

import json
import os
import subprocess
import sys

from forgectl.boot import BOOT

request = sys.stdin.readline()
answers, report = os.pipe()
worker = subprocess.Popen(
    [sys.executable, BOOT, "worker", str(os.getpid()), str(report)],
    stdin=subprocess.PIPE,
    stdout=sys.stderr,
    pass_fds=[report],
    cwd="/",
    text=True,
)
os.close(report)
assert worker.stdin is not None
worker.stdin.write(request)
worker.stdin.close()
with os.fdopen(answers) as answer:
    said = json.loads(answer.readline())
print(json.dumps({**said, "pid": worker.pid}), flush=True)
sys.stdin.read()  # until whoever started this has gone
