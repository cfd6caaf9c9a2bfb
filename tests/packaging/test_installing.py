"""What docs/installing.md says is typed into a fresh Debian 12 and 13, line by line, from a clean clone.

The roots are made once, below .cache. There Python packages come from a directory with what this host's pip fetched, so
that the lines are the page's own and no host's settings of pip count.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Final

import pytest
from tests.processes import DEADLINE

from debian_root import Bind, Failed, enter, made
from newer_python import ROOT, download, python_of, requirements

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.long

PAGE: Final = (ROOT / "docs" / "installing.md").read_text()
PACKAGES: Final = ("adduser", "binutils", "git", "make", "pipx", "python3", "python3-venv", "sudo")
CLONE: Final = "/root/clone"
GROUND: Final = f"git clone --quiet --shared --no-checkout /repository {CLONE} && cd {CLONE} && umask 077\n"


def typed(heading: str) -> str:
    """The lines to type of a section, its subsections left out."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n#", 1)[0]
    blocks = re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return "".join(line.removeprefix("$ ") for block in blocks for line in block.splitlines(keepends=True))


class Root:
    """A fresh Debian with what a person has before the page begins."""

    def __init__(self, suite: str, wheels: Path) -> None:
        self.path = made(suite, *PACKAGES)
        self.python = python_of(self.path)
        names = ["hatchling>=1.25", "editables>=0.5", "pip", "setuptools", "wheel", *requirements()]
        download(self.python, names, wheels)
        self.binds = [Bind(self._repository(), "/repository"), Bind(wheels, "/wheels")]

    @staticmethod
    def _repository() -> str:
        command = ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    def attempt(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script in a clean clone of what is committed here, as root."""
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
        whole = f"set -eux\n{GROUND}git checkout --quiet {commit.stdout.strip()}\n{script}"
        environment = {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "/wheels",
            "USER": "root",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        command = ["bash", "-c", whole]
        return enter(self.path, command, binds=self.binds, environment=environment, capture=True, timeout=20 * DEADLINE)

    def run(self, script: str) -> str:
        done = self.attempt(script)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """A root of each release."""
    try:
        yield Root(request.param, tmp_path_factory.mktemp("wheels"))
    except Failed as error:
        pytest.skip(str(error))


def test_a_virtual_environment(root: Root) -> None:
    assert re.search(r"^uvmshare \d", root.run(typed("A virtual environment")), re.MULTILINE)


def test_pipx(root: Root) -> None:
    shown = root.run(typed("pipx") + "PATH=~/.local/bin:$PATH\nuvmshare --version\nuvmshare daemon --help\n")
    assert re.search(r"^uvmshare \d", shown, re.MULTILINE)
    assert "--user-vms" in shown


def test_the_package(root: Root) -> None:
    shown = root.run(
        typed("The Debian package").replace("uvmshare vm ls", "uvmshare --version")
        + "getent group uvmshare\n"
        + "dpkg-deb --contents dist/uvmshare_*.deb\n"
        + "bash -c 'source /usr/share/bash-completion/completions/uvmshare && complete -p uvmshare'\n"
        + "COMP_WORDS='uvmshare sha' COMP_CWORD=1 _UVMSHARE_COMPLETE=bash_complete uvmshare\n"
        + "apt-get purge --yes uvmshare && ! find / -xdev -path /root -prune -o -name '*uvmshare*' -print | grep .\n"
    )
    assert re.search(r"^uvmshare \d", shown, re.MULTILINE)
    assert re.search(r"^uvmshare:x:\d+:root$", shown, re.MULTILINE)
    assert "complete -o nosort -F _uvmshare_completion uvmshare" in shown
    assert "plain,share" in shown
    modes = {(line.split()[0], line.split()[1]) for line in shown.splitlines() if re.match(r"[-dl][-rwx]{9} ", line)}
    assert modes == {(mode, "root/root") for mode in ("drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx")}


def test_pip_outside_an_environment_says_what_the_page_says(root: Root) -> None:
    refused = root.attempt(
        "sudo apt-get install --yes --no-install-recommends python3-pip >/dev/null || exit 77\npip install '.[cli]'\n"
    )
    if refused.returncode == 77:
        pytest.skip("needs the network: python3-pip")
    assert refused.returncode == 1
    assert "error: externally-managed-environment" in refused.stderr
    assert "externally-managed-environment" in PAGE
