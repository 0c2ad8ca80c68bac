"""The site of the documentation is built without a warning, and needs nothing from another host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]
LOADED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=\"?(https?:|//)[^>]*>")
"""What a browser fetches by itself; links that people follow are not among it."""


def test_the_site_is_built_and_needs_no_other_host(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(argv, cwd=TOP, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {page.relative_to(tmp_path).as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    assert {"index.html", "getting-started.html", "changelog.html", "decisions/index.html", "404.html"} <= pages.keys()
    assert not [(name, match[0]) for name, text in pages.items() for match in LOADED.finditer(text)]
    assert not [name for name, text in pages.items() if "<!-- generated" in text], "a part was not generated"
    spec, commands, api = pages["spec.html"], pages["commands.html"], pages["api.html"]
    assert 'id="spec-service"' in spec and "<code>num_replicas</code>" in spec
    assert 'id="forgectl-launch"' in commands and "<code>-d, --detach</code>" in commands
    assert 'id="forgectl.ForgeActor.as_actor"' in api and 'id="forgectl.ActorDied"' in api
    found = json.loads((tmp_path / "search/search_index.json").read_text())["docs"]
    assert any(entry["location"].startswith("troubleshooting.html#") for entry in found)
