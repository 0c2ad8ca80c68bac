"""The Python examples of the pages, as modules that a type checker can read."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

PRELUDE = """\
# pyright: reportUnusedVariable=false, reportUnusedImport=false, reportUnusedExpression=false
# pyright: reportDuplicateImport=false, reportUnknownMemberType=false
import asyncio
import os
from typing import Any

import forgectl
from forgectl import ForgeActor, endpoint, service_endpoint

"""
"""What an example may leave out; the reader knows it by then."""
OF_OTHERS = ("# Ray", "# TorchForge", "# TRL")
"""How an example begins that shows other software."""


def examples_in(page: Path) -> list[tuple[int, str]]:
    """(Line, code) of each Python example of a page that is about forgectl."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    blocks = [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]
    return [(line, code) for line, code in blocks if not code.startswith(OF_OTHERS)]


def module_of(page: Path) -> str:
    """The examples of a page one after the other, so that a later one may use what an earlier one defines.

    Those with `await` outside a function, as in a notebook, are together one function. What one imports from a file
    that is an earlier one is there already.
    """
    files = "|".join(re.findall(r"^```python\n# (\w+)\.py$", page.read_text(), flags=re.MULTILINE)) or "(?!)"
    module, awaiting = [PRELUDE], ["async def examples() -> None:\n    pass\n"]
    for line, code in examples_in(page):
        example = f"# {page.name}:{line}\n" + re.sub(rf"^from (?:{files}) import .*$", "", code, flags=re.MULTILINE)
        if _awaits(code):
            awaiting.append(textwrap.indent(example, "    "))
        else:
            module.append(example)
    return "\n".join(module + awaiting)


def _awaits(code: str) -> bool:
    """Whether it awaits outside a function, as in a notebook."""
    waits = ast.Await, ast.AsyncFor, ast.AsyncWith
    inside = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)

    def within(node: ast.AST) -> bool:
        return isinstance(node, waits) or any(
            within(c) for c in ast.iter_child_nodes(node) if not isinstance(c, inside)
        )

    return within(compile(code, "example", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
