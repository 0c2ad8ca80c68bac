"""Checks of a spec's values against each other: names, hosts, environments, processes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from forgectl.model.plan import MAX_RANKS
from forgectl.names import DRIVER, NAME
from forgectl.spec.model import Document, Driver, Host, Mesh, Script, Service
from forgectl.spec.problems import Problems, show, step
from forgectl.spec.scalars import NAME_RULE

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REPLICA = re.compile(r"(.+)\.(0|[1-9][0-9]{0,8})", re.DOTALL)
_RANK_VARIABLES = frozenset(
    (
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
        *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
        *("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RUN_ID"),
        *("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_ERROR_FILE"),
    )
)


@dataclass
class Checks:
    """Checks `document`, which was made from `data` without its wrong values.

    `broken` has the paths of those values, so that their absence is not reported as a problem.
    """

    document: Document
    data: dict[str, Any]
    environ: Mapping[str, str]
    problems: Problems
    broken: set[str] = field(default_factory=set)

    def run(self) -> None:
        self._something_to_launch()
        self._hosts()
        self._mesh_names()
        for where, mesh in self.meshes:
            self._spread(where, mesh)
            if isinstance(mesh, Script):
                self._one_program(where, mesh)
        if self.document.driver:
            self._one_program("driver", self.document.driver)
        for name, service in self.document.services.items():
            self._replicas(name, service)
        self._sharing()
        self._spares()
        self._total()
        for where, env, pinned in self._environments():
            self._environment(where, env, pinned)
        self._secrets()

    def sound(self, *paths: str) -> bool:
        return self.broken.isdisjoint(paths) and self.problems.unreadable.isdisjoint(paths)

    @cached_property
    def meshes(self) -> list[tuple[str, Mesh]]:
        """All meshes except the driver's, with their paths."""
        document = self.document
        groups: dict[str, Mapping[str, Mesh]] = {
            "actors": document.actors,
            "services": document.services,
            "scripts": document.scripts,
        }
        return [(step(kind, name), mesh) for kind, group in groups.items() for name, mesh in group.items()]

    @cached_property
    def hosts(self) -> dict[str, Host]:
        return {host.name: host for host in self.document.hosts}

    def _something_to_launch(self) -> None:
        kinds = ("actors", "services", "scripts", "driver")
        if not any(self.data.get(kind) for kind in kinds) and self.sound(*kinds):
            self.problems.add("", "nothing to launch: name a mesh under scripts, actors or services, or a driver")

    def _hosts(self) -> None:
        first: dict[str, int] = {}
        for i, host in enumerate(self.document.hosts):
            where = step("hosts", i)
            if host.name in first:
                name = f"{where}.name" if f"{where}.name" in self.problems.places else where
                self.problems.add(name, f"the name {show(host.name)} is taken by hosts.{first[host.name]}")
            first.setdefault(host.name, i)
            if host.local and host.ssh:
                self.problems.add(f"{where}.ssh", "a local host is not reached by ssh; drop ssh or local")
            if host.local and host.root:
                self.problems.add(f"{where}.root", "a local host has its files in the run's own folder; drop root")
            if host.name == "local" and not host.local and self.sound(f"{where}.local"):
                self.problems.add(where, "the name 'local' is reserved for this machine; choose another")

    def _mesh_names(self) -> None:
        seen = {DRIVER: "the run's driver"}
        for kind in ("actors", "services", "scripts"):
            group = self.data.get(kind)
            for name in group if isinstance(group, dict) else ():
                where = step(kind, name)
                if not NAME.fullmatch(name):
                    self.problems.add(where, f"{show(name)} is not a name for a mesh: {NAME_RULE}", at_key=True)
                if name in seen:
                    self.problems.add(where, f"the name {show(name)} is taken by {seen[name]}", at_key=True)
                seen.setdefault(name, where)
        for name, where in seen.items():
            match = _REPLICA.fullmatch(name)
            service = self.document.services.get(match[1]) if match else None
            if match and service and int(match[2]) < service.num_replicas:
                message = f"{show(name)} is also a replica of the service {show(match[1])}"
                self.problems.add(where, message, at_key=True)

    def _replicas(self, name: str, service: Service) -> None:
        last = f"{name}.{service.num_replicas - 1}"
        if NAME.fullmatch(name) and not NAME.fullmatch(last):
            message = f"too long a name for its replicas: the last has {len(last)} characters, over 63"
            self.problems.add(step("services", name), message, at_key=True)

    def _spread(self, where: str, mesh: Mesh) -> None:
        wanted: Collection[str] = self.hosts.keys()
        if isinstance(mesh.hosts, int):
            self._evenly(where, mesh.procs, mesh.hosts)
        elif mesh.hosts is not None:
            wanted = mesh.hosts
            self._evenly(where, mesh.procs, len(mesh.hosts))
            for i, name in enumerate(mesh.hosts):
                if name not in self.hosts and self.sound("hosts"):
                    at = step(f"{where}.hosts", i)
                    self.problems.add(at, f"no host {show(name)} in hosts", near=(name, self.hosts))
        if mesh.with_gpus and self.sound("hosts", f"{where}.hosts", f"{where}.with_gpus"):
            without = self.without_gpus
            if len(wanted) <= len(without) and without.issuperset(wanted):
                self.problems.add(f"{where}.with_gpus", "wants GPUs, but all its hosts have gpus: none")

    @cached_property
    def without_gpus(self) -> frozenset[str]:
        """The hosts whose `gpus` says that they have none."""
        hosts = enumerate(self.document.hosts)
        return frozenset(h.name for i, h in hosts if h.gpus in ("none", 0, ()) and self.sound(f"hosts.{i}.gpus"))

    def _evenly(self, where: str, procs: int, hosts: int) -> None:
        if procs % hosts and self.sound(f"{where}.procs", f"{where}.hosts"):
            near = max(procs - procs % hosts, hosts)
            message = f"{procs} does not spread evenly over {hosts} hosts; {near} would"
            self.problems.add(f"{where}.procs", message)

    def _spares(self) -> None:
        """There must be hosts for ranks besides the spares, and meshes that could take a spare."""
        count, hosts = self.document.spares, self.document.hosts
        if not count or not self.sound("spares", "hosts"):
            return
        if count >= len(hosts):
            message = f"{count} of {len(hosts)} host{'s' * (len(hosts) != 1)} leave none for ranks"
            self.problems.add("spares", f"{message}; list more hosts, or keep fewer")
            return
        spares = {host.name for host in self.document.spare_hosts}
        for where, mesh in self.meshes:
            for i, name in enumerate(mesh.hosts if isinstance(mesh.hosts, tuple) else ()):
                if name in spares:
                    message = f"{show(name)} is a spare, as the last {count} of hosts are kept without ranks"
                    self.problems.add(step(f"{where}.hosts", i), message)
        takers = [mesh for _, mesh in self.meshes if not isinstance(mesh.hosts, tuple)]
        mine = any(mesh.restart.max and "host_lost" in mesh.restart.on for mesh in takers)
        if not mine and not self.document.driver and self.sound(*(where for where, _ in self.meshes)):
            self.problems.add(
                "spares",
                "no mesh would ever take one: that needs `restart: {max: 3}`, with host_lost in `on`, and no list of"
                " names in `hosts`",
            )

    def _sharing(self) -> None:
        """Every `share_gpus_with` must lead to a mesh with GPUs of its own."""
        meshes = {where.partition(".")[2]: mesh for where, mesh in self.meshes}
        for name, service in self.document.services.items():
            meshes |= {f"{name}.{i}": service for i in range(service.num_replicas)}
        for where, mesh in self.meshes:
            at = f"{where}.share_gpus_with"
            if mesh.share_gpus_with is not None and self.sound(at, f"{where}.with_gpus"):
                self._shares(at, mesh, meshes)

    def _shares(self, at: str, mesh: Mesh, meshes: Mapping[str, Mesh]) -> None:
        name = mesh.share_gpus_with or ""
        owner = meshes.get(name)
        if mesh.with_gpus:
            self.problems.add(at, "with_gpus and share_gpus_with exclude each other; keep one")
        elif owner is None:
            if self.sound("actors", "services", "scripts"):
                self.problems.add(at, f"no mesh {show(name)} in this spec", near=(name, meshes))
        elif isinstance(owner, Service) and name in self.document.services:
            self.problems.add(at, f"{show(name)} is a service; name one of its replicas, such as {name}.0")
        elif (loop := _way_back(mesh, meshes)) is not None:
            self.problems.add(at, f"shares GPUs in a circle: {' → '.join(loop)}")
        elif not owner.with_gpus and owner.share_gpus_with is None:
            self.problems.add(at, f"{show(name)} has no GPUs to share; give it with_gpus: true")

    def _total(self) -> None:
        total = sum(m.procs * (m.num_replicas if isinstance(m, Service) else 1) for _, m in self.meshes)
        if total > MAX_RANKS:
            self.problems.add("", f"{total} processes in all; at most {MAX_RANKS} are supported")

    def _one_program(self, where: str, script: Script | Driver) -> None:
        kinds = [kind for kind in ("run", "module", "command") if getattr(script, kind)]
        broken = [kind for kind in ("run", "module", "command") if not self.sound(f"{where}.{kind}")]
        if not kinds and not broken and self.sound(where):
            self.problems.add(where, "nothing to run: give it run (a Python file), module or command")
        if len(kinds) > 1:
            listed = f"{', '.join(kinds[:-1])} and {kinds[-1]}"
            self.problems.add(f"{where}.{kinds[-1]}", f"{listed} exclude each other; keep one")
        module = script.module[0] if script.module else ""
        if module.endswith(".py") or "/" in module:
            self.problems.add(f"{where}.module", f"{show(module)} is a file, not a module; use run")

    def _environments(self) -> Iterator[tuple[str, dict[str, str], bool]]:
        """Every `env` of the spec with its path, and whether it reaches a mesh that is pinned to GPUs."""
        anywhere = any(mesh.with_gpus for _, mesh in self.meshes)  # without one there are no GPUs to share
        yield "env", self.document.env, anywhere
        if "hosts.env" in self.problems.places:  # one for all hosts that a file or Slurm names
            yield "hosts.env", self.document.hosts[0].env, anywhere
        else:
            yield from ((f"hosts.{i}.env", host.env, anywhere) for i, host in enumerate(self.document.hosts))
        for where, mesh in self.meshes:
            yield f"{where}.env", mesh.env, mesh.with_gpus or mesh.share_gpus_with is not None
        if self.document.driver:
            yield "driver.env", self.document.driver.env, False

    def _environment(self, where: str, env: Mapping[str, str], pinned: bool) -> None:
        for name, value in env.items():
            at = step(where, name)
            if complaint := _unfit(name):
                self.problems.add(at, complaint, at_key=True)
            elif name in self.secret_names:
                self.problems.add(at, f"{name} is also listed under secrets; keep it in one of them")
            elif pinned and name == "CUDA_VISIBLE_DEVICES":
                message = "forgectl sets it, to the GPUs it leased for a mesh with_gpus; choose GPUs by hosts: gpus"
                self.problems.add(at, message)
            elif pinned and name == "CUDA_DEVICE_ORDER" and value != "PCI_BUS_ID":
                self.problems.add(at, "forgectl sets it to PCI_BUS_ID where it pins GPUs; remove it")

    @cached_property
    def secret_names(self) -> frozenset[str]:
        return frozenset(self.document.secrets)

    def _secrets(self) -> None:
        seen: set[str] = set()
        for i, name in enumerate(self.document.secrets):
            where = step("secrets", i)
            if complaint := _unfit(name):
                self.problems.add(where, complaint)
            elif name in seen:
                self.problems.add(where, f"{name} is listed twice")
            elif name not in self.environ:
                self.problems.add(where, f"variable {name} is not set in the launching environment; export it")
            seen.add(name)


def _way_back(mesh: Mesh, meshes: Mapping[str, Mesh]) -> list[str] | None:
    """The names that lead from a mesh, by `share_gpus_with`, back to it; None if they do not."""
    names: list[str] = []
    following: Mesh | None = mesh
    while following is not None and (name := following.share_gpus_with) is not None and name not in names:
        names.append(name)
        following = meshes.get(name)
        if following is mesh:
            return [name, *names]
    return None


def _unfit(name: str) -> str | None:
    """Why the user cannot set a variable for ranks; None if that is possible."""
    if not _ENV_NAME.fullmatch(name):
        return f"{show(name)} is not the name of a variable: letters, digits and '_', the first not a digit"
    if name in _RANK_VARIABLES:
        return "forgectl sets it for each rank, as torchrun does; remove it"
    if name.startswith("FORGE_"):
        return "names that begin with FORGE_ are forgectl's own; choose another"
    return None
