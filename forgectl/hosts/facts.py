"""What planning needs to know about this host, collected on the host itself."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path

from forgectl.hosts import reach
from forgectl.hosts.gpus import NoSuchGpu, discover
from forgectl.model.plan import Gpu
from forgectl.protocol.host_survey import GetFacts, HostReport
from forgectl.system.processes import boot_id


def gather(root: Path, request: GetFacts) -> HostReport:
    """The report of an ssh host; it also says if requested GPUs do not exist."""
    gpus: tuple[Gpu, ...] = ()
    declared, no_such_gpu = False, None
    if request.look_for_gpus:
        try:
            found = discover(request.gpus, host=request.host, environ=os.environ, machine=boot_id())
            gpus, declared = found.gpus, found.declared
        except NoSuchGpu as e:
            no_such_gpu = str(e)
    return HostReport(
        hostname=socket.gethostname(),
        python=sys.executable,
        root=str(root),
        boot_id=boot_id(),
        network=reach.network(),
        cores=len(os.sched_getaffinity(0)),
        addresses=reach.candidates(dialled_at()),
        gpus=gpus,
        declared_gpus=declared,
        no_such_gpu=no_such_gpu,
        no_such_folder=bool(request.folder) and not Path(request.folder).is_dir(),
        missing=tuple(m for m in request.modules if importlib.util.find_spec(m) is None),
    )


def dialled_at() -> list[str]:
    """Our address that the launcher's ssh connected to, or that a proxy in between connected to."""
    return os.environ.get("SSH_CONNECTION", "").split()[2:3]
