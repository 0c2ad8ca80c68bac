"""Runs that are over, and what their ranks wrote to their logs."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.conftest import Forge, processes_of, until


def over(forge: Forge, text: str, *options: str) -> dict[str, Any]:
    """Launch a spec and wait for the end of all its meshes, good or bad; its final document."""
    options = ("--set", "on_failure=continue", *options)
    return document_of(forge.run("launch", forge.spec(text), "--json", *options))


def document_of(result: CompletedProcess[str]) -> dict[str, Any]:
    """The final document that a launch with --json printed, once nothing of the run is left."""
    assert result.stdout, f"{result.returncode}: {result.stderr}"
    document: dict[str, Any] = json.loads(result.stdout)["runs"][0]
    assert document["ended_at"]
    assert document["exit_code"] == result.returncode or document["error"]
    assert processes_of(document["run"]) == {}
    return document


def log_path(forge: Forge, run: str, mesh: str, rank: int = 0, generation: int = 0) -> Path:
    """Where the log of a rank is."""
    return forge.run_dir(run) / "logs" / mesh / str(generation) / f"rank-{rank}.log"


def log_of(forge: Forge, run: str, mesh: str, rank: int = 0, generation: int = 0) -> str:
    """All that a rank wrote so far; "" before it began."""
    path = log_path(forge, run, mesh, rank, generation)
    return path.read_text(errors="replace") if path.exists() else ""


def until_said(forge: Forge, run: str, mesh: str, text: str, rank: int = 0, generation: int = 0) -> str:
    """The log of a rank once it holds a text."""

    def look() -> str:
        log = log_of(forge, run, mesh, rank, generation)
        return log if text in log else ""

    found: str = until(look, f"{text!r} in the log of {mesh}/{rank}, generation {generation}")
    return found


def failures(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Mesh → its failure, of those that failed."""
    return {m["mesh"]: m["failure"] for m in document["meshes"] if m["failure"]}


def events_of(forge: Forge, run: str) -> list[dict[str, Any]]:
    """What `forgectl events --json` prints."""
    return [json.loads(line) for line in forge.ok("events", run, "--json").splitlines()]
