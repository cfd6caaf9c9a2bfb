"""`uvmshare doctor`: what this host can and cannot do for the file server.

What lives here: the list for people and the JSON. What must not: looking at the host (`uvmshare.fileserver.host`) or
at a guest (`uvmshare.mounts.doctor`, by way of the daemon).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click
from rich.text import Text

from uvmshare.cli.output import print_json
from uvmshare.cli.pictures import SafeConsole
from uvmshare.cli.progress import waiting
from uvmshare.cli.remote import connected, host_option
from uvmshare.errors import UnsupportedPlatform, UvmshareError
from uvmshare.finding import Finding
from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["doctor"]

_STYLES: Final = {"good": "green", "warning": "yellow", "bad": "bold red"}


def _report(findings: Iterable[Finding]) -> Text:
    """One line a finding, and two more below one that is not good."""
    report = Text()
    for finding in findings:
        report.append(f"{finding.verdict:<8}", _STYLES[finding.verdict])
        report.append(" " + printable(f"{finding.subject}: {finding.found}") + "\n")
        if finding.breaks:
            report.append(f"         what it breaks: {printable(finding.breaks)}\n")
            report.append(f"         what to do:     {printable(finding.remedy)}\n")
    report.rstrip()
    return report


def _guest(vm: str, host: str | None) -> list[Finding]:
    """Return what the guest's agent tells. That nobody can be asked is a finding too, and not the end of the others."""
    try:
        with connected(host, f"asking the agent in the guest of VM {vm}") as client:
            return [
                Finding(each.subject, each.verdict, each.found, each.breaks, each.remedy)
                for each in client.vms.examine(vm)
            ]
    except UvmshareError as error:
        return [
            Finding(
                f"guest of {vm}",
                "bad",
                str(error),
                "nothing can be told of the guest, nor mounted in it",
                "see the reason; AGENT in uvmshare vm ls shows since when its agent is reached or not, and events "
                "(agent.lost, agent.reached) what came before",
            )
        ]


_FATES: Final = {
    "replaced": "its path leads to another directory now",
    "gone": "its path leads to no directory any more",
}


def _shared(vm: str, host: str | None) -> list[Finding]:
    """Return what became of the directories that are shared with a VM; nothing when the daemon cannot be asked."""
    try:
        with connected(host) as client:
            shares = client.shares(vm)
    except UvmshareError:
        return []  # the guest's finding says why
    return [
        Finding(f"share {each.name} ({each.path})", "good", "its path leads to the directory that is shared")
        if each.directory == "there"
        else Finding(
            f"share {each.name} ({each.path})",
            "warning",
            _FATES.get(each.directory, "nobody can tell what its path leads to now"),
            "the guest goes on with the directory that was there; what the host does at the path, it does not see"
            if each.directory in _FATES
            else "it may be another directory than the host's programs use",
            "release it and add the path again, which shares what is there now"
            if each.directory in _FATES
            else "see whether its file system answers and the VM's user reaches the path",
        )
        for each in shares
    ]


@click.command()
@click.argument("shares", metavar="[DIRECTORY]...", nargs=-1, type=click.Path())
@click.option("--vm", metavar="VM", help="Also look at the shares and the guest of this VM, through the daemon.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a list.")
@host_option
def doctor(shares: tuple[str, ...], *, vm: str | None, host: str | None, as_json: bool) -> None:
    """See what this host can and cannot do, what that breaks, and what to do about it.

    \b
    uvmshare doctor                      the host
    uvmshare doctor /srv/project         the host, and a directory or file that you want to share
    uvmshare doctor --vm dev             the host, the shares of a VM, and its guest as the agent sees it
    uvmshare doctor --json | jq '.[] | select(.verdict != "good")'

    Exit status: 0 when nothing is bad, 1 otherwise. Warnings leave it at 0. Nothing is changed.
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    if sys.platform != "linux":
        msg = "doctor looks at Linux hosts, where the file server runs; see docs/windows.md for Hyper-V"
        raise UnsupportedPlatform(msg)
    from uvmshare.fileserver.host import examine  # noqa: PLC0415  loads what only Linux has

    with waiting("looking at this host"):
        findings = examine(shares)
    if vm is not None:
        findings += _shared(vm, host)
        findings += _guest(vm, host)
    if as_json:
        print_json(findings)
    else:
        SafeConsole(soft_wrap=True).print(_report(findings))
    if any(finding.verdict == "bad" for finding in findings):
        sys.exit(1)
