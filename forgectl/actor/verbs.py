"""The requests that ranks receive: plain tuples that begin with a verb.

(CONSTRUCT, Surroundings of the driver, handle of the mesh, pickle of (class, args, kwargs) as frames)
(INVOKE, endpoint, args, kwargs, chain)
(ASK, endpoint, args, kwargs)                sent by `forgectl call`; the answer is plain data
"""

from __future__ import annotations

CONSTRUCT, INVOKE, ASK = "construct", "invoke", "ask"
