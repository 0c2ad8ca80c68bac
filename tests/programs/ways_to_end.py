"""`ways_to_end.py WAY`: ends in one of the ways that a Python program can end."""

import atexit
import ctypes
import os
import signal
import sys
import threading

way = sys.argv[1]
atexit.register(print, "atexit")
print("begun")
if way == "end":
    pass
elif way == "number":
    sys.exit(3)
elif way == "text":
    sys.exit("a text")
elif way == "none":
    raise SystemExit(None)
elif way == "big":
    sys.exit(256 + 7)
elif way == "object":
    raise SystemExit({"a": 1})
elif way == "at-once":
    os._exit(5)
elif way == "exception":
    raise ValueError("no value")
elif way == "interrupt":
    raise KeyboardInterrupt
elif way == "sigint":
    signal.raise_signal(signal.SIGINT)
elif way == "sigterm":
    signal.raise_signal(signal.SIGTERM)
elif way == "killed":
    signal.raise_signal(signal.SIGKILL)
elif way == "abort":
    os.abort()
elif way == "segfault":
    ctypes.string_at(0)
elif way == "in-thread":
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
elif way == "hook":
    sys.excepthook = lambda *_: print("the script's own hook")
    raise ValueError("no value")
elif way == "at-exit":
    atexit.register(lambda: os._exit(9))
else:
    sys.exit(f"no such way: {way}")
