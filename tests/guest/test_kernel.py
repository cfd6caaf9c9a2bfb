"""Finding a kernel and a busybox, and unpacking the one."""

from __future__ import annotations

import lzma
import os
import struct
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import GuestUnavailable
from uvmshare.testing import kernel as module
from uvmshare.testing.kernel import GuestKernel, find_busybox, find_kernel, read_module

if TYPE_CHECKING:
    from pathlib import Path

PVH_NOTE = struct.pack("<III", 4, 8, 18) + b"Xen\0"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "cache_directory", lambda: str(tmp_path / "cache"))
    return tmp_path / "cache"


def image(payload: bytes, *, sectors: int = 3, offset: int = 40) -> bytes:
    """Build what boot.rst calls a bzImage: setup sectors, then the kernel at payload_offset in the rest."""
    setup = bytearray(512 * (sectors + 1))
    setup[0x1F1] = sectors
    struct.pack_into("<II", setup, 0x248, offset, len(payload))
    return bytes(setup) + bytes(offset) + payload + b"after"


def write_kernel(root: Path, release: str, content: bytes, *, with_9p: bool = True) -> GuestKernel:
    directory = root / "lib" / "modules" / release / "kernel"
    directory.mkdir(parents=True)
    if with_9p:
        (directory / "9p.ko").write_bytes(b"")
    (root / "boot").mkdir(exist_ok=True)
    (root / "boot" / f"vmlinuz-{release}").write_bytes(content)
    return next(kernel for kernel in GuestKernel.below(str(root)) if kernel.release == release)


def test_the_image_is_unpacked_once(tmp_path: Path, cache: Path) -> None:
    elf = b"\x7fELF" + bytes(1000) + PVH_NOTE
    kernel = write_kernel(tmp_path, "6.1.0-1-amd64", image(lzma.compress(elf)))
    path = kernel.unpacked_image()
    assert (cache / "vmlinux-6.1.0-1-amd64").read_bytes() == elf
    assert path == str(cache / "vmlinux-6.1.0-1-amd64")
    with open(path, "r+b") as file:
        file.write(b"kept")
    os.utime(path, ns=(1, os.stat(kernel.image).st_mtime_ns))
    assert kernel.unpacked_image() == path
    with open(path, "rb") as file:
        assert file.read(4) == b"kept"


def test_a_new_image_of_the_same_release_is_unpacked_again(tmp_path: Path, cache: Path) -> None:
    kernel = write_kernel(tmp_path, "6.1.0-1-amd64", image(lzma.compress(PVH_NOTE + b"old")))
    kernel.unpacked_image()
    with open(kernel.image, "wb") as file:
        file.write(image(lzma.compress(PVH_NOTE + b"new")))
    os.utime(kernel.image, ns=(5, 5))
    with open(kernel.unpacked_image(), "rb") as file:
        assert file.read() == PVH_NOTE + b"new"


@pytest.mark.parametrize("payload", [b"not xz at all", lzma.compress(b"\x7fELF, but no PVH kernel")])
def test_an_image_that_cannot_be_unpacked_boots_as_it_is(tmp_path: Path, cache: Path, payload: bytes) -> None:
    kernel = write_kernel(tmp_path, "6.1.0-1-amd64", image(payload))
    assert kernel.unpacked_image() == kernel.image
    assert not cache.exists()


def test_where_nothing_can_be_kept_the_image_boots_as_it_is(tmp_path: Path, cache: Path) -> None:
    kernel = write_kernel(tmp_path, "6.1.0-1-amd64", image(lzma.compress(PVH_NOTE)))
    cache.write_text("a file where the directory would be")
    assert kernel.unpacked_image() == kernel.image


def test_an_installed_package_keeps_things_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.cache_directory().endswith("/.cache")
    monkeypatch.setattr(module, "_TREE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert module.cache_directory() == "/var/cache/me/uvmshare"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert module.cache_directory() == "/home/me/.cache/uvmshare"


def test_releases_are_ordered_by_number(tmp_path: Path) -> None:
    for release in ("6.1.0-9-amd64", "6.1.0-10-amd64", "6.12.1-1-amd64"):
        write_kernel(tmp_path, release, b"")
    assert [kernel.release for kernel in GuestKernel.below(str(tmp_path))] == [
        "6.1.0-9-amd64",
        "6.1.0-10-amd64",
        "6.12.1-1-amd64",
    ]


def test_a_kernel_without_9p_is_passed_over(cache: Path) -> None:
    unpacked = cache / "packages" / "linux-image-amd64"
    write_kernel(unpacked, "6.1.0-9-amd64", b"")
    write_kernel(unpacked, "6.1.0-10-cloud-amd64", b"", with_9p=False)
    assert find_kernel().release == "6.1.0-9-amd64"


def test_no_kernel_is_one_line_with_the_remedy(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = write_kernel(cache / "packages" / "linux-image-amd64", "6.1.0-10-cloud-amd64", b"", with_9p=False)
    below = GuestKernel.below
    monkeypatch.setattr(GuestKernel, "below", lambda root: [] if root == "/" else below(root))
    with pytest.raises(GuestUnavailable, match=r"tools/packages demo.*linux-image-amd64") as caught:
        find_kernel()
    assert cloud.image in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dynamic_busybox_is_of_no_use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = cache / "packages" / "busybox-static" / "bin"
    home.mkdir(parents=True)
    (home / "busybox").write_bytes(b"\x7fELF static")
    assert find_busybox() == str(home / "busybox")
    (home / "busybox").write_bytes(b"\x7fELF /lib64/ld-linux-x86-64.so.2")
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/bin/busybox" and exists(path))
    with pytest.raises(GuestUnavailable, match="busybox-static"):
        find_busybox()


def test_modules_are_read_as_insmod_wants_them(tmp_path: Path) -> None:
    plain, packed, other = (tmp_path / name for name in ("a.ko", "a.ko.xz", "a.ko.zst"))
    plain.write_bytes(b"module")
    packed.write_bytes(lzma.compress(b"module"))
    other.write_bytes(b"?")
    assert read_module(str(plain)) == read_module(str(packed)) == b"module"
    with pytest.raises(GuestUnavailable, match=r"a\.ko\.zst: cannot decompress"):
        read_module(str(other))
