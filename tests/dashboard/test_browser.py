"""The page in a real browser: what a reader sees, whatever the daemon and others do. One Chromium for all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.harness import Home
from tests.dashboard.harness import Dashboard

from chromium import Chromium

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chromium import Page

HTML = (
    "<img src=x onerror=document.title='gone'>",
    "<svg onload=document.title='gone'>",
    "'\"><script>document.title='gone'<|script>",
    "{{7*7}} ${7*7} &lt;b&gt;",
    "\u202egnp.exe",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium.started() as browser:
        yield browser


@pytest.fixture
def home() -> Iterator[Home]:
    with Home.made() as home:
        yield home


def shows(page: Page, text: str) -> None:
    page.wait_for(f"document.body.innerText.includes({json.dumps(text)})")


def rows(page: Page, selector: str) -> list[str]:
    found: list[str] = page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.innerText)")
    return found


def opened(browser: Chromium, dashboard: Dashboard, **look: Any) -> Page:
    page = browser.page(dashboard.link, **look)
    page.wait_for("document.querySelector('#link')?.innerText === 'live'")
    return page


def names_no_other_place(page: Page, dashboard: Dashboard) -> None:
    allowed = (f"http://127.0.0.1:{dashboard.port}/", "about:blank")
    assert [url for url in page.asked if not url.startswith(allowed)] == []


def test_from_the_first_look_to_the_end(browser: Chromium, home: Home) -> None:
    with home.running() as daemon:
        with Dashboard.running(home.host) as dashboard:
            page = opened(browser, dashboard)
            # Nobody has a VM yet: the page says what to type, and has left the token behind.
            shows(page, "uvmshare vm add build firecracker:/run/fc/v.sock")
            shows(page, "Nothing has happened since the daemon was started.")
            assert page.run("location.href") == f"http://127.0.0.1:{dashboard.port}/"
            assert page.run("document.cookie") == ""
            assert page.run("document.title") == "0 VMs · uvmshare"

            # It is there without anybody reloading anything.
            daemon.add_vm("build")
            shows(page, "uvmshare share add build ~/project:ro")
            path = home.directory("project")
            share = daemon.add_share(path, "build", owner="job-7", lease=3600)
            page.wait_for("document.querySelector('.holder .left')")
            (row,) = rows(page, "article.vm tbody tr")
            assert row.split()[:3] == [share.name, path, "rw"]
            assert "job-7" in row
            (left,) = rows(page, ".holder .left")
            assert left in ("1 h 00 min", "59 min 59 s", "59 min 58 s"), "the daemon's clock stands still in this test"
            page.wait_for("document.querySelectorAll('#log li').length === 2")
            assert [line.split("\n")[1].split()[0] for line in rows(page, "#log li")] == ["share.held", "vm.added"]

            # A lease that is over takes the share along, and the page says so.
            daemon.pass_time(3601)
            shows(page, "lease.ended")
            shows(page, "Nothing is shared with this VM.")

            # Another tab of the same browser is in; the link is void for others.
            another = browser.page(f"http://127.0.0.1:{dashboard.port}/")
            shows(another, "lease.ended")
            another.close()
            stranger = browser.send("Target.createBrowserContext")["browserContextId"]
            page_of_stranger = browser.page(dashboard.link, context=stranger)
            shows(page_of_stranger, "The link lets one browser in, once")
            page_of_stranger.close()
            assert page.complaints == []
            names_no_other_place(page, dashboard)
        shows(page, "The command was ended.")
        assert page.run("document.querySelector('article.vm').classList.contains('stale')") is True
        page.close()


def test_a_daemon_that_goes_away_greys_the_page_until_it_is_back(browser: Chromium, home: Home) -> None:
    with home.running() as daemon:
        daemon.add_vm("kept")
        path = home.directory("project")
        daemon.add_share(path, "kept")
        started = Dashboard.running(home.host)
        dashboard = started.__enter__()
        page = opened(browser, dashboard)
        shows(page, path)
    try:
        shows(page, "The daemon has not been reached since ")
        shows(page, "no daemon answers at")
        assert path in page.text(), "what it said last is there"
        page.wait_for("document.querySelector('article.vm').classList.contains('stale')")
        page.wait_for("/as of \\d+ s ago/.test(document.querySelector('#link').innerText)")
        assert page.run("document.title").startswith("! daemon not reached")
        with home.running():
            page.wait_for("document.querySelector('#link').innerText === 'live'")
            page.wait_for("!document.querySelector('.banner')")
            page.wait_for("!document.querySelector('article.vm').classList.contains('stale')")
            shows(page, "vm.found")
            shows(page, "Some events between these are not kept, or were before the daemon was started again.")
            assert page.complaints == []
    finally:
        page.close()
        started.__exit__(None, None, None)


def test_names_of_others_are_text_whatever_is_in_them(browser: Chromium, home: Home) -> None:
    with home.running() as daemon, Dashboard.running(home.host) as dashboard:
        daemon.add_vm("hostile")
        for name in HTML:
            daemon.add_share(home.directory(f"hostile/{name}"), "hostile", only=(name,))
        page = opened(browser, dashboard)
        page.wait_for(f"document.querySelectorAll('article.vm tbody tr').length === {len(HTML)}")
        page.wait_for(f"document.querySelectorAll('#log li').length === {len(HTML) + 1}")
        text = page.text()
        for name in HTML[:-1]:
            assert text.count(f"hostile/{name}") >= 2, "in the table, and among the events"
        assert "\u202e" not in text
        assert r"\u202egnp.exe" in text
        assert page.run("document.title") == "1 VM · uvmshare"
        assert page.run("document.querySelectorAll('#vms img, #log img, script:not([src])').length") == 0
        # Had the page made HTML of it, the policy would have said no.
        refused = "(() => { try { document.body.innerHTML = '<b>'; return false } catch { return true } })()"
        assert page.run(refused) is True
        names_no_other_place(page, dashboard)
        page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_is_within_the_page_and_can_be_read_however_wide_it_is(
    browser: Chromium, home: Home, dark: bool
) -> None:
    with home.running() as daemon, Dashboard.running(home.host) as dashboard:
        vm = "a-name-that-is-as-long-as-names-may-be." + "x" * 24
        daemon.add_vm(vm)
        path = home.directory("long/" + "/".join(["0123456789" * 4] * 6))
        for owner in ("one", "two", "o" * 128):
            daemon.add_share(path, vm, owner=owner, lease=100)
        page = opened(browser, dashboard, dark=dark)
        shows(page, path)
        for width in (360, 400, 721, 1080, 1920):
            page.look(width, 900, dark=dark)
            page.wait_for(f"innerWidth === {width}")
            over = page.run(
                "[...document.querySelectorAll('body *')].filter((each) => !each.closest('.skip') && "
                "each.getBoundingClientRect().right > innerWidth + 0.5).map((each) => each.className || each.localName)"
            )
            assert over == [], f"{width} pixels wide"
        assert _unreadable(page) == []
        page.close()


def _unreadable(page: Page) -> list[str]:
    """Return the texts whose contrast with what is behind them is below 4.5:1 (WCAG 2.2, 1.4.3)."""
    found: list[str] = page.run(
        """(() => {
          const parse = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
          const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
          const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
          const behind = (node) => {
            for (; node; node = node.parentElement) {
              const color = parse(getComputedStyle(node).backgroundColor);
              if (color.length < 4 || color[3] > 0) return color;
            }
            return [255, 255, 255];
          };
          const bad = [];
          for (const node of document.querySelectorAll("body *")) {
            if (![...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim())) continue;
            if (!node.checkVisibility() || node.closest(".skip")) continue;
            const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
            const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (contrast < 4.5) bad.push(`${node.className || node.localName}: ${contrast.toFixed(2)}`);
          }
          return [...new Set(bad)];
        })()"""
    )
    return found


def test_a_reader_of_the_page_by_ear_or_by_keyboard_gets_all_of_it(browser: Chromium, home: Home) -> None:
    with home.running() as daemon, Dashboard.running(home.host) as dashboard:
        daemon.add_vm("build")
        daemon.add_share(home.directory("project"), "build")
        page = opened(browser, dashboard)
        page.wait_for("document.querySelector('article.vm tbody tr')")
        assert page.run("document.documentElement.lang") == "en"
        assert page.run(
            "[...document.querySelectorAll('section, article')]"
            ".every((each) => each.ariaLabel || each.getAttribute('aria-labelledby'))"
        )
        assert page.run("[...document.querySelectorAll('table')].every((each) => each.caption)")
        assert page.run("[...document.querySelectorAll('thead th')].every((each) => each.scope === 'col')")
        assert page.run("[...document.querySelectorAll('svg.spark')].every((each) => each.ariaLabel)")
        assert page.run("document.querySelector('#link').role") == "status"
        # The first press of Tab leads past the heading.
        page.send("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        page.wait_for("document.activeElement.className === 'skip'")
        # What is new does not take away what somebody has marked.
        page.run("getSelection().selectAllChildren(document.querySelector('article.vm .path bdi'))")
        marked = page.run("getSelection().toString()")
        daemon.add_share(home.directory("another"), "build", owner="late")
        page.wait_for("document.querySelectorAll('article.vm tbody tr').length === 2")
        assert page.run("getSelection().toString()") == marked != ""
        assert page.complaints == []
        page.close()


def test_what_a_daemon_tells_of_its_agents_health_is_shown_with_its_time(browser: Chromium, home: Home) -> None:
    with home.running() as daemon, Dashboard.running(home.host) as dashboard:
        daemon.add_vm("build")
        page = opened(browser, dashboard)
        page.wait_for("document.querySelector('article.vm .empty')")
        script = """(() => {
          const of = known.view.vms[0], since = new Date((now() - 90.5) * 1000).toISOString();
          Object.assign(of.vm, {agent: "unix:/x", agent_state: "unreachable", agent_since: since,
                                agent_error: "it did not answer", notes: ["no guest reaches vsock:3"]});
          of.mounts = {total: 1, age: 0, error: null, items: [{guest_path: "/mnt/x", path: "/x", share: "0",
            read_only: true, only: [], hide: [], map_owner: null, cache: "auto", chosen: null, state: "mounted",
            busy: null, orphan: false, last_error: null, directory: "there", references: [],
            unreachable_since: since}]};
          show();
          return document.querySelector("article.vm").innerText.replaceAll(/\\s+/g, " ");
        })()"""
        shown = page.run(script)
        assert "agent unreachable 1 min" in shown
        assert "agent at unix:/x: it did not answer" in shown
        assert "no guest reaches vsock:3" in shown
        assert "unreachable since 1 min" in shown
        assert "; was mounted" in shown
        page.close()
