"""Prints a number every 20 ms until it is ended."""

import itertools
import time

for number in itertools.count():
    print(f"tick {number}")
    time.sleep(0.02)
