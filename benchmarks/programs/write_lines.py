"""Writes so many bytes to standard output, as `lines` (live, one by one) or as `chunks`; prints nothing else.

Arguments: FOLDER BYTES lines|chunks. Waits for a file `go` in the folder, so that a watcher can be ready, and
writes to a file `seconds` how long the writing took, and how long it kept a processor busy.
"""

import io
import sys
import time
from pathlib import Path

from stamp import folder_argument

LINE = "step 000000 loss 1.2345 " + "." * 103 + "\n"  # 128 bytes


def write_lines(size: int) -> None:
    """As a training script prints: each line at once."""
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)  # in a plain file too, so that both sides do the same work
    write = sys.stdout.write
    for _ in range(size // len(LINE)):
        write(LINE)


def write_chunks(size: int) -> None:
    """As fast as Python can: 64 KiB at a time."""
    chunk = LINE.encode() * 512
    write = sys.stdout.buffer.write
    for _ in range(size // len(chunk)):
        write(chunk)
    sys.stdout.buffer.flush()


def main() -> None:
    """Write when told to."""
    folder = Path(folder_argument())
    while not (folder / "go").exists():
        time.sleep(0.01)
    began, busy = time.monotonic(), time.process_time()
    {"lines": write_lines, "chunks": write_chunks}[sys.argv[3]](int(sys.argv[2]))
    took = f"{time.monotonic() - began} {time.process_time() - busy}"
    (folder / "seconds.partial").write_text(took)
    (folder / "seconds.partial").replace(folder / "seconds")


if __name__ == "__main__":
    main()
