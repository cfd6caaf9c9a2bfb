"""The cpio writer, read back by a reader of its own; what goes into an initramfs."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvmshare.errors import GuestUnavailable
from uvmshare.testing import initramfs
from uvmshare.testing.initramfs import Archive
from uvmshare.testing.kernel import GuestKernel

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Entry:
    name: str
    mode: int
    links: int
    device: tuple[int, int]
    data: bytes


def read(archive: bytes) -> list[Entry]:
    """Read a newc archive as the kernel's init/initramfs.c does: 13 fields of 8 hexadecimal digits, padding to 4."""
    entries: list[Entry] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        _, mode, _, _, links, _, size, _, _, major, minor, name_size, _ = fields
        name_at = at + 110
        name = archive[name_at : name_at + name_size]
        assert name.endswith(b"\0")
        data_at = -(-(name_at + name_size) // 4) * 4
        data = archive[data_at : data_at + size]
        assert len(data) == size
        at = -(-(data_at + size) // 4) * 4
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return entries
        entries.append(Entry(name[:-1].decode(), mode, links, (major, minor), data))


def test_every_kind_of_entry_is_read_back() -> None:
    archive = Archive()
    archive.directory("bin")
    archive.file("bin/busybox", b"\x7fELF", mode=0o755)
    archive.symlink("bin/sh", "busybox")
    archive.character_device("console", 5, 1)
    assert read(archive.finish()) == [
        Entry("bin", stat.S_IFDIR | 0o755, 2, (0, 0), b""),
        Entry("bin/busybox", stat.S_IFREG | 0o755, 1, (0, 0), b"\x7fELF"),
        Entry("bin/sh", stat.S_IFLNK | 0o777, 1, (0, 0), b"busybox"),
        Entry("console", stat.S_IFCHR | 0o600, 1, (5, 1), b""),
    ]


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_any_contents_are_read_back(contents: list[bytes]) -> None:
    archive = Archive()
    for number, data in enumerate(contents):
        archive.file("f" * (number + 1), data)
    assert [(entry.name, entry.data) for entry in read(archive.finish())] == [
        ("f" * (number + 1), data) for number, data in enumerate(contents)
    ]


def test_the_same_contents_are_the_same_bytes() -> None:
    def make() -> bytes:
        archive = Archive()
        archive.directory("d")
        archive.file("d/f", b"x")
        return archive.finish()

    assert make() == make()


def test_inodes_differ_so_that_nothing_is_taken_for_a_hard_link() -> None:
    archive = Archive()
    archive.file("a", b"1")
    archive.file("b", b"2")
    data = archive.finish()
    assert data[6:14] != data[data.index(b"070701", 6) :][6:14]


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "./a", "../a", "a/../b", "a\0b", ".."])
def test_an_odd_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="plain relative"):
        Archive().file(path, b"")


def test_a_path_without_its_directory_is_refused() -> None:
    with pytest.raises(ValueError, match="'d' must be added first"):
        Archive().file("d/f", b"")


def test_a_path_is_added_once() -> None:
    archive = Archive()
    archive.directory("d")
    with pytest.raises(ValueError, match="already"):
        archive.directory("d")


def make_kernel(root: Path, *, depends: dict[str, str], builtin: str = "") -> GuestKernel:
    """Lay out a kernel whose modules say what they depend on, as a package that was only unpacked does."""
    modules = root / "lib" / "modules" / "6.1.0-1-test"
    (modules / "kernel" / "fs").mkdir(parents=True)
    for name, needed in depends.items():
        (modules / "kernel" / "fs" / f"{name}.ko").write_bytes(
            b"\x7fELF\0license=GPL\0depends=" + needed.encode() + b"\0"
        )
    (modules / "modules.builtin").write_text(builtin)
    (root / "boot").mkdir()
    (root / "boot" / "vmlinuz-6.1.0-1-test").write_bytes(b"kernel")
    (kernel,) = GuestKernel.below(str(root))
    return kernel


def test_modules_come_after_those_they_depend_on(tmp_path: Path) -> None:
    kernel = make_kernel(tmp_path, depends={"9p": "9pnet,net-fs", "9pnet": "", "net-fs": "9pnet", "9pnet_fd": "9pnet"})
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"busybox")
    archive = initramfs.build(busybox=str(busybox), init="#!/bin/sh\n", kernel=kernel, modules=("9pnet_fd", "9p"))
    entries = {entry.name: entry for entry in read(archive)}
    assert [name for name in entries if name.endswith(".ko")] == [
        "modules/00-9pnet.ko",
        "modules/01-9pnet_fd.ko",
        "modules/02-net-fs.ko",
        "modules/03-9p.ko",
    ]
    assert entries["init"].data == b"#!/bin/sh\n"
    assert entries["init"].mode == stat.S_IFREG | 0o755
    assert entries["bin/busybox"].data == b"busybox"
    assert entries["dev/console"].device == (5, 1)


def test_what_is_built_in_is_left_out(tmp_path: Path) -> None:
    kernel = make_kernel(tmp_path, depends={"9p": "9pnet"}, builtin="kernel/net/9p/9pnet.ko\n")
    assert [path.rpartition("/")[2] for path in kernel.load_order(("9p",))] == ["9p.ko"]
    assert kernel.has("9pnet")


def test_a_module_that_the_kernel_lacks_is_named(tmp_path: Path) -> None:
    kernel = make_kernel(tmp_path, depends={"9p": "9pnet"})
    with pytest.raises(GuestUnavailable, match=r"6\.1\.0-1-test has no module 9pnet .*linux-image-amd64"):
        kernel.load_order(("9p",))
