"""A short notation for specs, hosts and plans, so that cases of placement can be read at a glance.

Hosts: `a:4` has GPUs 0 to 3; `a:4!1` has GPU 1 in somebody's hands; `a:4#2` has 2 slots; `b=a:4` is another name
for a's machine.
Meshes: `x:4` wants 4 GPUs; `x:4/2` on 2 hosts; `x:4@b+a` on b and a; `x:4-` 4 ranks without GPUs.
Plans: `x=a01,b01` says that x has GPUs 0 and 1 of a, then 0 and 1 of b; `x=a` that it has none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forgectl.model.plan import Gpu, HostFacts, Plan
from forgectl.plan.placement import place
from forgectl.spec.load import parse
from forgectl.spec.model import Spec

HOLDER = "run other-1a2b, mesh m"
CORES = 16


def spec_of(text: str, environ: dict[str, str] | None = None) -> Spec:
    return parse(text.encode(), source="spec.yaml", folder=Path("/"), environ=environ or {})


def _groups(pattern: str, word: str) -> Sequence[Any]:
    match = re.fullmatch(pattern, word)
    assert match is not None, word
    return match.groups()


def hosts_of(notation: str) -> tuple[str, dict[str, HostFacts]]:
    """The `hosts:` line of a spec, and the facts."""
    facts: dict[str, HostFacts] = {}
    entries = []
    for word in notation.split():
        pattern = r"(\w+)(?:=(\w+))?:(\d+)(?:!(\d+))?(?:#(\d+))?"
        name, machine, count, held, slots = _groups(pattern, word)
        machine = machine or name
        gpus = tuple(
            Gpu(str(i), f"GPU-{machine}-{i}", "H200", HOLDER if str(i) in (held or "") else None)
            for i in range(int(count))
        )
        facts[name] = HostFacts(name, machine, CORES, gpus)
        entries.append(f"{{name: {name}, local: true{f', slots: {slots}' if slots else ''}}}")
    return f"hosts: [{', '.join(entries)}]\n", facts


def case(hosts: str, meshes: str, more: str = "") -> tuple[Spec, dict[str, HostFacts]]:
    """The spec and the facts; `more` is added to the spec."""
    line, facts = hosts_of(hosts)
    text = f"{line}scripts:\n"
    for word in meshes.split():
        name, procs, cpu, count, named = _groups(r"(\w+):(\d+)(-)?(?:/(\d+))?(?:@([\w+]+))?", word)
        on = f", hosts: {count}" if count else f", hosts: [{named.replace('+', ', ')}]" if named else ""
        text += f"  {name}: {{command: 'true', procs: {procs}, with_gpus: {str(not cpu).lower()}{on}}}\n"
    return spec_of(text + more), facts


def placed(spec: Spec, facts: dict[str, HostFacts], **more: Any) -> Plan:
    return place(spec, facts, python="/usr/bin/python3", **more)


def notation_of(plan: Plan) -> str:
    def on(mesh: Any, host: str) -> str:
        return host + "".join(g.visible for g in mesh.gpus[host])

    return " ".join(f"{m.mesh}={','.join(on(m, h) for h in m.hosts)}" for m in plan.meshes)
