"""Runs as JSON for users' scripts: the output of `status --json` and `launch --json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forgectl.model.status import RunStatus
from forgectl.wire.codec import to_json


def status_json(runs: Sequence[RunStatus]) -> dict[str, Any]:
    """The document about runs. It has no key for a fact that was not asked for, or that its kind of failure lacks."""
    found = [to_json(run) for run in runs]
    for run in found:
        if run["services"] is None:
            del run["services"]
        for mesh in run["meshes"]:
            if mesh["failure"] is not None and mesh["failure"]["rank"] is None:
                del mesh["failure"]["exit_code"], mesh["failure"]["signal"]
            if mesh["last_failure"] is not None:
                del mesh["last_failure"]["collateral"]
    return {"schema_version": 1, "runs": found}
