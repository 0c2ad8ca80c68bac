"""What a waiting command prints about meshes that hang."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from forgectl.model.status import RunStatus


class HangNews:
    """Reports each hang once, and that it is over."""

    def __init__(self) -> None:
        self._hung: dict[str, tuple[int, str]] = {}  # mesh → its generation, and since when it hangs

    def of(self, status: RunStatus, meshes: Collection[str] | None = None) -> Iterator[str]:
        """A sentence for each of these meshes (None: all) that hangs now or makes progress again."""
        for mesh in status.meshes:
            if meshes is not None and mesh.mesh not in meshes:
                continue
            before = self._hung.pop(mesh.mesh, None)
            if mesh.hung is not None:
                now = self._hung[mesh.mesh] = mesh.generation, mesh.hung.since
                if now != before:
                    yield f"{mesh.mesh} hangs: {mesh.hung.message}"
            elif before is not None and before[0] == mesh.generation and mesh.up:
                yield f"{mesh.mesh} makes progress again"
