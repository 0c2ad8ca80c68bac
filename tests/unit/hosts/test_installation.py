"""The command that adds what is missing, for every way in which forgectl may have been installed."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from forgectl.hosts.installation import install_command

PIP = f"{sys.executable} -m pip install"


def _installed(monkeypatch: pytest.MonkeyPatch, folder: Path, direct: Any, installer: str = "pip") -> str:
    """The command where a forgectl with this metadata is the only one."""
    info = folder / "forgectl-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forgectl\nVersion: 0.1.0\n")
    (info / "INSTALLER").write_text(f"{installer}\n")
    if direct is not None:
        (info / "direct_url.json").write_text(json.dumps(direct))
    monkeypatch.setattr(metadata, "distributions", lambda *, name: [metadata.PathDistribution(info)])
    return install_command(sys.executable, "actors", ["pyzmq"])


def test_a_checkout_is_installed_again_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    direct = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    assert _installed(monkeypatch, tmp_path, direct) == f"{PIP} -e '{tmp_path}[actors]'"


@pytest.mark.parametrize(
    ("direct", "installer", "expected"),
    [
        ({"url": "FOLDER", "dir_info": {}}, "pip", f"{PIP} 'PATH[actors]'"),
        ({"url": "FOLDER/f-0.1-py3-none-any.whl", "archive_info": {}}, "pip", f"{PIP} pyzmq"),  # it is gone
        ({"url": "https://h/f.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}, "pip",
         f"{PIP} 'forgectl[actors] @ git+https://h/f.git@c0ffee'"),
        (None, "pip", f"{PIP} 'forgectl[actors]'"),
        (None, "uv", f"uv pip install --python {sys.executable} 'forgectl[actors]'"),
    ],
)  # fmt: skip
def test_each_other_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, direct: dict[str, Any] | None, installer: str, expected: str
) -> None:
    if direct:
        direct = {**direct, "url": direct["url"].replace("FOLDER", tmp_path.as_uri())}
    assert _installed(monkeypatch, tmp_path, direct, installer) == expected.replace("PATH", str(tmp_path))


def test_another_interpreter_gets_the_packages_themselves() -> None:
    assert install_command("/opt/my py", "torch", ["torch", "numpy"]) == "'/opt/my py' -m pip install torch numpy"


def test_where_there_is_no_metadata_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda *, name: [])
    assert install_command(sys.executable, "actors", ["pyzmq"]) == f"{PIP} pyzmq"
