"""What planning needs to know about this host, collected on the host itself."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forgectl.hosts import reach
from forgectl.hosts.gpus import FoundGpus, NoSuchGpu, discover, load_nvml
from forgectl.model.plan import HostFacts
from forgectl.protocol.host_survey import GetFacts, HostReport
from forgectl.system.processes import boot_id


def gather(
    name: str,
    gpus: str | int | Sequence[int],
    *,
    root: str = "",
    addresses: Sequence[str] = (),
    machine: str = "",
    environ: Mapping[str, str] = os.environ,
    nvml: Callable[[], Any | None] = load_nvml,
) -> tuple[HostFacts, str | None]:
    """The facts of this host, and which of the GPUs that were asked for does not exist.

    `gpus` is as in the spec, `root` forgectl's folder. `addresses` are the likeliest ones. `machine` is for `discover`.
    """
    no_such_gpu = None
    try:
        found = discover(gpus, host=name, environ=environ, machine=machine, nvml=nvml)
    except NoSuchGpu as e:
        found, no_such_gpu = FoundGpus(()), str(e)
    facts = HostFacts(
        name,
        boot_id(),
        len(os.sched_getaffinity(0)),
        found.gpus,
        found.declared,
        network=reach.network(),
        root=root,
        addresses=reach.candidates(addresses),
    )
    return facts, no_such_gpu


def report(root: Path, request: GetFacts) -> HostReport:
    """The report of an ssh host; it also says if requested GPUs do not exist."""
    gpus = request.gpus if request.look_for_gpus else "none"
    facts, no_such_gpu = gather(request.host, gpus, root=str(root), addresses=dialled_at(), machine=boot_id())
    return HostReport(
        facts,
        no_such_gpu=no_such_gpu,
        no_such_folder=bool(request.folder) and not Path(request.folder).is_dir(),
        missing=tuple(m for m in request.modules if importlib.util.find_spec(m) is None),
    )


def dialled_at() -> list[str]:
    """Our address that the launcher's ssh connected to, or that a proxy in between connected to."""
    return os.environ.get("SSH_CONNECTION", "").split()[2:3]
