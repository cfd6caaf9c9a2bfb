"""Addresses: what is read, what is written again, and what is refused with a reason and a remedy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvmshare.address import Address, parse
from uvmshare.errors import InvalidAddress

deterministic = settings(deadline=None, derandomize=True, database=None)

GOOD = {
    "unix:/run/vm.9p": Address("unix", path="/run/vm.9p"),
    "unix:relative": Address("unix", path="relative"),
    "unix:/with:colon:5": Address("unix", path="/with:colon:5"),
    "firecracker:/run/v.sock": Address("firecracker", path="/run/v.sock", port=5640),
    "firecracker:/run/v.sock:77": Address("firecracker", path="/run/v.sock", port=77),
    "firecracker:/with:colon": Address("firecracker", path="/with:colon", port=5640),
    "cloud-hypervisor:/run/v.sock:5641": Address("cloud-hypervisor", path="/run/v.sock", port=5641),
    "vsock:3": Address("vsock", cid=3, port=5640),
    "vsock:42:1024": Address("vsock", cid=42, port=1024),
    "tcp:127.0.0.1:5640": Address("tcp", host="127.0.0.1", port=5640),
    "tcp:localhost:0": Address("tcp", host="localhost", port=0),
    "tcp:[::1]:564": Address("tcp", host="::1", port=564),
}

BAD = [
    "",
    ":",
    "unix",
    "unix:",
    "/run/vm.9p",
    "http://localhost",
    "UNIX:/run/x",
    "unix:/a\0b",
    "unix:/" + "x" * 107,
    "firecracker:",
    "firecracker::77",
    "firecracker:/run/v:0",
    "firecracker:/run/v:99999999999",
    "firecracker:/" + "x" * 103,
    "vsock:",
    "vsock:x",
    "vsock:-3",
    "vsock:3:x",
    "vsock:3:",
    "vsock:0",
    "vsock:1",
    "vsock:2",
    "vsock:4294967295",
    "vsock:٣",
    "tcp:",
    "tcp:localhost",
    "tcp:localhost:",
    "tcp:localhost:x",
    "tcp:localhost:65536",
    "tcp:localhost:-1",
    "tcp::5640",
    "tcp:::1:5640",
]


@pytest.mark.parametrize(("text", "address"), GOOD.items())
def test_good(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize("text", BAD)
def test_bad(text: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert "; use " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:/run/vm.9p", "/run/vm.9p"),
        ("firecracker:/run/v", "/run/v_5640"),
        ("cloud-hypervisor:/run/v:7", "/run/v_7"),
        ("tcp:localhost:1", ""),
        ("vsock:3", ""),
    ],
)
def test_the_path_of_the_socket(text: str, path: str) -> None:
    assert parse(text).socket_path == path


def test_the_longest_path_of_a_socket() -> None:
    assert parse("unix:/" + "x" * 106).socket_path == "/" + "x" * 106
    assert len(parse("firecracker:/" + "x" * 101).socket_path) == 107


def test_the_port_that_was_bound() -> None:
    assert str(parse("tcp:[::1]:0").with_port(1234)) == "tcp:[::1]:1234"


@deterministic
@given(
    st.one_of(st.text(), st.builds("{}:{}".format, st.sampled_from(["unix", "firecracker", "vsock", "tcp"]), st.text()))
)
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse(text)
    except InvalidAddress:
        return
    assert parse(str(address)) == address
