"""What a fork server of actors imports besides `preload:`: our own modules that actor ranks and drivers need.

None of it starts a thread. ZeroMQ starts its threads with a context, and each process makes one after the fork.
"""

from __future__ import annotations

import contextlib
import importlib

from forgectl.boot import ACTOR_RANK, FORGE_ACTOR

NEEDED = ("asyncio", "cloudpickle", "zmq", ACTOR_RANK, FORGE_ACTOR)

for _name in NEEDED:
    with contextlib.suppress(Exception):  # each rank imports it again and reports the error
        importlib.import_module(_name)
