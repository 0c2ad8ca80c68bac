"""`forgectl check` of hosts that are really there, and of some that are not."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Iterator
from typing import Any

from tests.conftest import until
from tests.ssh.conftest import Far

SCRIPT = "scripts: {x: {command: 'true', procs: 2, hosts: 2}}"


def check(far: Far, body: str, *names: str, code: int = 0, **settings: object) -> dict[str, Any]:
    """The document of `forgectl check --json`, which ends with `code`."""
    spec = far.forge.spec(far.spec(body, *names, **settings))
    done = far.forge.run("check", spec, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["exit_code"] == code
    return document


def said(document: dict[str, Any], severity: str) -> list[tuple[str, str]]:
    return [(",".join(f["hosts"]), f["message"]) for f in document["findings"] if f["severity"] == severity]


def test_hosts_that_are_sound(far: Far) -> None:
    document = check(far, SCRIPT)
    assert said(document, "error") == []
    assert [(h["name"], h["reached"]) for h in document["hosts"]] == [(name, True) for name in far.lab.names]
    for host in document["hosts"]:
        own = host["found"]["interpreters"][""]
        assert own["executable"] == sys.executable
        assert own["packages"]["psutil"]
        assert far.lab.address(host["name"]) in host["found"]["addresses"]
        assert abs(host["clock_ahead"]) <= host["clock_within"] + 0.001  # they have this machine's clock
    pairs = {(r["from"], r["to"]) for r in document["reach"]}
    assert pairs == {(a, b) for a in far.lab.names for b in far.lab.names if a != b}
    assert all(None in r["addresses"].values() for r in document["reach"])
    text = far.forge.ok("check", far.forge.spec(far.spec(SCRIPT)))
    assert text.startswith(f"on all {len(far.lab.names)} hosts: python 3.")
    assert text.splitlines()[-1].startswith(f"ready: {len(far.lab.names)} hosts")


def relay_has_ended(far: Far, name: str) -> bool:
    return not far.lab.listening(name)


def test_nothing_is_started_and_nothing_stays(far: Far) -> None:
    check(far, SCRIPT)
    assert not far.forge.runs()
    for name in far.lab.names:
        until(functools.partial(relay_has_ended, far, name), f"the end of the relay on {name}")
        assert not far.lab.files(name, "/var/tmp/forgectl-*/runs/*")


def test_hosts_that_cannot_be_reached_are_told_together_and_the_others_examined(far: Far) -> None:
    document = check(far, SCRIPT, "host1", "refusing", "denied", "stranger", code=77)
    errors = dict(said(document, "error"))
    assert errors.keys() == {"refusing", "denied", "stranger"}
    assert "Connection refused" in errors["refusing"]
    assert errors["denied"].startswith("ssh refused")
    assert errors["stranger"].startswith("ssh refused: its key is not known")
    assert [h["reached"] for h in document["hosts"]] == [True, False, False, False]
    assert said(check(far, SCRIPT, "host1", "refusing", code=69), "error")[0][0] == "refusing"


def test_what_an_interpreter_lacks_is_told_with_the_cure(far: Far) -> None:
    body = "scripts: {x: {module: x, procs: 2, hosts: 2, python: /no/such}}\nactors: {a: {class: players:Counter}}"
    document = check(far, body, "host1", "host2", code=69)
    assert ("host1,host2", "cannot run /no/such: No such file or directory") in said(document, "error")


@contextlib.contextmanager
def shut(far: Far, name: str, source: str) -> Iterator[None]:
    """`name` accepts no connection from another host, while ssh from here gets through."""
    drop = f"ip saddr {far.lab.address(source)} tcp flags & (syn|ack) == syn drop"
    far.lab.run(
        name, ["nft", f"table inet shut {{ chain c {{ type filter hook input priority 0; {drop}; }}; }}"], check=True
    )
    try:
        yield
    finally:
        far.lab.run(name, ["nft", "delete table inet shut"], check=True)


def test_a_host_that_others_do_not_reach_is_an_error_where_a_mesh_needs_it(far: Far) -> None:
    with shut(far, "host2", source="host1"):
        unreached = ("host1", f"does not reach host2 at {far.lab.address('host2')}: no answer within 3 s")
        document = check(far, SCRIPT.replace("hosts: 2", "hosts: [host1, host2]"), code=69)
        assert said(document, "error") == [unreached]
        document = check(far, SCRIPT.replace("hosts: 2", "hosts: [host1, host3]"))
        assert (said(document, "error"), unreached in said(document, "warning")) == ([], True)


def test_two_names_of_one_host_are_noted(far: Far) -> None:
    notes = dict(said(check(far, SCRIPT, "host1", "twin"), "note"))
    assert notes["host1,twin"] == "are one machine, whose cores and GPUs they share"


def test_a_spec_that_does_not_fit_is_told_after_the_hosts_were_seen(far: Far) -> None:
    body = "scripts: {x: {command: 'true', with_gpus: true, procs: 64}}"
    document = check(far, body, "host1", code=65)
    assert [f["message"] for f in document["findings"] if f["code"] == 65] == [
        f"{far.forge.folder}/spec.yaml:4:56: scripts.x.procs: wants 64 GPUs, but host1 has no GPU"
    ]
