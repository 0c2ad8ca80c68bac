"""See warm_cli.py. It imports next to nothing, as it runs for each command of the tests."""

import os
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOL_SOCKET, socket
from array import array

server = socket(AF_UNIX)
server.connect(sys.argv[1])
variables = [f"{k}={v}" for k, v in os.environ.items()]
arguments = sys.argv[2:]
parts = [str(os.getpid()), os.getcwd(), str(len(arguments)), *arguments, *variables]
data = "\0".join(parts).encode(errors="surrogateescape")
server.sendmsg([b"%8d" % len(data)], [(SOL_SOCKET, SCM_RIGHTS, array("i", [0, 1, 2]))])
while data:
    data = data[server.send(data) :]
status = server.recv(16)
if not status:
    sys.exit(70)
code = os.waitstatus_to_exitcode(int(status))
if code < 0:
    import signal

    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
