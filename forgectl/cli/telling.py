"""Collects what is known of a run for `forgectl why`: its status, its events and its incidents."""

from __future__ import annotations

import dataclasses

from forgectl.cli.find import Found
from forgectl.controller import client
from forgectl.controller.account import Account, MeshAccount, account_of
from forgectl.controller.history import History
from forgectl.controller.incidents import read_incident
from forgectl.controller.run_dir import RunDir
from forgectl.controller.status_document import run_document
from forgectl.errors import ForgeError
from forgectl.model.event import RunEvent
from forgectl.model.status import RunStatus


def account(found: Found) -> Account:
    """What happened to what was named. Raises ForgeError if not even its plan can be read."""
    history = History(found.run)
    try:
        status = client.document(found.run)
        events = history.more()
    except ForgeError:  # no controller can be had: the journal says what was
        events = history.more()
        status = run_document(history.run, found.run, alive=False)
    told = account_of(status, _of(events, status), found.meshes if found.target else None, found.rank)
    return dataclasses.replace(told, meshes=tuple(_with_incident(mesh, found.run) for mesh in told.meshes))


def _of(events: list[RunEvent], status: RunStatus) -> list[RunEvent]:
    """The events of meshes as they are now: of a name that was used twice, those of the last mesh."""
    added = {e.mesh: e.seq for e in events if e.event == "mesh_added"}
    return [e for e in events if e.seq >= added.get(e.mesh, 0)]


def _with_incident(mesh: MeshAccount, run: RunDir) -> MeshAccount:
    incident = read_incident(run, mesh.seq, mesh.mesh)
    if incident is None:
        return mesh
    verdict = incident.get("verdict")
    lines = tuple(str(line) for line in verdict) if isinstance(verdict, list) else ()
    return dataclasses.replace(mesh, verdict=lines, incident=str(run.incident(mesh.seq, mesh.mesh)))
