"""The templates of `forgectl init`."""

from __future__ import annotations

from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
"""A folder a template. Most files there are links into sample_configs/, which a built package has as files."""


def template_names() -> list[str]:
    """Their names, sorted."""
    return sorted(p.name for p in TEMPLATES.iterdir() if not p.name.startswith("_"))
