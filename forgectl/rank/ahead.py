"""What a fork server of actors imports besides `preload:`: ours, and all that Monarch needs and that is safe to fork.

Monarch itself is not, for it starts threads; each rank imports it after the fork, in half the time thanks to these.
"""

from __future__ import annotations

import contextlib
import importlib

MONARCHS_NEEDS = (
    *("asyncio", "cloudpickle", "concurrent.futures.thread", "http.client", "pdb", "socketserver", "urllib.request"),
    *("opentelemetry.context", "opentelemetry.metrics", "opentelemetry.trace"),
    *("pyre_extensions", "tabulate", "typing_inspect"),
    *("forgectl.actor.forge_actor", "forgectl.actor.performer", "forgectl.actor.raised"),
)

for _name in MONARCHS_NEEDS:
    with contextlib.suppress(Exception):  # another version of Monarch needs others
        importlib.import_module(_name)
