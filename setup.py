"""The README for a package page, where links relative to the repository lead nowhere. All else: pyproject.toml."""

import re
from pathlib import Path

TOP = Path(__file__).parent


def for_a_package_page(readme: str, pyproject: str) -> str:
    """The README with links into the repository that pyproject.toml names as Repository; without one, with their words.

    Images go with their links, and so do comments, which are for tests.
    """
    named = re.search(r'^Repository = "(.+?)/?"$', pyproject, flags=re.MULTILINE)

    def changed(match: "re.Match[str]") -> str:
        image, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        if not named:
            return "" if image else words
        return f"{image}[{words}]({named[1]}/{'raw' if image else 'blob'}/main/{target})"

    text = re.sub(r"^<!--.*?-->\n", "", readme, flags=re.MULTILINE)
    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", changed, text)


if __name__ == "__main__":
    from setuptools import setup

    texts = [(TOP / name).read_text(encoding="utf-8") for name in ("README.md", "pyproject.toml")]
    setup(long_description=for_a_package_page(*texts), long_description_content_type="text/markdown")
