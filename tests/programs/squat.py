"""Takes free TCP ports in a loop, all but a few, and lets half of them go again. Prints a line when it begins."""

import contextlib
import random
import socket
from pathlib import Path

low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
chance = random.Random(1)
held: list[socket.socket] = []
most = high + 1 - low - 8  # all would be none for others, for as long as this process is then kept from running
print("squatting", flush=True)
while True:
    for port in chance.sample(range(low, high + 1), high + 1 - low):
        if len(held) >= most:
            break
        taken = socket.socket()
        with contextlib.suppress(OSError):
            taken.bind(("0.0.0.0", port))
            taken.listen()
            held.append(taken)
            continue
        taken.close()
    chance.shuffle(held)
    while len(held) > (high - low) // 2:
        held.pop().close()
