"""What test_privacy.py and test_other_users.py have scripts do where there are other users."""

from __future__ import annotations

import os
from pathlib import Path

from forgectl import ForgeError
from playing import Fast, exists, play, raised


async def begin() -> None:
    await Fast.as_actor()


async def all_kinds_of_meshes() -> None:
    c = await Fast.options(procs=2).as_actor()
    d = await Fast.options(mesh_name="d").as_actor()
    await d.ask.call(c, "add", 1)
    s = await Fast.options(num_replicas=2, mesh_name="s").as_service()
    print("up", flush=True)
    print((await c.slice(procs=0).env.call_one("FORGE_MESSAGES"))[0], flush=True)
    print(*[(await h.slice(procs=0).env.call_one("MASTER_PORT"))[0] for h in (c, d)], flush=True)
    await exists("look")
    assert list((await c.state.call()).values()) == [1, 1]
    assert await s.add.route(1) == 1


async def a_folder_that_another_user_made_is_not_used() -> None:
    c = await Fast.as_actor()
    folder = Path((await c.env.call_one("FORGE_MESSAGES"))[0] or "")
    assert folder.parent == Path(f"/tmp/forgectl-{os.getuid()}")
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    await c.shutdown()
    os.chown(folder, 65534, 65534)
    error = await raised(ForgeError, Fast.as_actor())
    assert "must be a folder of yours" in str(error), error
    os.chown(folder, 0, 0)


if __name__ == "__main__":
    play(globals())
