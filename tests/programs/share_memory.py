"""Shares a message in memory, prints its reference, and keeps it until standard input ends.

With `fork` it fails where a forked child has the memory open.
"""

import os
import sys

from forgectl.messages.shared import LEAST, share


def child_has_it() -> bool:
    """Whether a child that is forked now has the memory among its descriptors."""
    child = os.fork()
    if child == 0:
        paths = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd") if int(n) > 2]
        os._exit(int(any("memfd" in os.readlink(path) for path in paths if os.path.lexists(path))))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


sent = share((b"text", b"\x21" * LEAST), LEAST + 4, 1)
assert sent is not None
if "fork" in sys.argv:
    assert not child_has_it()
print(sent.reference.hex(), flush=True)
sys.stdin.read()
