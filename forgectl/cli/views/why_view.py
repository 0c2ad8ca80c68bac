"""What `forgectl why` shows to people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from forgectl.cli.views import render
from forgectl.cli.views.render import plain, state_text
from forgectl.controller.account import Account, Earlier, MeshAccount
from forgectl.controller.causes import ENDED
from forgectl.model.event import Fell
from forgectl.system.times import timestamp

KINDS = {
    "exception": "exception",
    "exit": "exit code",
    "signal": "signal",
    "out_of_memory": "out of memory",
    "hang": "hang",
    "host_lost": "host lost",
    "lease": "host out of reach",
    "time_limit": "time limit",
    "not_started": "could not start",
}
_LINES = 10
"""Most log lines that are shown; the log has them all."""
_WORDS = 100
"""Most characters that are shown of how ranks ended that are not the cause."""
_EARLIER = 5
"""Most earlier failures that are shown."""


def why_view(account: Account, redact: Callable[[str], str]) -> RenderableType:
    """The run in one line, then each mesh that failed, the first cause first. All text passes through `redact`."""
    parts: list[RenderableType] = [_head(account)]
    told = account.summary
    if not account.meshes or account.kind in ("goes_on", "not_started") or not told.startswith(account.meshes[0].mesh):
        parts.append(plain(redact(told)))
    if account.hint:
        parts.append(_pair("try", redact(account.hint)))
    if account.ranks:
        parts.append(plain(redact(account.ranks)))
    for mesh in account.meshes:
        parts += ["", *_mesh(mesh, account.run_dir, redact)]
    return Group(*parts)


def _head(account: Account) -> Text:
    head = Text.assemble("run ", (account.run, "bold"), " ")
    if account.ended_at is None:
        return head + Text.assemble("is ", state_text(account.state), f" for {render.age(account.started_at)}")
    code = f", exit code {account.exit_code}" if account.exit_code else ""
    ago, lasted = render.age(account.ended_at), render.age(account.started_at, account.ended_at)
    return head + Text.assemble(state_text(account.state), f" {ago} ago, {lasted} after its start{code}")


def _mesh(mesh: MeshAccount, run_dir: str, redact: Callable[[str], str]) -> Iterator[RenderableType]:
    failure = mesh.failure
    over = mesh.state in ("failed", "lost")
    how = (
        f"{mesh.mesh} {mesh.state}"
        if over
        else f"{mesh.mesh} is {mesh.state}; before it {'hung' if failure.kind == 'hang' else 'failed'}"
    )
    how = f"{mesh.mesh} hangs" if mesh.hangs and not over else how
    yield Text.assemble(plain(how), ": ", plain(redact(failure.message)), style="bold red" if over else "bold")
    for line in mesh.verdict:
        if line not in failure.message:
            yield Text("  ") + plain(redact(line))
    if failure.traceback:
        yield from (Text("  ") + plain(line) for line in redact(failure.traceback.rstrip()).splitlines())
    elif failure.log_tail:
        yield Text("  its last lines:", style="dim")
        yield from (Text("  │ ", style="dim") + plain(redact(line)) for line in failure.log_tail[-_LINES:])
    facts = [
        ("kind", KINDS[failure.kind] + (f", generation {failure.generation}" if failure.generation else "")),
        ("when", "" if failure.failed_at is None else timestamp(failure.failed_at, "milliseconds")),
        *(("with it", _fell(fell)) for fell in failure.fell),
        ("then", failure.policy),
        *(("before", _earlier(earlier)) for earlier in mesh.earlier[-_EARLIER:]),
        ("try", failure.hint or ""),
        ("log", str(Path(run_dir) / failure.log) if failure.log else ""),
        ("incident", mesh.incident or ""),
    ]
    yield from (_pair(name, redact(text)) for name, text in facts if text)


def _pair(name: str, text: str) -> Padding:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim", width=8)
    table.add_column(overflow="fold")
    table.add_row(name, plain(text))
    return Padding(table, (0, 0, 0, 2))


def _fell(fell: Fell) -> str:
    ranks = f"rank {fell.ranks}" if fell.count == 1 else f"ranks {fell.ranks}"
    how = fell.how if len(fell.how) <= _WORDS else f"{fell.how[:_WORDS]}…"
    return f"{ranks} fell with it: {how}" if fell.how != ENDED else f"{ranks} {ENDED}"


def _earlier(earlier: Earlier) -> str:
    first = earlier.generation - earlier.count + 1
    which = f"generation {first}" if earlier.count == 1 else f"generations {first} to {earlier.generation}"
    return f"{which}: {earlier.message} ({earlier.policy})"
