"""What a fork server of actors imports besides `preload:`: all that their ranks, and drivers, need of ours.

None of it starts a thread: ZeroMQ's come with its context, which each process makes after the fork.
"""

from __future__ import annotations

import contextlib
import importlib

from forgectl.boot import ACTOR_RANK, FORGE_ACTOR

NEEDED = ("asyncio", "cloudpickle", "zmq", ACTOR_RANK, FORGE_ACTOR)

for _name in NEEDED:
    with contextlib.suppress(Exception):  # each rank says what is wrong with it
        importlib.import_module(_name)
