"""Completion by a shell: `forgectl completion` prints its script, which asks `forgectl` itself at each TAB."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from forgectl.cli import parameters

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMPLETE = "_FORGECTL_COMPLETE"
"""The variable by which a shell asks for completions. Its value is the shell."""
LINE = "_FORGECTL_LINE"
"""The variable with the command line up to the cursor."""
BREAKS = "_FORGECTL_BREAKS"
"""The variable with the characters at which bash splits words, so that it replaces only what comes after them."""

# Each script reads lines of `kind, value, help` with tabs between them. `spec`, `file` and `dir` have the shell itself
# list what is in folders. After `.`, `/` and `=` a word goes on, so no space follows.
_BASH = r"""
_forgectl_completion() {
    local kind value help
    COMPREPLY=()
    while IFS=$'\t' read -r kind value help; do
        case $kind in
            spec)
                compopt -o filenames
                mapfile -t COMPREPLY < <(compgen -f -X '!*.y*ml' -- "$value"; compgen -d -- "$value") ;;
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
            *) COMPREPLY+=("$value") ;;
        esac
    done < <(
        _FORGECTL_COMPLETE=bash _FORGECTL_LINE="${COMP_LINE:0:COMP_POINT}" _FORGECTL_BREAKS="$COMP_WORDBREAKS" \
            "${1/#\~/$HOME}" </dev/null 2>/dev/null
    )
    [[ ${#COMPREPLY[@]} -ne 1 || $COMPREPLY != *[./=] ]] || compopt -o nospace
}
complete -o nosort -F _forgectl_completion forgectl
"""
_ZSH = r"""#compdef forgectl
_forgectl_completion() {
    local kind value help
    local -a closed open
    [[ $PREFIX != -*=* ]] || compset -P 1 '*='
    while IFS=$'\t' read -r kind value help; do
        case $kind in
            spec) _files -g '*.y(a|)ml' ;;
            file) _files ;;
            dir) _files -/ ;;
            *)
                help="${value//:/\\:}${help:+:$help}"
                if [[ $value == *[./=] ]]; then open+=("$help"); else closed+=("$help"); fi ;;
        esac
    done < <(
        _FORGECTL_COMPLETE=zsh _FORGECTL_LINE="${(j: :)words[1,CURRENT-1]} $IPREFIX$PREFIX" \
            ${~words[1]} </dev/null 2>/dev/null
    )
    (( ! $#closed )) || _describe -V forgectl closed
    (( ! $#open )) || _describe -V forgectl open -S ''
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _forgectl_completion "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _forgectl_completion forgectl
fi
"""
_FISH = r"""
function __forgectl_completion
    set -l words (commandline -opc)
    _FORGECTL_COMPLETE=fish _FORGECTL_LINE=(commandline -pc | string join ' ') $words[1] </dev/null 2>/dev/null |
    while read -l -d \t kind value help
        switch $kind
            case spec
                __fish_complete_path $value | string match --regex --entire '(?:/|\.ya?ml)(?:\t|$)'
            case file
                __fish_complete_path $value
            case dir
                __fish_complete_directories $value
            case '*'
                printf '%s\t%s\n' $value $help
        end
    end
end
complete --command forgectl --no-files --keep-order --arguments '(__forgectl_completion)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@parameters.command(
    examples={"source <(forgectl completion bash)": "in ~/.bashrc"},
)
@parameters.argument("shell", metavar="SHELL", help="bash, zsh or fish.", type=click.Choice(list(SCRIPTS)))
def completion(shell: str) -> None:
    """Print a script by which SHELL completes commands.

    It completes options, and what they and commands take: runs, meshes and ranks, endpoints, specs and their keys,
    hosts. For bash, put `source <(forgectl completion bash)` into ~/.bashrc; for zsh, the same with zsh into ~/.zshrc;
    for fish, `forgectl completion fish | source` into ~/.config/fish/config.fish.
    """
    sys.stdout.write(SCRIPTS[shell].lstrip())


def answer(app: click.Command, environ: Mapping[str, str]) -> None:
    """Print what may come next on a shell's command line. Whatever goes wrong, it prints nothing of that."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (until the end of the process)
    try:
        lines = list(_lines(app, environ[COMPLETE], environ.get(LINE, ""), environ.get(BREAKS, "")))
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    except Exception:
        return


def _lines(app: click.Command, shell: str, line: str, breaks: str) -> Iterator[str]:
    from click.shell_completion import ShellComplete

    *words, last = words_of(line)
    asked = ShellComplete(app, {}, "forgectl", COMPLETE)
    option, equals, _ = last.partition("=") if last.startswith("-") else ("", "", "")
    for item in asked.get_completions(words[1:], last):
        yield _line(item, _before(shell, last, option + equals, breaks))


def words_of(line: str) -> list[str]:
    """The words of a command line, without quotes; the last is the one at the cursor, which may be empty."""
    import re
    import shlex

    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # an open quote or a last backslash
        return [*words, lexer.token or ""]
    return words if words and not re.search(r"(?<!\\)\s$", line) else [*words, ""]


def _before(shell: str, last: str, option: str, breaks: str) -> tuple[str, str]:
    """What a shell wants cut from a completion's begin, and what it wants in front of it."""
    if shell == "fish":
        return "", option
    word = last.removeprefix(option)
    ends = (word.rfind(c) + (c != "@") for c in breaks if c in word)  # bash keeps an @ with what follows it
    end = max(ends, default=0) if shell == "bash" else 0
    return word[:end], ""


def _line(item: CompletionItem, change: tuple[str, str]) -> str:  # type: ignore[type-arg,unused-ignore]
    """A completion as the scripts read it: no tab, no line break, nothing that a terminal acts on."""
    cut, front = change
    value = str(item.value) if item.type != "plain" else front + str(item.value).removeprefix(cut)
    return "\t".join("".join(c if c.isprintable() else " " for c in t) for t in (item.type, value, item.help or ""))
