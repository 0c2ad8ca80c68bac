"""A driver that is restarted, whose actors are on ssh hosts."""

from __future__ import annotations

from tests.process.outputs import document_of, log_of
from tests.ssh.conftest import Far


def test_actors_on_other_hosts_outlive_their_driver(far: Far) -> None:
    for file in ("drive_far_again.py", "far_players.py"):
        far.forge.write(file, (far.programs / file).read_text())
    spec = f"hosts: {far.hosts('host1', 'host2', slots=3)}\n" + (
        "actors:\n"
        "  counter: {class: far_players:Counter, hosts: [host1], preload: []}\n"
        "  client: {class: far_players:Client, hosts: [host2], preload: []}\n"
        "services: {pool: {class: far_players:Counter, num_replicas: 2, hosts: [host2], preload: []}}\n"
        "driver: {run: drive_far_again.py, restart: {max: 3, backoff: 0}}\n"
    )
    document = document_of(far.forge.run("launch", far.forge.spec(spec), "--json"))
    run = document["run"]
    logs = [log_of(far.forge, run, "driver", generation=start) for start in range(4)]
    assert document["state"] == "succeeded", logs
    for start, log in enumerate(logs):
        assert f"start {start} " + " ".join([str(start > 0)] * 3) in log
    assert {m["mesh"]: m["generation"] for m in document["meshes"]} == {
        "counter": 0,
        "client": 0,
        "pool.0": 0,
        "pool.1": 0,
        "driver": 3,
    }
    assert (far.forge.folder / "done").read_text() == "3 ['host2', 'host2']"
