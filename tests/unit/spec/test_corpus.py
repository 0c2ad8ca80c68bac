"""Every bad spec of the corpus is refused with just the problems that it names in its first lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from forgectl.errors import SpecError
from forgectl.spec import document
from forgectl.spec.load import load
from tests.unit.spec.spec_cases import ENVIRON, make_folder

CORPUS = sorted((Path(__file__).parents[2] / "corpus").glob("*.yaml"))
_EXPECTED = re.compile(r"# expect (\d+):(\d+): (.*)")


def expectations(path: Path) -> list[tuple[int, int, str]]:
    found = []
    for line in path.read_bytes().decode(errors="replace").splitlines():
        if not (match := _EXPECTED.fullmatch(line)):
            break
        found.append((int(match[1]), int(match[2]), match[3]))
    return found


def refused(path: Path, tmp_path: Path) -> SpecError:
    """The error of a spec that lies next to the programs it may name."""
    spec = make_folder(tmp_path) / path.name
    spec.write_bytes(path.read_bytes())
    with pytest.raises(SpecError) as caught:
        load(spec, environ=ENVIRON)
    return caught.value


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) >= 80


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_all_problems_are_told_with_their_places(path: Path, tmp_path: Path) -> None:
    error = refused(path, tmp_path)
    expected = expectations(path)
    found = [(p.line, p.column, p.render("s").partition(": ")[2]) for p in error.problems]
    assert [place[:2] for place in found] == [place[:2] for place in expected], str(error)
    for (_, _, text), (_, _, fragment) in zip(found, expected, strict=True):
        assert _without_folder(text, tmp_path).startswith(fragment)


@pytest.mark.parametrize("depth", [51, 999, 1001, 100_000])
def test_a_depth_that_libyaml_may_refuse_itself_is_told_in_the_same_words(depth: int, tmp_path: Path) -> None:
    """Where it does so, the place is that of its own limit, which is 1,000 levels."""
    spec = tmp_path / "deep.yaml"
    spec.write_text(f"a: {'[' * depth}{']' * depth}\n")
    [problem] = refused(spec, tmp_path).problems
    assert (problem.line, problem.render("s").partition(": ")[2]) == (1, "nested deeper than 50 levels")
    assert problem.column in ((53,) if depth < 1000 else (53, 1003))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_every_problem_is_one_harmless_line(path: Path, tmp_path: Path) -> None:
    error = refused(path, tmp_path)
    lines = str(error).split("\n")
    assert len(lines) == len(error.problems)
    for line in lines:
        assert line.isprintable()
        assert re.match(rf"{re.escape(str(tmp_path))}/\S+\.yaml:\d+:\d+: ", line)
        assert not re.search("pydantic|input_type|https?://|validation error", line, re.IGNORECASE)
    assert error.exit_code == 65


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_the_loader_without_libyaml_refuses_them_too(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "_LOADER", yaml.SafeLoader)
    error = refused(path, tmp_path)
    assert [p.line for p in error.problems] == [line for line, _, _ in expectations(path)]


def _without_folder(text: str, folder: Path) -> str:
    """`text` without the parts that name the folder of this test, as the corpus has them."""
    return re.sub(r" in '/[^']*'…?|; looked for '/.*", "", text) if str(folder)[:5] in text else text
