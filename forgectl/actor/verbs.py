"""The requests that ranks receive: plain tuples that begin with a verb.

(CONSTRUCT, Surroundings of the driver, handle of the mesh, pickle of (class, args, kwargs) as frames)
(INVOKE, endpoint, args, kwargs, chain)
(STREAM, endpoint, args, kwargs, chain, caller, only rank 0's values count)
                                             begins a stream; answered at the end of its generator
(NEXT, last number of the chain)             the answer is a Batch of that stream (outflow.py)
(CLOSE, last number of the chain)            the caller leaves before the end
(ASK, endpoint, args, kwargs)                sent by `forgectl call`; the answer is plain data
"""

from __future__ import annotations

CONSTRUCT, INVOKE, ASK = "construct", "invoke", "ask"
STREAM, NEXT, CLOSE = "stream", "next", "close"
