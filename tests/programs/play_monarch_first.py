"""What play_monarch.py plays, in a script that imports Monarch before forgectl."""

from __future__ import annotations

import sys

import monarch.actor

assert monarch.actor and "forgectl.actor.forge_actor" not in sys.modules

from play_monarch import *  # noqa: E402, F403
from playing import play  # noqa: E402

if __name__ == "__main__":
    play(globals())
