"""Takes every free TCP port that it finds, in a loop, and lets most of them go again. Prints a line when it begins."""

import contextlib
import random
import socket
import sys
from pathlib import Path

low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
chance = random.Random(1)
held: list[socket.socket] = []
print("squatting", flush=True)
while True:
    for port in range(low, high + 1):
        taken = socket.socket()
        with contextlib.suppress(OSError):
            taken.bind(("0.0.0.0", port))
            taken.listen()
            held.append(taken)
            continue
        taken.close()
    if "all" in sys.argv:
        continue
    chance.shuffle(held)
    while len(held) > (high - low) // 2:
        held.pop().close()
