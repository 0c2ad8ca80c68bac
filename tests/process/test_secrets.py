"""Secrets are in no text that leaves a run, wherever the user's code puts them: nor is a line of one with several."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest

from forgectl.agent.event_log import MAX_TEXT, TEXT_FIELDS, EventLog
from forgectl.protocol.supervision import Happening, Notice, RankExited, StartFailed
from forgectl.redaction import Redaction
from forgectl.wire.envelope import Refusal
from tests.conftest import Forge, until

SECRET = "-----BEGIN KEY-----\nMIIE'vQ\"IB\\ADAN\nçà$(x)-second\n}\n-----END KEY-----"
LINES = [line for line in SECRET.split("\n") if len(line) > 1]
FORMS = {form for text in (SECRET, *LINES) for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1])}


def told(forge: Forge, spec: str, *commands: list[str]) -> str:
    """All that forgectl says, and leaves in files of its own, of a launch that fails and of these commands."""
    forge.env["TOKEN"] = SECRET
    launch = forge.run("launch", forge.spec(f"secrets: [TOKEN]\n{spec}"), *(["-d"] if commands else []))
    said = [launch.stdout if commands else "", launch.stderr]  # stdout has what ranks print
    for command in commands:
        result = forge.run(*command)
        assert result.returncode == 1, result
        said += [result.stdout, result.stderr]
    said += [forge.ok("status", "-a", "-v"), forge.ok("status", "-a", "--json")]
    forge.ok("shutdown", "--all")
    said += [forge.ok("status", "-a", "--json")]
    [run] = forge.runs()
    for path in forge.run_dir(run).rglob("*"):
        if path.is_file() and path.suffix != ".log":
            said.append(path.read_text(errors="replace") if not path.name.startswith(".") else "")
    text = "\n".join(said)
    for form in FORMS:
        assert form not in text, text
    assert "***" in text
    return text


def write(forge: Forge, body: str) -> None:
    forge.write("mine.py", f"import os\nfrom forgectl import ForgeActor, endpoint, service_endpoint\n{body}")


def test_of_a_preload_that_raises(forge: Forge) -> None:
    forge.write("bad.py", "import os\nraise ValueError('not liked: ' + os.environ['TOKEN'])\n")
    text = told(forge, "scripts: {stay: {run: PROGRAMS/stay.py, preload: [bad]}}")
    assert "cannot preload bad: " in text


@pytest.mark.parametrize("text", ["TOKEN", "repr(TOKEN)", "'x' * 32_700 + TOKEN"])
def test_of_a_script_that_raises(forge: Forge, text: str) -> None:
    forge.write("bad.py", f"import os\nTOKEN = os.environ.pop('TOKEN')\nraise ValueError({text})\n")
    assert "ValueError" in told(forge, "scripts: {bad: {run: bad.py, preload: []}}")


def test_of_the_last_lines_of_a_log(forge: Forge) -> None:
    forge.write("bad.py", "import os, sys\nprint('it is', os.environ['TOKEN'], flush=True)\nos._exit(3)\n")
    assert "it is ***" in told(forge, "scripts: {bad: {run: bad.py, preload: []}}")


@pytest.mark.parametrize("kind", ["actor", "service"])
@pytest.mark.parametrize("method", ["def __init__(self):", "@endpoint\n    def setup(self):"])
def test_of_a_constructor_or_setup_that_raises(forge: Forge, kind: str, method: str) -> None:
    write(forge, f"class Bad(ForgeActor):\n    {method}\n        raise ValueError(os.environ.pop('TOKEN'))\n")
    text = told(forge, f"{kind}s: {{bad: {{class: mine:Bad, procs: 1, preload: []}}}}\n")
    assert "its constructor or setup raised ValueError: ***" in text


@pytest.mark.parametrize("kind", ["actor", "service"])
def test_of_what_call_is_answered(forge: Forge, kind: str) -> None:
    body = "        self.token = os.environ.pop('TOKEN')\n"
    call = "    @endpoint\n    def ask(self):\n        raise KeyError(self.token)\n"
    write(forge, f"class Bad(ForgeActor):\n    def __init__(self):\n{body}{call}")
    text = told(forge, f"{kind}s: {{bad: {{class: mine:Bad, procs: 1, preload: []}}}}\n", ["call", "bad", "ask"])
    assert "bad.ask raised KeyError: '***'" in text or 'raised KeyError: "***"' in text


NAMES_ALL = """
import asyncio, os, threading

TOKEN = os.environ.pop("TOKEN")


async def wait():
    for token in TOKEN.split("\\n"):
        asyncio.create_task(asyncio.sleep(1000), name=f"task {token}")
    asyncio.create_task(asyncio.sleep(1000), name="x" * 290 + TOKEN)
    exec(compile("import asyncio\\nasync def there(): await asyncio.sleep(1000)", f"/{TOKEN}.py", "exec"), globals())
    await there()


for name in (TOKEN, repr(TOKEN)):
    threading.Thread(target=threading.Event().wait, name=f"thread {name}", daemon=True).start()
print("here", flush=True)
asyncio.run(wait())
"""


def test_of_stacks(forge: Forge) -> None:
    """Names of threads, tasks and files are the user's. Some are longer than what is kept of them."""
    forge.write("names.py", NAMES_ALL)
    forge.env["TOKEN"] = SECRET
    run = forge.launch("secrets: [TOKEN]\nscripts: {names: {run: names.py, preload: []}}")
    until(lambda: "here" in forge.ok("logs", run), "its threads")
    text = "\n".join(forge.ok("stack", run, *more) for more in ([], ["-v"], ["--json"], ["--native", "--json"]))
    forge.ok("shutdown", "--run", run)
    for form in (*FORMS, *(line[:12] for line in LINES)):
        assert form not in text, text
    assert "thread ***" in text and "task ***" in text


def test_of_hooks_incidents_events_and_why(forge: Forge) -> None:
    forge.write("bad.py", "import os\nprint(os.environ['TOKEN'], flush=True)\nraise ValueError(os.environ['TOKEN'])\n")
    forge.write("other.py", "import os, time\nprint(os.environ['TOKEN'], flush=True)\ntime.sleep(1000)\n")
    forge.env["TOKEN"] = SECRET
    result = forge.run(
        "launch",
        forge.spec(
            "secrets: [TOKEN]\non: {failed: 'cat >> given', ended: 'cat >> given'}\n"
            "scripts: {bad: {run: bad.py, preload: []}, other: {run: other.py, procs: 2, preload: []}}"
        ),
    )
    assert result.returncode == 1
    [run] = forge.runs()
    incidents = [path.read_text() for path in forge.run_dir(run).glob("incidents/*")]
    assert incidents
    told = [forge.ok("why", run), forge.ok("why", run, "--json"), forge.ok("events", run, "--json"), *incidents]
    told += [result.stderr, (forge.folder / "given").read_text()]
    for text in told:
        assert "ValueError: " in text and "***" in text, text
        for form in FORMS:
            assert form not in text, text


def words_of(message: type) -> set[str]:
    """The fields of a message that hold text, or messages with text."""
    hints = typing.get_type_hints(message)
    return {f.name for f in dataclasses.fields(message) if "str" in str(hints[f.name]) or hints[f.name] is Refusal}


def test_every_text_for_people_is_among_those_that_secrets_are_taken_out_of() -> None:
    """A new message, or field, is to be thought of: what is no name or place belongs to TEXT_FIELDS."""
    names = {"mesh", "log", "socket", "unkillable"}
    for message in (*typing.get_args(Happening), Refusal):
        assert words_of(message) - names == set(TEXT_FIELDS.get(message, ())), message


def test_what_an_agent_tells_is_redacted_before_it_is_cut() -> None:
    events: list[Any] = []
    log = EventLog(Redaction([SECRET, "", "hunter2"]))
    log.listener = lambda event: events.append(event.what)
    border = "x" * (MAX_TEXT - 3)
    log.emit(Notice("m", border + "hunter2"))
    log.emit(StartFailed("m", 0, "hunter2", "hunter2" + border))
    log.emit(RankExited("m", 0, 0, 1, None, log_tail=("a", *SECRET.split("\n"), "} hunter2")))
    assert events[0].message == border + "***"
    assert (events[1].message, events[1].detail) == ("***", "***" + border)
    assert events[2].log_tail == ("a", "***", "} ***")


def test_a_short_line_of_a_secret_is_no_secret() -> None:
    redact = Redaction(['{\n  "key": "sesame-open"\n}'])
    assert redact("if x {\n}") == "if x {\n}"
    assert redact('got   "key": "sesame-open"') == "got ***"
    assert Redaction([])("text") == Redaction([""])("text") == "text"
