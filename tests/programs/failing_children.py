"""`failing_children.py CODE`: its children fail, forked in each way, and it ends with CODE."""

from __future__ import annotations

import multiprocessing
import os
import sys


def fail() -> None:
    raise ValueError("of the child")


if __name__ == "__main__":
    if os.fork() == 0:
        fail()
    os.wait()
    for context in (multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")):
        child = context.Process(target=fail)
        child.start()
        child.join()
        assert child.exitcode == 1
    assert not os.path.exists(os.environ["TORCHELASTIC_ERROR_FILE"])
    sys.exit(int(sys.argv[1]))
