"""A module that never finishes being imported, as one that waits for a file system that is gone."""

import signal

while True:
    signal.pause()
