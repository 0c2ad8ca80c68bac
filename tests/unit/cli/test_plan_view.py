"""What `forgectl plan` shows of a plan."""

from __future__ import annotations

import json

from forgectl.cli.views.plan_view import plan_json, plan_table
from forgectl.model.environment import AT_LAUNCH
from forgectl.model.plan import Plan
from forgectl.wire.codec import from_json, to_json
from tests.unit.cli.printing import printed
from tests.unit.plan.plan_cases import hosts_of, placed, spec_of

SPEC = """
hosts: [{name: a, local: true}, {name: b, local: true}]
env: {PLAIN: "yes", LONG: "%s", "EVIL": "\\e]52;c;aGk=\\a[red]x[/red]\\n\\u202e"}
secrets: [HF_TOKEN]
actors: {trainer: {class: actors.trainer:Trainer, procs: 4, hosts: 2, with_gpus: true, restart: {max: 3, within: 10m}}}
scripts: {tidy: {command: [sh, -c, "echo hi there"], hosts: [b]}}
"""


def planned() -> Plan:
    spec = spec_of(SPEC % ("long" * 40), environ={"HF_TOKEN": "sesame-open"})
    return placed(spec, hosts_of("a:4 b:4")[1], inherited={"HF_TOKEN": "sesame-open"})


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_each_mesh_has_a_line_and_each_rank_has_one() -> None:
    lines = rows(printed(plan_table(planned()), width=120))
    assert "MESH KIND PROCS HOSTS GPUS RESTARTS RUNS" in lines
    assert "trainer actor 4 a, b 4 3 in 10m actors.trainer:Trainer" in lines
    assert "tidy script 1 b - never sh -c 'echo hi there'" in lines
    assert "trainer on b: 2 of 4 ranks, fork from /usr/bin/python3, preload torch?" in lines
    assert "tidy on b: 1 rank, fork from /usr/bin/python3" in lines
    assert "3 1 H200 RANK=3 LOCAL_RANK=1 ROLE_RANK=3" in lines
    assert "0 - RANK=0 LOCAL_RANK=0 ROLE_RANK=0" in lines


def test_the_driver_that_a_spec_does_not_have_is_not_shown() -> None:
    plan = placed(spec_of("actors: {one: {class: mine:One}}"), hosts_of("local:0")[1])
    assert [mesh.mesh for mesh in plan.meshes] == ["one", "driver"]
    assert "driver" not in printed(plan_table(plan), width=120)


def test_what_becomes_of_failures_is_shown_where_it_is_not_the_default() -> None:
    spec = """
on_failure: continue
scripts:
  a: {module: a, restart: {max: 3, backoff: 5s}, time_limit: 90m}
  b: {module: b, restart: {max: 3, within: 1h, backoff: 0, on: [host_lost]}}
"""
    plan = placed(spec_of(spec), hosts_of("local:0")[1])
    lines = rows(printed(plan_table(plan), width=120))
    assert [line.split(" ", 5)[5] for line in lines[1:3]] == [
        "3, backoff 5s -m a",
        "3 in 1h, at once, on host_lost -m b",
    ]
    assert "on_failure: continue (the other meshes go on)" in lines
    assert any(line.startswith("a on local: 1 rank, fork from") and line.endswith(", time limit 90m") for line in lines)
    assert not any("time limit" in line for line in lines if line.startswith("b on"))
    assert from_json(Plan, json.loads(json.dumps(to_json(plan)))) == plan


def test_every_variable_is_shown_once_for_a_mesh_on_a_host() -> None:
    plan = planned()
    text = printed(plan_table(plan), width=200)
    for mesh in (m for m in plan.meshes if m.kind != "driver"):
        for host in mesh.hosts:
            section = text.split(f"{mesh.mesh} on {host}: ")[1].split(" on ")[0]
            rank = mesh.ranks_on(host)[0]
            for name in {*mesh.env[host], *rank.env, *AT_LAUNCH, "HF_TOKEN"} - {
                "RANK",
                "LOCAL_RANK",
                "ROLE_RANK",
            }:
                assert section.replace("=", " ").split().count(name) == 1, (mesh.mesh, host, name)
    assert "(at launch)" in text


def test_secrets_are_named_but_never_told() -> None:
    plan = planned()
    assert "HF_TOKEN ***" in rows(printed(plan_table(plan)))
    assert "sesame" not in printed(plan_table(plan)) + json.dumps(plan_json(plan))


def test_it_fits_in_80_columns_and_loses_nothing_there() -> None:
    text = printed(plan_table(planned()))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "long" * 40 in "".join(text.split())


def test_nothing_in_a_spec_reaches_the_terminal_as_an_escape_or_markup() -> None:
    text = printed(plan_table(planned()), width=200)
    assert all(c.isprintable() for line in text.splitlines() for c in line)
    assert r"\x1b]52;c;aGk=\x07[red]x[/red]\n\u202e" in text


def test_json_holds_the_whole_plan() -> None:
    plan = planned()
    document = json.loads(json.dumps(plan_json(plan)))
    assert document.pop("schema_version") == 1
    assert set(document.pop("at_launch")) == set(AT_LAUNCH)
    assert from_json(Plan, document) == plan
