"""The page's HTTP, over its real port: what a browser gets, what others do not, and what the stream says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.harness import Home
from tests.dashboard.harness import Dashboard, Viewer
from tests.hostile_text import HOSTILE
from tests.processes import DEADLINE
from tests.root import needs_root

from uvmshare import peers
from uvmshare.dashboard import site
from uvmshare.errors import AccessDenied, DaemonError, InvalidAddress

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.daemon.harness import Running

ALICE = 12345
FILES = {
    "/": "text/html; charset=utf-8",
    "/page.css": "text/css; charset=utf-8",
    "/page.js": "text/javascript; charset=utf-8",
    "/icon.svg": "image/svg+xml",
}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with Home.made() as home, home.running() as daemon:
        yield daemon


@pytest.fixture
def dashboard(running: Running) -> Iterator[Dashboard]:
    with Dashboard.running(running.home.host) as dashboard:
        yield dashboard


@pytest.fixture
def viewer(dashboard: Dashboard) -> Iterator[Viewer]:
    viewer = dashboard.viewer()
    yield viewer
    viewer.close()


def ended(connection: socket.socket) -> bool:
    """Whether the other end is gone, and said nothing."""
    connection.settimeout(DEADLINE)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_the_browser_gets_the_files_and_nothing_else(viewer: Viewer) -> None:
    for path, kind in FILES.items():
        answer = viewer.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
        assert answer.read()
    for path in ("/nowhere", "/page.html", "/../door.py", "/%2e%2e/door.py", "/page.js/", "/stream/", "//page.js"):
        answer = viewer.get(path)
        assert (answer.status, answer.read()[:8]) == (404, b"There is"), path


def test_every_answer_keeps_the_page_to_itself(dashboard: Dashboard, viewer: Viewer) -> None:
    stranger = Viewer(dashboard.port)
    for who, path in ((viewer, "/"), (viewer, "/page.js"), (viewer, "/nowhere"), (stranger, "/"), (viewer, "/stream")):
        answer = who.get(path)
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        if path != "/stream":
            answer.read()
    stranger.close()


def test_the_page_holds_nothing_inline_and_names_no_other_place() -> None:
    folder = os.path.dirname(site.__file__)
    for name in ("page.html", "page.css", "page.js", "icon.svg"):
        with open(f"{folder}/{name}", encoding="utf-8") as file:
            text = file.read()
        namespaces = {"http://www.w3.org/2000/svg"}
        assert set(re.findall(r"""https?://[^"'\s)]+""", text)) <= namespaces, name
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "@import"):
            assert word not in text, (name, word)
        if name == "page.html":
            assert not re.search(r"""\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)""", text)


def test_without_the_cookie_there_is_nothing_and_the_words_tell_what_to_do(dashboard: Dashboard) -> None:
    stranger = Viewer(dashboard.port)
    for path in (*FILES, "/stream", "/nowhere", "/?token=x"):
        answer = stranger.get(path)
        assert answer.status == 403
        assert b"`uvmshare dashboard`" in answer.read()
    answer = stranger.get("/", Host="evil.example")
    assert (answer.status, answer.read().count(b"\n")) == (421, 1)
    answer = stranger.get("/", method="POST")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")
    answer.read()
    assert stranger.enter(dashboard.link).get("/").status == 200
    stranger.close()


def test_a_request_that_two_readers_read_in_two_ways_is_refused(dashboard: Dashboard) -> None:
    for head in (
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"Host: 127.0.0.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ):
        with closing(dashboard.dial()) as connection:
            connection.sendall(head + b"\r\n\r\n")
            assert re.match(rb"HTTP/1\.1 4\d\d ", connection.recv(4096)), head[:40]


def test_the_stream_begins_with_all_there_is_and_goes_on_with_what_happens(running: Running, viewer: Viewer) -> None:
    home = running.home
    path = home.directory("project")
    before = viewer.view()
    assert (before["daemon"]["reached"], before["daemon"]["info"]["uid"]) == (True, os.geteuid())
    assert before["vms"] == []
    tab = viewer.another()
    stream = tab.messages()
    running.add_vm("seen")
    share = running.add_share(path, "seen", owner="job-7", lease=60)

    def has_share(kind: str, document: Any) -> bool:
        vms = document["vms"] if kind == "view" else []  # one of a moment ago has the share and nobody who holds it yet
        return any(vm["vm"]["shares"] and any(each["references"] for each in vm["shares"]["items"]) for vm in vms)

    happened: list[str] = []
    for kind, document in stream:
        if kind == "happened":
            happened += [event["kind"] for event in document]
        if has_share(kind, document) and "share.held" in happened:
            break
    (vm,) = document["vms"]
    assert (vm["vm"]["id"], vm["vm"]["state"], vm["vm"]["shares"]) == ("seen", "running", 1)
    (shown,) = vm["shares"]["items"]
    assert (shown["name"], shown["path"]) == (share.name, path)
    assert document["totals"]["shares"] == 1
    (reference,) = shown["references"]
    assert (reference["owner"], reference["uid"], reference["lease"]) == ("job-7", os.geteuid(), 60)
    assert 0 < reference["expires_in"] <= 60
    assert document["totals"]["leases"] == 1
    assert happened[:2] == ["vm.added", "share.held"]
    running.pass_time(61)
    assert any(event["kind"] == "lease.ended" for kind, document in stream if kind == "happened" for event in document)
    with home.client() as client:
        client.vms.remove("seen", force=True)
    assert next(document for kind, document in stream if kind == "view" and not document["vms"])
    # Who comes later is told of what was before.
    late = viewer.another()
    events = late.until(lambda kind, _: kind == "happened")
    assert [event["kind"] for event in events][:2] == ["vm.added", "share.held"]
    late.close()
    tab.close()


def test_names_of_others_reach_the_page_as_text_that_shows_itself(running: Running, viewer: Viewer) -> None:
    texts = ("<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", *HOSTILE)
    names = {text.encode("utf-8", "replace").decode()[:50].replace("/", "|").replace("\0", "") for text in texts} - {""}
    running.add_vm("hostile")
    for name in names:
        running.add_share(running.home.directory(f"hostile/{name}"), "hostile", only=(name,))
    view = viewer.view(lambda view: any(vm["shares"]["total"] == len(names) for vm in view["vms"]))
    (vm,) = view["vms"]
    for shown in vm["shares"]["items"]:
        for each in (shown["path"], *shown["only"]):
            assert each.isprintable(), ascii(each)
    with running.home.client() as client:
        client.vms.remove("hostile", force=True)


@needs_root
def test_another_user_of_the_host_is_cut_before_a_byte_is_read_even_with_the_link(dashboard: Dashboard) -> None:
    program = (
        "import encodings.idna, http.client, os, sys\n"
        f"os.setgroups([]); os.setresgid(*[{ALICE}] * 3); os.setresuid(*[{ALICE}] * 3)\n"
        f"connection = http.client.HTTPConnection('127.0.0.1', {dashboard.port}, timeout={DEADLINE})\n"
        "try:\n"
        f"    connection.request('GET', {dashboard.link.partition(str(dashboard.port))[2]!r})\n"
        "    print(connection.getresponse().status)\n"
        "except ConnectionError:\n"
        "    print('cut')\n"
    )
    done = subprocess.run([sys.executable, "-ISc", program], capture_output=True, text=True, check=True)
    assert done.stdout == "cut\n"
    told = dashboard.told.get(timeout=DEADLINE)
    assert f"uid {ALICE}" in told
    assert "--allow-uid" in told
    dashboard.viewer().close()  # the link was not used up


@needs_root
def test_a_user_who_was_allowed_needs_the_link_as_well(running: Running) -> None:
    with Dashboard.running(running.home.host, allow_uids=(ALICE,)) as dashboard:
        program = (
            "import encodings.idna, http.client, os\n"
            f"os.setgroups([]); os.setresgid(*[{ALICE}] * 3); os.setresuid(*[{ALICE}] * 3)\n"
            f"connection = http.client.HTTPConnection('127.0.0.1', {dashboard.port}, timeout={DEADLINE})\n"
            f"for path in ('/', {dashboard.link.partition(str(dashboard.port))[2]!r}):\n"
            "    connection.request('GET', path)\n"
            "    answer = connection.getresponse()\n"
            "    answer.read()\n"
            "    print(answer.status)\n"
        )
        done = subprocess.run([sys.executable, "-ISc", program], capture_output=True, text=True, check=True)
        assert done.stdout == "403\n200\n"


def test_one_who_connects_again_and_again_is_told_of_a_few_times(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        msg = "not yours"
        raise AccessDenied(msg)

    monkeypatch.setattr(peers, "require_peer", refuse)
    with Dashboard.running(running.home.host) as dashboard:
        for _ in range(20):
            with closing(dashboard.dial()) as connection:
                assert ended(connection)
    assert dashboard.told.qsize() == 5
    assert dashboard.told.get() == "connection.refused: not yours"


def test_more_pages_than_there_is_room_for_are_refused_in_words(
    dashboard: Dashboard, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "MOST_VIEWERS", 3)
    with ExitStack() as open_:
        tabs = [open_.enter_context(closing(viewer.another())) for _ in range(4)]
        for tab in tabs[:3]:
            assert next(tab.messages())
        answer = tabs[3].get("/stream")
        assert answer.status == 503
        assert b"3 pages are open" in answer.read()
        assert tabs[3].get("/").status == 200


def test_when_it_ends_the_pages_are_told(running: Running) -> None:
    with Dashboard.running(running.home.host) as dashboard:
        viewer = dashboard.viewer()
        stream = viewer.messages()
        assert next(stream)
        dashboard.end()
        assert [kind for kind, _ in stream][-1] == "end"
        viewer.close()


def test_the_page_says_that_the_daemon_is_away_since_when_and_goes_on_when_it_is_back() -> None:
    with Home.made() as home, ExitStack() as later:
        with home.running() as daemon:
            daemon.add_vm("kept")
            daemon.add_share(home.directory("project"), "kept")
            dashboard = later.enter_context(Dashboard.running(home.host))
            viewer = later.enter_context(closing(dashboard.viewer()))
            stream = viewer.messages()
            views = (document for kind, document in stream if kind == "view")
            first = next(view for view in views if view["vms"] and view["vms"][0]["shares"]["items"])
        away = next(document for kind, document in stream if kind == "view" and not document["daemon"]["reached"])
        assert "no daemon answers" in away["daemon"]["error"]
        assert first["now"] - 60 < away["daemon"]["since"] <= away["now"]
        (vm,) = away["vms"]
        assert vm["shares"]["items"], "what it said last is still there"
        assert vm["shares"]["age"] >= 0
        with home.running():
            back = next(document for kind, document in stream if kind == "view" and document["daemon"]["reached"])
            assert back["daemon"]["since"] >= away["daemon"]["since"]
            assert back["daemon"]["error"] is None
            # Events of the daemon before it are marked off from those of this one.
            events = next(document for kind, document in stream if kind == "happened" and None in document)
            assert any(event["kind"] == "vm.found" for event in events if event) or next(
                True
                for kind, document in stream
                if kind == "happened" and any(event and event["kind"] == "vm.found" for event in document)
            )


def test_without_a_daemon_or_a_port_it_says_so_before_it_serves(running: Running) -> None:
    with pytest.raises(DaemonError, match="no daemon answers at /nowhere/x"), Dashboard.running("unix:/nowhere/x"):
        pass
    with pytest.raises(InvalidAddress, match="write unix:PATH"), Dashboard.running("tcp:127.0.0.1:1"):
        pass
    with (
        Dashboard.running(running.home.host) as dashboard,
        pytest.raises(DaemonError, match=rf"port {dashboard.port} of 127.0.0.1: .* choose another with --port"),
        Dashboard.running(running.home.host, port=dashboard.port),
    ):
        pass


@needs_root
def test_a_user_sees_their_own_vms_and_no_others(running: Running) -> None:
    running.add_vm("roots")
    running.add_share(running.home.directory("secret"), "roots")
    program = (
        "import os, sys\n"
        "import uvmshare.cli.main, uvmshare.cli.dashboard, uvmshare.dashboard.server, uvmshare.dashboard.source\n"
        "import encodings.idna, uvicorn.lifespan.off, uvicorn.loops.asyncio, httpcore\n"
        "import anyio._backends._asyncio, importlib.readers\n"
        f"os.setgroups([]); os.setresgid(*[{ALICE}] * 3); os.setresuid(*[{ALICE}] * 3)\n"
        "sys.exit(uvmshare.cli.main.run(['dashboard', '--json', '--host', sys.argv[1]]))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, running.home.host], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            link = re.search(r'"url":"([^"]+)"', process.stdout.readline())
            assert link is not None
            port = int(link[1].split(":")[2].split("/")[0])
            viewer = Viewer(port).enter(link[1])
            view = viewer.view()
            assert (view["vms"], view["totals"]["vms"], view["daemon"]["info"]["you"]) == ([], 0, ALICE)
            viewer.close()
        finally:
            process.terminate()
    with running.home.client() as client:
        client.vms.remove("roots", force=True)
