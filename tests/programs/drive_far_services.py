"""A driver whose actors, of far_players.py, route requests and launch others on hosts other than its own."""

from __future__ import annotations

import asyncio

import forgectl
from forgectl.errors import ServiceStopped


async def main() -> None:
    pool, client = forgectl.get("pool"), forgectl.get("client")
    print("routed", await client.routed.call_one(pool, 6), flush=True)
    print("fanned out", await client.fanned.call_one(pool), flush=True)
    for session in ("user-1", "user-2"):
        there, here = await client.routed.call_one(pool, 3, session), await pool.where.route(sess_id=session)
        assert set(there) == {here}, (there, here)
    while pool.metrics()["successes"] != 6 + 3 + 6 + 2:  # whoever has a value reports that a moment later
        await asyncio.sleep(0.01)
    assert (pool.metrics()["failures"], pool.metrics()["sessions"]) == (0, 2)
    child = await client.launched.call_one("host2")
    print("launched on", await child.where.call_one(), flush=True)
    await client.ended.call_one(child)
    await pool.shutdown()
    try:
        await client.routed.call_one(pool, 1)
    except ServiceStopped as e:
        print(e, flush=True)


asyncio.run(main())
