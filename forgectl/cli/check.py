"""`forgectl check`: examines all hosts of a spec before anything is launched on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forgectl.cli import parameters

if TYPE_CHECKING:
    from forgectl.cli.host_check.findings import Finding, Target
    from forgectl.cli.host_check.wants import Wants
    from forgectl.model.plan import Plan
    from forgectl.protocol.host_survey import Examine
    from forgectl.spec.model import Host, Spec
    from forgectl.transport.addresses import Pairs
    from forgectl.transport.examinations import Examined, Reach
    from forgectl.transport.survey import Hosts


@parameters.command(
    codes=(65, 66, 69, 75, 77),
    variables=("FORGECTL_SSH", "FORGECTL_GPU_LOCK_DIR"),
    examples={
        "forgectl check": "the hosts of this folder's forge.yaml",
        "forgectl check sft.yaml --json": "all that was found",
    },
)
@parameters.spec
@parameters.overrides
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found as JSON.")
def check(spec: Path | None, overrides: tuple[str, ...], as_json: bool) -> int:
    """Examine all hosts of SPEC, and start nothing.

    It shows whether they can be reached, also by each other; their Python, torch, CUDA, NCCL and pyzmq; their GPUs
    and who uses them; their clocks, disks and limits. To find out, it runs each `python:` that SPEC names, here and on
    its hosts: do not check a spec whose programs you would not run. It exits with 0 if nothing prevents a launch, else
    with the code of the worst problem.
    """
    import os
    import sys

    from forgectl.cli.begin import spec_file
    from forgectl.cli.host_check.findings import exit_code
    from forgectl.cli.interpreters import modules_of
    from forgectl.cli.views.check_view import check_json, check_table
    from forgectl.cli.views.json_text import json_text
    from forgectl.cli.views.render import show
    from forgectl.spec.load import load

    loaded = load(spec_file(spec, "check"), overrides=overrides, environ=os.environ, interpreters=modules_of)
    examined, reach, findings = look_at(loaded)
    names = [host.name for host in loaded.all_hosts]
    if as_json:
        document = check_json(loaded.source, names, examined, reach, findings)
        sys.stdout.write(json_text(document))
    else:
        show(check_table(names, examined, findings))
    return exit_code(findings)


def look_at(spec: Spec) -> tuple[dict[str, Examined], Reach, list[Finding]]:
    """What was found on each host, which hosts reach each other, and the findings."""
    from forgectl.cli.host_check import findings
    from forgectl.cli.host_check.wants import wants_of
    from forgectl.cli.views.host_news import no_answer_yet
    from forgectl.transport.examinations import examine_all
    from forgectl.transport.survey import Hosts

    wants = wants_of(spec)
    targets = {host.name: _target(host) for host in spec.all_hosts}
    with Hosts() as hosts:
        requests = {host.name: _request(host, spec, wants[host.name]) for host in spec.all_hosts}
        examined, errors = examine_all(spec.all_hosts, requests, hosts, no_answer_yet)
        found = [findings.of_error((name,), error) for name, error in errors.items()]
        found += findings.of_hosts(targets, examined, wants)
        plan = None
        if not errors and not any(e.found.no_such_gpu for e in examined.values()):
            plan, trouble = _placed(spec, examined)
            found += trouble
        reach, trouble = _reach(spec, plan, examined, hosts)
        found += trouble
    return examined, reach, findings.in_order(found)


def _target(host: Host) -> Target:
    import sys

    from forgectl.cli.host_check.findings import Target

    ssh = None if host.local else host.ssh or host.name
    return Target(host.name, ssh, host.python or (sys.executable if host.local else "python3"))


def _request(host: Host, spec: Spec, wants: Wants) -> Examine:
    from forgectl.cli.host_check.wants import OWN
    from forgectl.protocol.host_survey import Examine

    copied = not host.local and spec.sync == "content"
    return Examine(
        host.name,
        host.gpus,
        workdir="" if copied else str(spec.workdir),
        python=(host.python or "") if host.local else "",  # by ssh, `python:` is the interpreter that answers
        pythons=tuple(python for python in wants.packages if python != OWN),
    )


def _placed(spec: Spec, examined: Mapping[str, Examined]) -> tuple[Plan | None, list[Finding]]:
    """The plan that a launch would make now, or the findings that prevent it."""
    import sys
    from dataclasses import replace

    from forgectl.cli.host_check import findings
    from forgectl.errors import BusyError, SpecError
    from forgectl.plan.placement import place

    facts = {host.name: replace(examined[host.name].found.facts, name=host.name) for host in spec.all_hosts}
    try:
        return place(spec, facts, python=sys.executable), []
    except SpecError as e:
        return None, list(findings.of_spec(e))
    except BusyError as e:
        return None, [findings.of_error((), e)]


def _reach(
    spec: Spec, plan: Plan | None, examined: Mapping[str, Examined], hosts: Hosts
) -> tuple[Reach, list[Finding]]:
    from forgectl.cli.host_check import findings
    from forgectl.errors import ForgeError
    from forgectl.transport.addresses import needed_pairs
    from forgectl.transport.examinations import pairs_of, reach_each_other

    networks = {name: e.found.facts.network for name, e in examined.items()}
    wanted: Pairs | None = needed_pairs(plan, networks) if plan else None
    pairs = pairs_of(networks, [host.name for host in spec.hosts if not host.local and host.name in examined])
    given = {host.name: host.address for host in spec.hosts if host.address}
    try:
        reach = reach_each_other(pairs | (wanted or set()), examined, given, hosts)
    except ForgeError as e:
        return {}, [findings.of_error((), e)]
    return reach, list(findings.of_reach(reach, wanted))
