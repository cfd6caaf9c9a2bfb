"""What is found in a guest, from what its agent reports."""

from __future__ import annotations

import msgspec
import pytest

from uvmshare.mounts.doctor import examine
from uvmshare.mounts.report import FileSystem, GuestReport, ListedEvents, ListedPins, MountHealth

GOOD = GuestReport(
    kernel="6.1.0-50-amd64",
    python="3.11.2",
    release="0.1.0",
    machine="x86_64",
    modules={"9p": True, "9pnet_fd": True},
    time=1000.0,
    asked=1000.5,
    server="vsock:2:5640",
    allow=(FileSystem(path="/run/uvmshare", kind="tmpfs", writable=True),),
    mounts=(MountHealth(mount_path="/run/uvmshare/x", status="ok", seconds=0.002),),
)


def test_a_good_guest_has_nothing_to_mend() -> None:
    findings = examine(GOOD)
    assert {finding.verdict for finding in findings} == {"good"}
    assert not any(finding.breaks or finding.remedy for finding in findings)
    assert len({finding.subject for finding in findings}) == len(findings) == 7


@pytest.mark.parametrize(
    ("change", "subject", "verdict", "words"),
    [
        ({"kernel": "5.10.0"}, "guest kernel", "warning", "64 KiB"),
        ({"kernel": "strange"}, "guest kernel", "warning", "5.15"),
        ({"modules": {"9p": True}}, "guest 9P client", "bad", "CONFIG_NET_9P_FD"),
        (
            {"modules": {}, "config": {"CONFIG_9P_FS": "m", "CONFIG_NET_9P_FD": "m"}},
            *("guest 9P client", "bad", "modprobe -a 9p 9pnet_fd"),
        ),
        ({"config": {"CONFIG_9P_FS_POSIX_ACL": "n"}}, "guest ACLs", "warning", "setfacl"),
        ({"vsock": "there is no /dev/vsock"}, "guest vsock", "bad", "vmw_vsock_virtio_transport"),
        ({"vsock": "there is no /dev/vsock", "server": "tcp:10.0.2.2"}, "guest vsock", "warning", "uses none"),
        ({"root": False}, "guest agent", "bad", "root"),
        ({"time": 900.0}, "guest clock", "warning", "100.5 s behind"),
        ({"time": 1100.0}, "guest clock", "warning", "99.5 s ahead"),
        (
            {"allow": (FileSystem(path="/mnt", kind="ext4", writable=False),)},
            *("guest /mnt", "warning", "cannot be written"),
        ),
        *(
            (
                {"mounts": (MountHealth(mount_path="/m", status=status, error="why"),)},  # type: ignore[arg-type]  # one of the words
                *("guest mount /m", "bad", words),
            )
            for status, words in (
                ("slow", "killed"),
                ("dead", "by itself"),
                ("missing", "unmounted"),
                ("failing", "why"),
            )
        ),
    ],
)
def test_what_is_wrong_says_what_it_breaks_and_what_to_do(
    change: dict[str, object], subject: str, verdict: str, words: str
) -> None:
    (finding,) = [found for found in examine(msgspec.structs.replace(GOOD, **change)) if found not in examine(GOOD)]
    assert (finding.subject, finding.verdict) == (subject, verdict)
    assert finding.breaks
    assert finding.remedy
    assert words in f"{finding.found}; {finding.breaks}; {finding.remedy}"


def test_of_a_mount_with_events_it_is_said_what_was_repeated_or_why_nothing_is() -> None:
    def found(**told: object) -> list[tuple[str, str, str]]:
        mount = MountHealth(mount_path="/m", status="ok", events=True, **told)  # type: ignore[arg-type]  # a table
        findings = examine(msgspec.structs.replace(GOOD, mounts=(mount,)))
        return [(each.verdict, each.found, each.remedy) for each in findings if each.subject == "guest events /m"]

    pins = ListedPins(directories=2048, full=True, events=ListedEvents(repeated=3, failed=1))
    assert found(pins=pins) == [
        ("good", "3 changes repeated, 1 failed; 2048 directories held, and there are more than may be held", "")
    ]
    ((verdict, why, remedy),) = found(no_events="the agent lacks CAP_FOWNER")
    assert (verdict, why) == ("warning", "the agent lacks CAP_FOWNER")
    assert "poll" in remedy
