"""`without.py seccomp|netlink COMMAND…`: the command in a sandbox that refuses this, as some containers do."""

import ctypes
import errno
import os
import socket
import sys

from forgectl.agent.forkserver import store_guard
from forgectl.agent.forkserver.store_guard import _IF_EQUAL, _RETURN, _Instruction, _Program

LOAD = 0x20
NUMBER, FIRST_ARGUMENT = 0, 16
SOCKET = {"x86_64": 41, "aarch64": 198}
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM

machine = os.uname().machine
if sys.argv[1] == "seccomp":
    number, argument = store_guard._CALLS[machine][0], (_IF_EQUAL, 0, 0, 0)
else:
    number, argument = SOCKET[machine], (_IF_EQUAL, 0, 1, socket.AF_NETLINK)
instructions = (
    (LOAD, 0, 0, NUMBER),
    (_IF_EQUAL, 0, 3, number),
    (LOAD, 0, 0, FIRST_ARGUMENT),
    argument,
    (_RETURN, 0, 0, REFUSE),
    (_RETURN, 0, 0, ALLOW),
)
program = _Program(len(instructions), (_Instruction * len(instructions))(*(_Instruction(*i) for i in instructions)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, ctypes.c_ulong(1), 0, 0, 0) == 0  # no_new_privs
assert libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(program), 0, 0) == 0  # a filter, by the older of the two calls
os.execvp(sys.argv[2], sys.argv[2:])
