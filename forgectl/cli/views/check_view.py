"""What `forgectl check` shows: what hosts have in common, where they differ, then the findings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from forgectl.cli.host_check.findings import SEVERITIES, Finding, exit_code
from forgectl.cli.host_check.skew import Folded, facts_of, fold
from forgectl.cli.views.render import plain
from forgectl.spec.nodelist import compress
from forgectl.wire.codec import to_json

if TYPE_CHECKING:
    from forgectl.protocol.host_survey import Examination
    from forgectl.transport.examinations import Examined, Reach

STYLE = {"error": "bold red", "warning": "yellow", "note": "dim"}


def check_json(
    spec: str, hosts: Sequence[str], examined: Mapping[str, Examined], reach: Reach, findings: Sequence[Finding]
) -> dict[str, Any]:
    """Everything that was found, as one JSON document."""
    return {
        "schema_version": 1,
        "spec": spec,
        "exit_code": exit_code(findings),
        "hosts": [
            {
                "name": name,
                "reached": name in examined,
                "clock_ahead": examined[name].ahead if name in examined else None,
                "clock_within": examined[name].within if name in examined else None,
                "found": _flat(examined[name].found) if name in examined else None,
            }
            for name in hosts
        ],
        "reach": [{"from": start, "to": to, "addresses": tried} for (start, to), tried in sorted(reach.items())],
        "findings": [to_json(finding) for finding in findings],
    }


def _flat(found: Examination) -> dict[str, Any]:
    """What was found on a host, as one object."""
    document: dict[str, Any] = to_json(found)
    facts = {k: v for k, v in document.pop("facts").items() if k not in ("name", "workdir")}
    return {**document, "boot_id": facts.pop("machine"), **facts}


def check_table(hosts: Sequence[str], examined: Mapping[str, Examined], findings: Sequence[Finding]) -> RenderableType:
    """The same as tables for people, at 80 columns and more."""
    folded = fold({name: facts_of(examined[name]) for name in hosts if name in examined})
    parts: list[RenderableType] = []
    if folded.alike:
        parts += [_alike(folded, [name for name in hosts if name in examined], len(hosts)), ""]
    if folded.apart:
        parts += [_apart(folded), ""]
    if findings:
        parts += [_findings(findings, hosts), ""]
    return Group(*parts, _verdict(findings, len(hosts), len(examined)))


def _alike(folded: Folded, reached: Sequence[str], count: int) -> Text:
    which = f"all {len(reached)} hosts" if len(reached) > 1 else reached[0]
    if 1 < len(reached) < count:
        which += " that were reached"
    facts = ", ".join(f"{what} {value}" for what, value in folded.alike.items())
    return Text.assemble((f"on {which}: ", "bold"), plain(facts))


def _apart(folded: Folded) -> Table:
    """A row for each value; the values of most hosts come first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("FACT", "VALUE", "HOSTS"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "FACT")
    for what, values in folded.apart.items():
        for i, (value, hosts) in enumerate(values.items()):
            table.add_row(plain("" if i else what), plain(value), _names(hosts))
    return table


def _findings(findings: Sequence[Finding], hosts: Sequence[str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        names = "all hosts" if len(hosts) > 1 and set(finding.hosts) == set(hosts) else _names(finding.hosts).plain
        text = plain(f"{names}: {finding.message}" if names else finding.message)
        if finding.hint:
            text.append("\nhint: ", style="dim").append(plain(finding.hint))
        table.add_row(Text(finding.severity, style=STYLE[finding.severity]), text)
    return table


def _names(hosts: Sequence[str]) -> Text:
    """The short form of names. A line may break after each comma outside brackets."""
    return plain(re.sub(r",(?![^\[]*\])", ", ", compress(hosts)))


def _verdict(findings: Sequence[Finding], hosts: int, reached: int) -> Text:
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    summary = ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity, n in counts.items() if n)
    s = "s" * (hosts > 1)
    if counts["error"]:
        return Text(f"not ready: {summary}; {reached} of {hosts} host{s} reached", style="bold red")
    return Text(f"ready: {hosts} host{s}" + (f", {summary}" if summary else ""), style="green")
