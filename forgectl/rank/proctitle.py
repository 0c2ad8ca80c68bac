"""Sets the command line that `ps` and `nvidia-smi` show for a forked rank; it would show its fork server's."""

from __future__ import annotations

import ctypes


def set_title(text: str) -> None:
    """Write `text` over this process's command line, cut to its length; does nothing where /proc forbids it."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: fields 48 and 49 of proc(5)
        room = end - start
        if room <= 0:
            return
        data = text.encode("utf-8", "replace")[: room - 1]
        ctypes.memmove(start, data.ljust(room, b"\0"), room)
        with open("/proc/self/comm", "wb") as file:
            file.write(data.removeprefix(b"forgectl rank ")[:15])
    except (OSError, ValueError, IndexError):
        return
