"""What ranks are asked: plain tuples, whose first part is the verb. Verbs travel as data.

(CONSTRUCT, sys.path of the caller, mesh, handle of the mesh, pickle of (class, args, kwargs) in frames)
(INVOKE, endpoint, args, kwargs, chain)
(ASK, endpoint, args, kwargs)                what `forgectl call` sends: its answer is plain data
"""

from __future__ import annotations

CONSTRUCT, INVOKE, ASK = "construct", "invoke", "ask"
