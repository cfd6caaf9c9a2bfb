"""No name, reason or path reaches the terminal raw, by whatever command it is shown."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.text import Text
from tests.hostile_text import HOSTILE, assert_safe, document, texts

from uvmshare import errors
from uvmshare.cli import doctor, events, foreground, mounts, owner, pictures, remote, stats, top
from uvmshare.cli import share as share_
from uvmshare.cli import vm as vm_
from uvmshare.cli.main import run
from uvmshare.daemon.documents import Event, Finding, Info, Mount, Share, Stats, Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

few = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))


class _Client:
    """A daemon that answers everything with what it was given, by the name of the call: "shares.add"."""

    def __init__(self, answer: Callable[[str], Any], name: str = "") -> None:
        self._answer, self._name = answer, name

    def __getattr__(self, name: str) -> _Client:
        return _Client(self._answer, f"{self._name}.{name}" if self._name else name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self._answer(self._name)


def written(args: tuple[str, ...], answer: Callable[[str], Any]) -> tuple[str, str]:
    """Run a command against such a daemon, on a terminal of few columns, and return what it wrote."""

    @contextlib.contextmanager
    def connected(*_: object) -> Iterator[_Client]:
        yield _Client(answer)

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        for module in (doctor, events, mounts, owner, remote, share_, stats, top, vm_):
            patch.setattr(module, "connected", connected)
        patch.setattr("uvmshare.cli.top.time.sleep", lambda _: None)
        patch.setenv("COLUMNS", "100")
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        run(args)
    for stream in (out, err):
        stream.flush()
        assert isinstance(stream.buffer, io.BytesIO)
    return out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


COMMANDS: dict[tuple[str, ...], dict[str, type | tuple[type]]] = {
    ("vm", "ls"): {"vms": (Vm,)},
    ("vm", "add", "vm", "unix:/x"): {"vms.add": Vm},
    ("share", "ls", "vm"): {"shares": (Share,)},
    ("share", "ls"): {"vms": (Vm,), "shares": (Share,)},
    ("share", "add", "vm", "/"): {"info": Info, "shares": (Share,), "shares.add": Share},
    ("share", "inspect", "vm", "0"): {"shares.get": Share},
    ("map", "vm", "/", "/mnt"): {"mounts.map": Mount},
    ("mounts", "vm"): {"mounts": (Mount,)},
    ("stats", "vm"): {"vms.stats": (Stats,)},
    ("top", "vm", "--times", "1"): {"vms": (Vm,), "vms.stats": (Stats,)},
    ("vm", "inspect", "vm"): {"vms.get": Vm},
    ("owner", "ls", "vm"): {"shares": (Share,), "mounts": (Mount,)},
    ("events",): {"events": (Event,)},
    ("doctor", "--vm", "vm"): {"shares": (Share,), "vms.examine": (Finding,)},
}
NO_JSON = {"inspect"}


@few
@given(st.data())
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_whatever_the_daemon_tells_is_shown_safely(args: tuple[str, ...], as_json: bool, data: st.DataObject) -> None:
    answers = {}
    for name, kind in COMMANDS[args].items():
        strategy = st.lists(document(kind[0]), max_size=3) if isinstance(kind, tuple) else document(kind)
        answers[name] = data.draw(strategy)
    as_json = as_json and not NO_JSON & set(args)
    out, err = written((*args, *(["--json"] if as_json else [])), answers.__getitem__)
    assert_safe(out)
    assert_safe(err)
    assert "defect" not in err
    if as_json:
        for text in out.splitlines() if args[0] in {"events", "top"} else [out]:
            json.loads(text)


@few
@given(texts())
@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_whatever_the_daemon_refuses_with_is_one_line(args: tuple[str, ...], reason: str) -> None:
    def refuse(_: str) -> None:
        raise errors.DaemonError(reason)

    out, err = written(args, refuse)
    assert_safe(out)
    assert_safe(err)
    assert "defect" not in err
    if args[0] != "doctor":  # to which it is a finding
        assert err.count("\n") == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_is_on_the_command_line_is_shown_safely(text: str) -> None:
    for args in (
        (text,),
        (f"--{text}",),
        ("share", text),
        ("serve", "--listen", text, "/"),
        ("serve", "--listen", "unix:/run/x", f"{text}:ro:rw"),
        ("serve", "--listen", "unix:/run/x", "--limit", text, "/"),
        ("serve", "--listen", "unix:/run/x", f"/nonexistent/{text}"),
        ("vm", "add", "vm", "unix:/x", "--security-model", text),
        ("top", "--interval", text),
        ("doctor", text),
        ("completion", text),
        ("guest", "mount", text, "0", "/mnt"),
        ("guest", "mount", "vsock:2", "0", "/mnt", f"--{text}"),
        ("guest", "agent", "--allow", text, f"--{text}"),
    ):
        with contextlib.suppress(SystemExit):  # argparse, of the guest's commands
            out, err = written(args, lambda _: [])
            assert_safe(out)
            assert_safe(err)
            assert "defect" not in err, (args, err)


@given(texts())
def test_the_console_makes_printable_what_no_cell_did(text: str) -> None:
    output = io.StringIO()
    console = pictures.SafeConsole(file=output, width=40)
    console.print(text)
    console.print(Text(text))
    assert_safe(output.getvalue())


@given(st.builds(foreground.Served, texts(), texts(), st.booleans(), st.lists(texts(), max_size=2).map(tuple)))
def test_the_lines_of_serve_are_json(line: foreground.Served) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(output):
        foreground.print_line(line)
    output.flush()
    assert_safe(output.buffer.getvalue().decode())
    json.loads(output.buffer.getvalue())


def test_a_value_of_an_event_makes_up_no_field() -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    detail = {"path": "/a owner=root"}
    event = Event(id="1", time=when, kind="share.held", vm="vm", share="0", owner=None, detail=detail)
    assert events.line_of(event) == '2026-01-02 00:00:00 vm share.held share=0 path="/a owner=root"'


def test_a_detail_of_an_event_is_written_without_words_of_python() -> None:
    detail = {"addresses": ["unix:/a", "tcp:127.0.0.1:1"], "read_only": False, "events": True, "lease": None}
    when = datetime(2026, 1, 2, tzinfo=UTC)
    event = Event(id="1", time=when, kind="vm.added", vm="vm", share=None, owner=None, detail=detail)
    assert events.line_of(event).endswith("vm.added addresses=unix:/a,tcp:127.0.0.1:1 read_only=false events=true")
