"""The requests between processes of a run: plain tuples that begin with a verb.

To ranks:

(CONSTRUCT, Surroundings of the launch, handle of the mesh, pickle of (class, args, kwargs) as frames)
(INVOKE, endpoint, args, kwargs, chain)
(STREAM, endpoint, args, kwargs, chain, caller, only rank 0's values count)
                                             begins a stream; answered at the end of its generator
(NEXT, last number of the chain)             the answer is a Batch of that stream (outflow.py)
(LEAVE, last number of the chain)            the caller leaves before the end
(ASK, endpoint, args, kwargs)                sent by `forgectl call`; the answer is plain data

To the run's driver, each with the asking process and the number of its request after the verb. KEY is a service's:

(LAUNCH, Launch, unit, SentMaking)                           → ActorHandle
(SERVE, Launch, Blueprint)                                   → ServiceHandle
(KEEP, LAUNCH or SERVE, what follows it)                     → whether it lives; for each later driver to adopt
(STOP, mesh, generation that the handle knows, grace)
(LATE, mesh, generation, which call had no answer in time)
(ROUTE, KEY, endpoint, args, kwargs, session)                → value; each argument as nested frames
(LEND, KEY, endpoint, session)                               → Grant
(PARTS, KEY, endpoint)                                       → indexes of the replicas of a fanout
(PART, index, KEY, endpoint)                                 → Grant; None: that replica was scaled away
(ENDED, index or 0, how, error)                              → Grant to call again; None: the call's own error is final
                                                               how: "answered", "raised", "unsent", or "died" with error
(BEGIN, KEY) → session, (TERMINATE, KEY, session), (SCALE, KEY, replicas), (CLOSE, KEY, timeout)
(CANCEL), (ALIVE, latest number, numbers of the requests under way)
"""

from __future__ import annotations

CONSTRUCT, INVOKE, ASK = "construct", "invoke", "ask"
STREAM, NEXT, LEAVE = "stream", "next", "leave"

LAUNCH, SERVE, KEEP, STOP, LATE = "launch", "serve", "keep", "stop", "late"
ROUTE, LEND, PARTS, PART, ENDED = "route", "lend", "parts", "part", "ended"
BEGIN, TERMINATE, SCALE, CLOSE = "begin", "terminate", "scale", "close"
CANCEL, ALIVE = "cancel", "alive"

DESK = "@desk"
"""In place of a mesh's name: where the driver listens for its requests. No mesh can have this name."""
