"""`forgectl schema`: prints the JSON Schema of specs, for editors."""

from __future__ import annotations

from forgectl.cli import parameters


@parameters.command(
    examples={"forgectl schema > forgectl.schema.json": "for an editor"},
)
def schema() -> None:
    """Print a JSON Schema of specs.

    Editors with a YAML language server complete and check a spec that begins with
    `# yaml-language-server: $schema=forgectl.schema.json`.
    """
    import sys

    from forgectl.cli.views.json_text import json_text
    from forgectl.spec.json_schema import json_schema

    sys.stdout.write(json_text(json_schema()))
