"""What `make docs` does besides rendering pages: it makes references from the code, and pages from files at the top."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from references import command_reference, exit_codes, settings_reference, spec_reference, variables

TOP = Path(__file__).parents[2]
FROM_TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "vulnerabilities.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
}
"""Files at the top of the repository → their pages."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^<!-- generated: (.+?) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the files at the top."""
    for name, page in FROM_TOP.items():
        text = (TOP / name).read_text()
        if not name.endswith(".md"):
            text = f"# License\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=with_links_of_the_site(text, name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and turn links to other files of the repository into links of the site."""
    if page.file.src_uri.startswith(("decisions/", "changelog")):
        page.meta["search"] = {"boost": 0.2}  # below the pages for users
    text = MARK.sub(lambda mark: generated(mark[1]), markdown)
    return text if page.file.src_uri in FROM_TOP.values() else with_links_of_the_site(text, f"docs/{page.file.src_uri}")


def generated(what: str) -> str:
    """The text for a mark `<!-- generated: what -->`; raises KeyError for one that is not known."""
    from forgectl.cli.app import app
    from forgectl.spec.json_schema import json_schema

    makers: dict[str, Any] = {
        "spec reference": lambda: spec_reference(json_schema()),
        "command reference": lambda: command_reference(app),
        "exit codes": exit_codes,
        "variables": variables,
        "settings of actors": settings_reference,
    }
    return str(makers[what]())


def with_links_of_the_site(text: str, source: str) -> str:
    """The text of `source`, a path from the top, with links as from its page on the site.

    A link to a file that has no page becomes the file's name.
    """
    here = posixpath.dirname(_page_of(source) or "")

    def changed(match: re.Match[str]) -> str:
        image, words, link = match.groups()
        if re.match(r"[a-z]+:|#|/", link):
            return match[0]
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = _page_of(target)
        if page is None:
            return f"{words} (`{target}` in the repository)"
        return f"{image}[{words}]({posixpath.relpath(page, here or '.')}{'#' if anchor else ''}{anchor})"

    parts = FENCE.split(text)
    return "".join(part if i % 2 else LINK.sub(changed, part) for i, part in enumerate(parts))


def _page_of(path: str) -> str | None:
    """The page, or other file of the site, that shows a file of the repository."""
    if path in FROM_TOP:
        return FROM_TOP[path]
    if path.startswith("docs/") and (TOP / path).is_file():
        return path.removeprefix("docs/")
    return None
