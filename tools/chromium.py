"""A headless Chromium, driven over the DevTools protocol on a pair of pipes: standard library alone.

What lives here: starting it, pages, scripts in them, pictures of them. What must not: which page is looked at (tests,
`dashboard_pictures`).

`--remote-debugging-pipe`: Chromium reads commands on descriptor 3 and answers on descriptor 4, each a JSON document
that a NUL byte ends. https://chromedevtools.github.io/devtools-protocol/ has the commands.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Chromium", "Page"]

DEADLINE: Final = 60.0
"""Seconds until a browser that hangs is given up. Nothing is measured with it."""


class Chromium:
    """A browser with one profile of its own, which goes away with it."""

    def __init__(self, process: subprocess.Popen[bytes], commands: int, answers: int) -> None:
        self.process = process
        self._commands = commands
        self._answers = answers
        self._last = 0
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        threading.Thread(target=self._read, daemon=True).start()

    @classmethod
    @contextlib.contextmanager
    def started(cls) -> Iterator[Chromium]:
        """Start it, and end it with the block."""
        program = shutil.which("chromium")
        if program is None:
            message = "there is no chromium: tools/packages test"
            raise FileNotFoundError(message)
        profile = tempfile.mkdtemp(prefix="uvmc-")
        commands, answers = os.pipe(), os.pipe()
        options = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",  # it shows this project's page alone, and root has no sandbox
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        wired = f'exec "$@" 3<&{commands[0]} 4>&{answers[1]}'
        with open(f"{profile}/stderr", "wb") as errors:
            process = subprocess.Popen(
                ["bash", "-c", wired, "bash", program, *options],
                pass_fds=(commands[0], answers[1]),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**os.environ, "HOME": profile, "TZ": "UTC"},
            )
        os.close(commands[0])
        os.close(answers[1])
        browser = cls(process, commands[1], answers[0])
        try:
            yield browser
        finally:
            with contextlib.suppress(OSError, RuntimeError, queue.Empty):
                browser.send("Browser.close")
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(commands[1])
            os.close(answers[0])
            shutil.rmtree(profile, ignore_errors=True)

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send one command, and return its result. Raises `RuntimeError` with what the browser says."""
        self._last += 1
        number = self._last
        answer = self._waiting[number] = queue.SimpleQueue()
        document = {"id": number, "method": method, "params": parameters}
        if session is not None:
            document["sessionId"] = session
        os.write(self._commands, json.dumps(document).encode() + b"\0")
        found = answer.get(timeout=DEADLINE)
        if "error" in found:
            message = f"{method}: {found['error']['message']}"
            raise RuntimeError(message)
        result: dict[str, Any] = found["result"]
        return result

    def _read(self) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while data := os.read(self._answers, 1 << 16):
                *whole, rest = (rest + data).split(b"\0")
                for each in whole:
                    self._take(json.loads(each))

    def _take(self, document: dict[str, Any]) -> None:
        if "id" in document:
            waiting = self._waiting.pop(document["id"], None)
            if waiting is not None:
                waiting.put(document)
        elif (page := self._pages.get(document.get("sessionId", ""))) is not None:
            page.note(document["method"], document["params"])

    def page(
        self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, context: str | None = None
    ) -> Page:
        """Open a page in a tab of its own; in a context, which has cookies of its own, where one is given."""
        where = {} if context is None else {"browserContextId": context}
        target = self.send("Target.createTarget", url="about:blank", **where)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.look(width, height, dark=dark)
        page.send("Page.navigate", url=url)
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self._target = target
        self.complaints: list[str] = []
        """What the page's console, its scripts and its policy complained of."""
        self.asked: list[str] = []
        """Every address that it asked for."""

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self._browser.send(method, self._session, **parameters)

    def note(self, method: str, parameters: dict[str, Any]) -> None:
        """Keep what is asked for later."""
        if method == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            entry = parameters["entry"]
            self.complaints.append(f"{entry['text']} [{entry.get('url', '')}]")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"]))

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give it a size, in pixels, and the user's wish for light or dark."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if dark else "light"
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, script: str) -> Any:
        """Return what an expression of JavaScript comes to. Raises `RuntimeError` with what it throws."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Ask until an expression comes to something true, and return that."""
        give_up = time.monotonic() + DEADLINE
        while not (found := self._tried(script)):
            if time.monotonic() > give_up:
                text = self._tried("document.body.innerText")
                message = f"never true: {script}; the page shows {text!r}, and complains of {self.complaints}"
                raise TimeoutError(message)
            time.sleep(0.05)
        return found

    def _tried(self, script: str) -> Any:
        try:
            return self.run(script)
        except RuntimeError:  # between two pages
            return None

    def text(self) -> str:
        """Return what a reader sees."""
        return str(self.run("document.body.innerText"))

    def picture(self, *, whole: bool = False) -> bytes:
        """Return a PNG of what is seen, or of all of the page."""
        more: dict[str, Any] = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            more = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **more)
        return base64.b64decode(found["data"])

    def close(self) -> None:
        """Close the tab."""
        self._browser.send("Target.closeTarget", targetId=self._target)
