"""Calls to an actor on another host, asked for as in one_side.py.

`far_calls.py forgectl SOCKET` is the driver of a run, which takes its questions from SOCKET. `far_calls.py monarch
ADDRESS WORKER` is Monarch's client at ADDRESS. `far_calls.py worker ADDRESS:PORT` is the worker that Monarch needs.
"""
# mypy: allow-subclassing-any, allow-untyped-decorators

import asyncio
import sys

from one_side import Side, by_standard_streams, perform


class Forgectl(Side):
    async def launch(self, n: int = 1) -> None:
        import forgectl

        self.actor = forgectl.get("echo")


class Monarch(Side):
    def __init__(self, address: str, worker: str) -> None:
        self.address, self.worker = address, worker

    async def launch(self, n: int = 1) -> None:
        import monarch.actor

        class Plain(monarch.actor.Actor):  # sent by value
            def __init__(self) -> None:
                import torch  # noqa: F401  (as ours does)

            @monarch.actor.endpoint
            async def echo(self, n: int) -> int:
                return n

        monarch.actor.unhandled_fault_hook = lambda failure: None  # the default one ends this process
        monarch.actor.enable_transport(f"tls://{self.address}:0")
        hosts = monarch.actor.attach_to_workers(ca="trust_all_connections", workers=[f"tls://{self.worker}"], name="w")
        self.actor = hosts.spawn_procs(per_host={"procs": n}).spawn("plain", Plain)
        await self.actor.initialized


async def by_socket(side: Side, path: str) -> None:
    """Take questions from the socket at `path`."""
    lines, answers = await asyncio.open_unix_connection(path)
    await perform(side, lines, lambda answer: answers.write(answer.encode()))


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "worker":
        from monarch.actor import run_worker_loop_forever

        run_worker_loop_forever(address=f"tls://{arguments[0]}", ca="trust_all_connections")
    elif what == "monarch":
        asyncio.run(by_standard_streams(Monarch(*arguments)))
    else:
        asyncio.run(by_socket(Forgectl(), *arguments))


if __name__ == "__main__":
    main()
