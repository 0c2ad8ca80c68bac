"""Meshes of one run share the locks of their GPUs; those of two runs never do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from forgectl.agent.run_leases import RunLeases
from forgectl.hosts import gpu_leases
from forgectl.hosts.gpu_leases import GpuTaken
from forgectl.model.plan import Gpu

A, B, C = (Gpu(str(i), f"GPU-{i}") for i in range(3))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(gpu_leases.VARIABLE, str(tmp_path / "locks"))
    return gpu_leases.lock_dir({gpu_leases.VARIABLE: str(tmp_path / "locks")})


def held(folder: Path) -> set[str]:
    return set(gpu_leases.holders([gpu.uuid for gpu in (A, B, C)], folder))


def test_a_gpu_is_free_when_the_last_mesh_has_released_it(folder: Path) -> None:
    async def play() -> None:
        leases = RunLeases("run-1", "h")
        first, second = await asyncio.gather(leases.acquire([A, B], mesh="x"), leases.acquire([B, C], mesh="y"))
        assert held(folder) == {A.uuid, B.uuid, C.uuid}
        first.release()
        assert held(folder) == {B.uuid, C.uuid}
        third = await leases.acquire([B], mesh="z")
        second.release()
        assert held(folder) == {B.uuid}
        third.release()
        assert held(folder) == set()

    asyncio.run(play())


def test_another_run_gets_none_of_them_and_keeps_none(folder: Path) -> None:
    async def play() -> None:
        lease = await RunLeases("run-1", "h").acquire([A], mesh="x")
        rival = RunLeases("run-2", "h")
        with pytest.raises(GpuTaken, match="run run-1, mesh x"):
            await rival.acquire([A, B], mesh="y")
        assert held(folder) == {A.uuid}
        lease.release()
        (await rival.acquire([A, B], mesh="y")).release()
        assert held(folder) == set()

    asyncio.run(play())


def test_what_fails_gives_back_its_share(folder: Path) -> None:
    async def play() -> None:
        leases, rival = RunLeases("run-1", "h"), RunLeases("run-2", "h")
        first, other = await leases.acquire([A], mesh="x"), await rival.acquire([B], mesh="y")
        with pytest.raises(GpuTaken):
            await leases.acquire([A, B], mesh="z")
        first.release()
        assert held(folder) == {B.uuid}
        other.release()

    asyncio.run(play())
