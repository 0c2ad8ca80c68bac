"""No other user of a machine gets at a run's actors: tried as a real second user."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Forge, listening_ports, processes_of, processes_with
from tests.process.actor_scripts import background, play, the_run
from tests.process.other_user import as_another_user


def sockets_of(pids: set[int]) -> dict[str, bool]:
    """Name of every Unix socket that one of these has → whether it listens; abstract ones begin with "@"."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(fd))
            except OSError:
                continue
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    found: dict[str, bool] = {}
    for row in rows:  # of a connection that was accepted the name is that of the listening socket
        if len(row) > 7 and f"socket:[{row[6]}]" in inodes:
            found[row[7]] = found.get(row[7], False) or int(row[3], 16) & 0x10000 != 0
    return found


@pytest.fixture
def forge(forge: Forge) -> Iterator[Forge]:
    """One whose home has a short name, so that all of its sockets are there, and in no folder that others share."""
    own = forge.home
    with tempfile.TemporaryDirectory(prefix="forge-") as folder:
        forge.home = Path(folder) / "home"
        forge.env["FORGECTL_HOME"] = str(forge.home)
        yield forge
        forge.run("shutdown", "--all", "--force")
        assert not processes_with(f"FORGECTL_HOME={forge.home}")
        forge.home = own


def test_nothing_of_a_run_can_be_connected_to_by_others(forge: Forge) -> None:
    script = background(forge, "play_privately.py all_kinds_of_meshes")
    assert script.stdout
    messages = Path(script.stdout.readline().strip())
    ports = {int(p) for p in script.stdout.readline().split()}
    pids = {*processes_of(the_run(forge)), script.pid}
    sockets = sockets_of(pids)
    listening = sorted(name for name, listens in sockets.items() if listens)
    assert not [name for name in sockets if name.startswith("@")]
    called = [name for name in listening if Path(name).parent == messages and Path(name).name.count(".") == 2]
    assert len(called) == 6  # five ranks, and the driver, which actors ask for launches and replicas
    for name in listening:
        path = Path(name)
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, name
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, name
    assert {address for address, _ in listening_ports(pids)} == {"127.0.0.1"}
    stores = {port for _, port in listening_ports(pids)}
    assert ports <= stores
    assert len(stores) == 4  # a mesh each: nothing but rendezvous stores
    found = as_another_user("unix", *listening)
    assert set(map(tuple, found.values())) == {("PermissionError", "refused")}
    (forge.folder / "look").touch()
    _, err = script.communicate(timeout=60)
    assert script.returncode == 0, err


def test_the_uid_of_a_peer_is_checked_should_the_folder_ever_be_open(forge: Forge) -> None:
    """Two locks: here the first is opened on purpose."""
    script = background(forge, "play_privately.py all_kinds_of_meshes")
    assert script.stdout
    messages = Path(script.stdout.readline().strip())
    script.stdout.readline()
    for folder in (messages, *messages.parents):
        if folder.is_relative_to(forge.home.parent):
            folder.chmod(0o755)
    ranks = [str(p) for p in messages.iterdir() if p.name.count(".") == 2]
    for rank in ranks:
        Path(rank).chmod(0o777)
    found = as_another_user("unix", *ranks)
    assert set(map(tuple, found.values())) == {("connected", "refused")}
    messages.chmod(0o700)  # where it is open, our own processes connect to nobody any more
    for folder in messages.parents:
        if folder.is_relative_to(forge.home.parent):
            folder.chmod(0o700)
    (forge.folder / "look").touch()
    _, err = script.communicate(timeout=60)
    assert script.returncode == 0, err


def test_a_folder_that_another_user_made_is_not_used(forge: Forge) -> None:
    """Where sockets have to be in /tmp, since the run's own folder has too long a name."""
    if os.getuid() != 0:
        pytest.fail("a second user takes root")
    forge.home = forge.home / ("x" * 60)
    forge.env["FORGECTL_HOME"] = str(forge.home)
    play(forge, "play_privately.py a_folder_that_another_user_made_is_not_used")
