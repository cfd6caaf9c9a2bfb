"""Signals are raised inside the process itself, so that nothing has to be waited for."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
from tests.processes import DEADLINE

from uvmshare.cli.foreground import Ready, Served, print_line, until_signalled

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform != "win32":
    SIGNALS.append(signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_it_after_it_has_cleaned_up(number: signal.Signals) -> None:
    story: list[str] = []

    async def serving() -> None:
        try:
            signal.raise_signal(number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            story.append("cleaned up")

    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(SystemExit, match="130") if number == signal.SIGINT else nullcontext():
        until_signalled(serving())
    assert story == ["cleaned up"]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_what_goes_wrong_is_raised() -> None:
    async def serving() -> None:
        msg = "no"
        raise OSError(msg)

    with pytest.raises(OSError, match="no"):
        until_signalled(serving())


def test_what_goes_wrong_while_cleaning_up_is_raised() -> None:
    async def serving() -> None:
        signal.raise_signal(signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            msg = "a share stays"
            raise OSError(msg)

    with pytest.raises(OSError, match="a share stays"):
        until_signalled(serving())


def test_it_may_end_by_itself() -> None:
    async def serving() -> None:
        await asyncio.sleep(0)

    until_signalled(serving())


def test_a_second_interrupt_does_not_wait_for_the_cleaning_up() -> None:
    story: list[str] = []

    async def serving() -> None:
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()
            story.append("never")

    with pytest.raises(KeyboardInterrupt):
        until_signalled(serving())
    assert story == []


if sys.platform != "win32":

    def test_a_signal_that_comes_when_the_loop_begins_to_wait_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
        """Another thread takes it, as if it came between the interpreter's last look for signals and epoll_wait(2)."""
        waits, switch = threading.Event(), sys.getswitchinterval()

        def interrupt() -> None:
            waits.wait()
            signal.raise_signal(signal.SIGTERM)

        async def serving() -> None:
            selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]  # nothing else tells of it
            select = selector.select

            def about_to_wait(timeout: float | None) -> Any:
                if timeout is None:
                    waits.set()
                return select(timeout)

            monkeypatch.setattr(selector, "select", about_to_wait)
            await asyncio.Event().wait()

        thread = threading.Thread(target=interrupt)
        sys.setswitchinterval(DEADLINE)  # the thread goes on when this one waits, and not before
        try:
            thread.start()
            until_signalled(serving())
        finally:
            sys.setswitchinterval(switch)
        thread.join(DEADLINE)
        assert not thread.is_alive()

    def test_nohup_is_respected() -> None:
        ignoring = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        story: list[str] = []

        async def serving() -> None:
            signal.raise_signal(signal.SIGHUP)
            await asyncio.sleep(0)
            story.append("goes on")

        try:
            until_signalled(serving())
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, ignoring)
        assert story == ["goes on"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (Served("0", "/a", read_only=False), '{"share":"0","path":"/a","read_only":false}'),
        (Served("1", "/a", read_only=True, only=("x",)), '{"share":"1","path":"/a","read_only":true,"only":["x"]}'),
        (Ready(ready=True, addresses=("unix:/a",)), '{"ready":true,"addresses":["unix:/a"]}'),
        (Ready(ready=True), '{"ready":true}'),
    ],
)
def test_lines_are_compact_json(line: Served | Ready, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    print_line(line)
    assert capfd.readouterr().out == text + "\n"
    assert msgspec.json.decode(text, type=type(line)) == line
