"""What may be typed at a place of a command line, for completion by a shell.

It starts nothing, reaches no host, imports no module of the user's, and waits for nobody longer than SECONDS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from forgectl.cli.address import Address, KnownRun
    from forgectl.controller.run_dir import RunDir

    Items = list[CompletionItem[str]]  # type: ignore[type-arg,unused-ignore]  # generic in some versions
    Candidates = Callable[[click.Context, click.Parameter, str], Items]

SECONDS = 0.3
"""How long controllers, and after them a driver, may take to answer."""
READING_SECONDS = 0.05
"""How long final states of ended runs are read, the latest first, for the names of their meshes."""
RECENT = 10
"""Ended runs that are offered before anything of a name is typed."""
CALLED = frozenset({"actor", "service"})
"""Kinds of meshes that have endpoints."""


def names(
    *, ended: bool = False, ranks: bool = False, runs: bool = True, kinds: Iterable[str] | None = None
) -> Candidates:
    """Runs and meshes that live, or with `ended` also such as have ended lately; ranks after MESH/.

    Without `runs` no whole runs; `kinds` are those of meshes, None for all.
    """

    def candidates(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
        look = _Look(ended, ranks, runs, None if kinds is None else frozenset(kinds))
        given = ctx.params.get(param.name or "") or ()
        return _items(look.below(typed) if "/" in typed else look.top(typed), typed, given)

    return candidates


def run_ids(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
    """Living runs."""
    return _items(((run.run, "") for run in _runs()[0]), typed, ctx.params.get(param.name or "") or ())


def endpoints(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
    """Endpoints of the actor or service on the line."""
    return _items(_endpoints(ctx).items(), typed)


def keywords(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
    """Arguments of the endpoint on the line, as NAME=."""
    import ast

    signature = _endpoints(ctx).get(ctx.params.get("endpoint") or "", "()")
    try:
        [function] = ast.parse(f"def endpoint{signature}: ...").body
    except SyntaxError:  # a default or an annotation whose repr is no source
        return []
    assert isinstance(function, ast.FunctionDef)
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return _items(((f"{a.arg}=", ast.unparse(a.annotation) if a.annotation else "") for a in arguments), typed)


def generations(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
    """Generations that have logs, of the meshes on the line or else of the latest living run."""
    from forgectl.controller.run_dir import runs_folder

    named = ctx.params.get("names") or tuple(run.run for run in _runs()[0])[:1]
    meshes = [(address.run, mesh) for address in map(_meaning, named) if address for mesh in address.meshes]
    logs = (runs_folder() / run / "logs" / mesh for run, mesh in meshes)
    numbers = {int(path.name) for folder in logs for path in folder.glob("[0-9]*") if path.name.isdecimal()}
    return _items(((str(number), "") for number in sorted(numbers)), typed)


def hosts(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
    """This machine, and the hosts of the user's ssh configuration."""
    user, at, _ = typed.rpartition("@")
    found = dict.fromkeys(["local", *_ssh_hosts(Path("~/.ssh/config").expanduser())])
    return _items(((f"{user}{at}{host}", "") for host in found), typed)


def overrides(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
    """Keys of the spec on the line: those that it has, and those that it may have."""
    from forgectl.spec.document import MAX_BYTES, compose
    from forgectl.spec.overrides import keys_under
    from forgectl.spec.problems import Problems

    spec = ctx.params.get("spec")
    if "=" in typed or spec is None or not spec.is_file():
        return []
    with spec.open("rb") as file:
        root = compose(file.read(MAX_BYTES), Problems())
    path, dot, _ = typed.rpartition(".")
    found = keys_under(root, path) if root else {}
    return _items(((f"{path}{dot}{key}{'.' if more else '='}", "") for key, more in found.items()), typed)


def templates(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
    """Templates of `init`."""
    from forgectl.cli.template_names import template_names

    return _items(((name, "") for name in template_names()), typed)


def specs(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
    """YAML files, which the shell lists."""
    return _listed("spec", typed)


def files(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
    """Files, which the shell lists."""
    return _listed("file", typed)


def folders(ctx: click.Context, param: click.Parameter, typed: str) -> Items:
    """Folders, which the shell lists."""
    return _listed("dir", typed)


def _listed(kind: str, typed: str) -> Items:
    from click.shell_completion import CompletionItem

    return [CompletionItem(typed or "", type=kind)]


def _items(found: Iterable[tuple[str, str]], typed: str, given: Any = ()) -> Items:
    """Those of some values, with what is said of each, that begin as typed and are not on the line yet."""
    from click.shell_completion import CompletionItem

    fitting: dict[str, str] = {}
    for value, said in found:
        if value.startswith(typed) and value not in given:
            fitting.setdefault(value, said)
    return [CompletionItem(value, help=said) for value, said in fitting.items()]


# ------------------------------------------------------------ runs and meshes


class _Look:
    """One look at the runs, for names of some kinds."""

    def __init__(self, ended: bool, ranks: bool, runs: bool, kinds: frozenset[str] | None) -> None:
        self._ended, self._ranks, self._whole, self._kinds = ended, ranks, runs, kinds
        self._living, self._over = _runs()
        self._now = [self._offered(run) for run in _known_living(self._living, ended=ended)]

    def _offered(self, run: KnownRun) -> KnownRun:
        """The run with those of its meshes that are to be offered."""
        from forgectl.cli.address import KnownRun

        meshes = {n: m for n, m in run.meshes.items() if not m.implicit and (not self._kinds or m.kind in self._kinds)}
        return KnownRun(run.run, meshes)

    def top(self, typed: str) -> Iterator[tuple[str, str]]:
        """What may be typed without a slash, and RUN/MESH where MESH alone may mean several."""
        runs = [*self._now, *self._ended_runs()]
        known = {run.run for run in runs}
        if self._whole:
            yield from ((run.run, "run" + f": {', '.join(_targets(run, ''))}" * bool(run.meshes)) for run in runs)
        if self._whole and self._ended and typed:
            yield from ((run.run, "run") for run in self._over if run.run not in known)
        living = [target for run in self._now for target in _targets(run, typed)]
        for run in runs:
            for target, kind in _targets(run, typed).items():
                several = living.count(target) > 1
                yield f"{run.run}/{target}" if several else target, f"{kind} of {run.run}"

    def below(self, typed: str) -> Iterator[tuple[str, str]]:
        """What may be typed after RUN/, MESH/ or RUN/MESH/."""
        from forgectl.cli.address import meanings
        from forgectl.cli.find import known_ended, meant

        parent = typed.rpartition("/")[0]
        found = [(run, address) for run in self._now for address in meanings(parent, [run])]
        if not found and self._ended:
            over = (self._offered(known_ended(run)) for run in meant(parent, self._over))
            found = next(([(run, a) for a in all_] for run in over if (all_ := meanings(parent, [run]))), [])
        for run, address in found:
            if address.target is None:
                yield from ((f"{parent}/{t}", kind) for t, kind in _targets(run, typed.rpartition("/")[2]).items())
            elif self._ranks and address.rank is None and (self._whole or address.target in address.meshes):
                most = max(run.meshes[mesh].procs for mesh in address.meshes)
                yield from ((f"{parent}/{rank}", f"rank of {address}") for rank in range(most))

    def _ended_runs(self) -> Iterator[KnownRun]:
        """The runs that ended last; those that there is no time to read come without their meshes."""
        from forgectl.cli.address import KnownRun
        from forgectl.cli.find import known_ended

        end = time.monotonic() + READING_SECONDS
        for run in self._over[:RECENT] if self._ended else ():
            yield self._offered(known_ended(run)) if time.monotonic() < end else KnownRun(run.run, {})


def _runs() -> tuple[list[RunDir], list[RunDir]]:
    """Runs that live, and those that have ended, the latest first."""
    from forgectl.controller.run_dir import all_runs

    runs = [(run, run.has_ended) for run in reversed(all_runs())]
    return [run for run, ended in runs if not ended], [run for run, ended in runs if ended]


def _known_living(runs: list[RunDir], *, ended: bool) -> list[KnownRun]:
    """Living runs with their meshes, as their controllers report them at once; else with those of their plans.

    Without `ended` no meshes that have ended.
    """
    from forgectl.cli.find import known_by_plan, known_by_status
    from forgectl.controller.client import glance

    states = glance(runs, SECONDS)
    return [known_by_status(states[run.run], ended=ended) if run.run in states else known_by_plan(run) for run in runs]


def _targets(run: KnownRun, typed: str) -> dict[str, str]:
    """Meshes and services of a run → kind. Replicas only after SERVICE. was typed: there may be many."""
    from forgectl.names import service_of

    found = {}
    for name, mesh in run.meshes.items():
        service = service_of(name, mesh.kind)
        if service:
            found[service] = mesh.kind
        if not service or typed.startswith(f"{service}."):
            found[name] = mesh.kind
    return {name: kind for name, kind in found.items() if name.startswith(typed)}


def _meaning(text: str) -> Address | None:
    """What a name on the line stands for, as `find` has it."""
    from forgectl.cli.address import resolve
    from forgectl.cli.find import known_ended, meant

    living, over = _runs()
    return resolve(text, _known_living(living, ended=True), map(known_ended, meant(text, over)))


def _endpoints(ctx: click.Context) -> dict[str, str]:
    """Endpoint → signature, of the actor or service on the line. Its run's driver knows them."""
    from forgectl.cli.driver_client import ask_driver
    from forgectl.controller.run_dir import RunDir, runs_folder
    from forgectl.protocol.endpoint_calls import Endpoints, GetEndpoints

    address = _meaning(ctx.params.get("mesh") or "")
    if address is None:
        return {}
    run = RunDir.existing(runs_folder() / address.run)
    there = ask_driver(run, GetEndpoints(), Endpoints, SECONDS / 2, greeting=SECONDS / 2).targets
    return there.get(address.target or "", {})


# ------------------------------------------------------------ hosts


def _ssh_hosts(config: Path, depth: int = 2) -> Iterator[str]:
    """The hosts that an ssh configuration names, also in files that it includes."""
    try:
        lines = config.read_text(errors="replace").splitlines() if config.is_file() else []
    except OSError:
        return
    for line in lines:
        key, *values = line.replace("=", " ", 1).split()[:64] or [""]
        if key.lower() == "host":
            yield from (value for value in values if not set(value) & set("*?!"))
        elif key.lower() == "include" and depth:
            for value in values:
                pattern = Path(value).expanduser()
                root = pattern.anchor or str(Path("~/.ssh").expanduser())
                for path in sorted(Path(root).glob(str(pattern.relative_to(pattern.anchor)))):
                    yield from _ssh_hosts(path, depth - 1)
