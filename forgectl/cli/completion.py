"""`forgectl completion`: prints what a shell needs to complete commands and options."""

from __future__ import annotations

import click

from forgectl.cli import parameters

COMPLETE = "_FORGECTL_COMPLETE"
"""The variable by which a shell asks for completions."""


@parameters.command(
    examples={"source <(forgectl completion bash)": "in ~/.bashrc"},
)
@parameters.argument("shell", metavar="SHELL", help="bash, zsh or fish.", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script by which SHELL completes commands and options.

    For bash, put `source <(forgectl completion bash)` into ~/.bashrc; for zsh, the same with zsh into ~/.zshrc; for
    fish, `forgectl completion fish | source` into ~/.config/fish/config.fish.
    """
    import sys

    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    script = made(ctx.find_root().command, {}, "forgectl", COMPLETE).source()
    sys.stdout.write(script + "\n")
