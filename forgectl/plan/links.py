"""Which machines of a run have messengers, and which of two dials the other. Pure.

The launching machine's messenger dials all others, by ssh if it must, and passes messages between those that have no
link. Of two other machines, the first by name dials if it reaches the second; else the second dials.
"""

from __future__ import annotations

from forgectl.model.plan import HostPlan, Plan


def messengers(plan: Plan) -> tuple[HostPlan, ...]:
    """The hosts that may have a messenger, the launching machine first; none if all are one machine."""
    away = tuple(h for h in plan.hosts if not h.local)
    here = next((h for h in plan.hosts if h.local), None)
    if here is None or not away or not (plan.may_grow or any(m.stays for m in plan.meshes)):
        return ()
    return (here, *away)


def dials(one: HostPlan, other: HostPlan) -> bool:
    """Whether the messenger of one host dials the other's."""
    if one.local or other.local:
        return one.local
    first, second = sorted((one, other), key=lambda h: h.name)
    if second.name in first.reaches:
        return one is first
    return first.name in second.reaches and one is second


def direct(plan: Plan, host: HostPlan) -> tuple[str, ...]:
    """The places to which a host's messenger has a link of its own, whichever side dials."""
    others = (h for h in messengers(plan) if h is not host)
    return tuple(h.place for h in others if dials(host, h) or dials(h, host))
