"""`forgectl init`: writes a sample, a spec with its Python files, that runs without changes."""

from __future__ import annotations

from pathlib import Path

import click

from forgectl.cli import candidates, parameters
from forgectl.cli.template_names import TEMPLATES, template_names


@parameters.command(
    codes=(66,),
    examples={
        "forgectl init first": "into the folder first",
        "forgectl init --template grpo": "reinforcement learning, here",
    },
)
@parameters.argument(
    "folder",
    metavar="[DIR]",
    help="The folder for them; made if missing.",
    default=".",
    type=click.Path(path_type=Path),
    shell_complete=candidates.folders,
)
@click.option(
    "--template",
    default="script",
    show_default=True,
    metavar="NAME",
    shell_complete=candidates.templates,
    help="script: data-parallel training. actor, service: a small one of either. sft, grpo: train a language "
    "model by examples, or by reinforcement.",
)
def init(folder: Path, template: str) -> None:
    """Write a first spec and its script into DIR.

    DIR is by default the current folder. Nothing is overwritten.
    """
    import sys

    from forgectl.errors import NotFoundError, UsageError
    from forgectl.names import nearest

    known = template_names()
    if template not in known:
        meant = nearest(template, known)
        raise UsageError(
            f"there is no template {template!r}",
            hint=f"did you mean {meant!r}?" if meant else f"there are {', '.join(known)}",
        )
    files = sorted(p for p in (TEMPLATES / template).iterdir() if p.suffix in (".yaml", ".py"))
    there = [file.name for file in files if (folder / file.name).exists()]
    if there:
        raise UsageError(f"{folder / there[0]} is there already", hint="name another folder: forgectl init DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            text = file.read_text().replace("sample_configs/", "")  # what its comments say to type
            (folder / file.name).write_text(text)
    except OSError as e:
        raise NotFoundError(f"cannot write into {folder}: {e.strerror}") from None
    sys.stdout.write("".join(f"wrote {folder / file.name}\n" for file in files))
    [spec] = (file.name for file in files if file.suffix == ".yaml")
    sys.stdout.write(f"try it: forgectl launch {folder / spec}\n")
