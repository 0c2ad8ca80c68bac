"""The GPUs that a run holds on this host: meshes that share a GPU share its lock, which ends with the last of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from forgectl.hosts import gpu_leases
from forgectl.hosts.gpu_leases import GpuLease
from forgectl.model.plan import Gpu


class RunLeases:
    """Leases of one run. Plans give a GPU to several meshes only where one is to share those of another."""

    def __init__(self, run: str, host: str) -> None:
        self._run = run
        self._host = host
        self._given: list[GpuLease] = []
        self._turn = asyncio.Lock()  # of two meshes that begin at once, the second finds the locks of the first

    async def acquire(self, gpus: Sequence[Gpu], *, mesh: str) -> GpuLease:
        """Lease all of `gpus` or none; raises as `gpu_leases.acquire`."""
        async with self._turn:
            shared = self._copies({g.uuid for g in gpus})
            try:
                fresh = await asyncio.to_thread(self._acquire, [g for g in gpus if g.uuid not in shared.uuids], mesh)
            except BaseException:
                shared.release()
                raise
            lease = GpuLease((*shared.uuids, *fresh.uuids), (*shared.locks, *fresh.locks))
            self._given = [*(given for given in self._given if given.locks), lease]
            return lease

    @property
    def uuids(self) -> frozenset[str]:
        """The GPUs that the run holds here now."""
        return frozenset(uuid for lease in self._given for uuid, _ in zip(lease.uuids, lease.locks, strict=False))

    def _copies(self, uuids: set[str]) -> GpuLease:
        """A share in those locks that meshes of this run hold: descriptors of the same open files."""
        held = {uuid: lock for lease in self._given for uuid, lock in zip(lease.uuids, lease.locks, strict=False)}
        ours = tuple(sorted(uuids & held.keys()))
        return GpuLease(ours, tuple(os.dup(held[uuid]) for uuid in ours))

    def _acquire(self, gpus: Sequence[Gpu], mesh: str) -> GpuLease:
        if not gpus:
            return GpuLease((), ())
        directory = gpu_leases.lock_dir(os.environ)
        return gpu_leases.acquire(gpus, run=self._run, mesh=mesh, host=self._host, directory=directory)
