"""The guest's kernel, its modules and its busybox: where they are found on this host.

What lives here: finding a Debian-style kernel (``boot/vmlinuz-RELEASE`` beside ``lib/modules/RELEASE``) that has 9P,
unpacking its image, and the order in which its modules must be loaded. What must not: fetching anything; the
project's ``tools/packages demo`` does that, and for an installed package the error says what to install.
"""

from __future__ import annotations

import glob
import lzma
import os
import re
import struct
from dataclasses import dataclass

from uvmshare.errors import GuestUnavailable

__all__ = ["GuestKernel", "cache_directory", "find_busybox", "find_kernel"]

_TREE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
_PVH_NOTE = 18
"""XEN_ELFNOTE_PHYS32_ENTRY of xen/interface/elfnote.h: where a PVH kernel is entered."""
_REMEDY = "run tools/packages demo in the project's tree, or apt-get install {package}"


def cache_directory() -> str:
    """Return where fetched and probed things are kept: the source tree's ``.cache``, else the user's cache."""
    if os.path.exists(os.path.join(_TREE, "tools", "packages")):
        return os.path.join(_TREE, ".cache")
    user = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(user, "uvmshare")


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A Linux kernel to boot: its image, the directory of its modules, and its release as uname(1) prints it."""

    image: str
    modules: str
    release: str

    @classmethod
    def below(cls, root: str) -> list[GuestKernel]:
        """Return the kernels of a tree in Debian's layout ("/" for the host's own), oldest first."""
        found = [
            cls(image, os.path.join(root, "lib", "modules", release), release)
            for image in glob.glob(os.path.join(root, "boot", "vmlinuz-*"))
            for release in [os.path.basename(image).removeprefix("vmlinuz-")]
        ]
        return sorted(found, key=lambda kernel: [int(number) for number in re.findall(r"\d+", kernel.release)])

    def unpacked_image(self) -> str:
        """Return the path of the kernel as an ELF file that QEMU starts by its PVH entry, or of the image as it is.

        The image unpacks itself when it boots, which takes an emulated guest 3.3 s of 5.7 to its init; here it takes
        0.8 s once, as the result is kept. An image that is not compressed with xz, or is no PVH kernel, is returned
        as it is. Layout: the kernel's Documentation/arch/x86/boot.rst, "payload_offset".
        """
        unpacked = os.path.join(cache_directory(), f"vmlinux-{self.release}")
        made_from = os.stat(self.image).st_mtime_ns
        if os.path.exists(unpacked) and os.stat(unpacked).st_mtime_ns == made_from:
            return unpacked
        with open(self.image, "rb") as file:
            image = file.read()
        offset, length = struct.unpack_from("<II", image, 0x248)
        start = (image[0x1F1] + 1) * 512 + offset
        try:
            kernel = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(image[start : start + length])
        except lzma.LZMAError:
            return self.image
        if not any(struct.pack("<III", 4, size, _PVH_NOTE) + b"Xen\0" in kernel for size in (4, 8)):
            return self.image
        try:
            os.makedirs(cache_directory(), exist_ok=True)
            with open(f"{unpacked}.{os.getpid()}", "wb") as written:
                written.write(kernel)
            os.utime(written.name, ns=(made_from, made_from))
            os.replace(written.name, unpacked)
        except OSError:  # nowhere to keep it: a slower boot, no more
            return self.image
        return unpacked

    def load_order(self, names: tuple[str, ...]) -> list[str]:
        """Return the module files that loading `names` takes, each after those it depends on.

        Dependencies are read from the modules themselves (the ``depends`` of modinfo(8)), because a kernel
        package that was only unpacked has no ``modules.dep``. What is built into the kernel is left out.

        Raises `GuestUnavailable` when the kernel has no such module.
        """
        files = self._files()
        builtin = _builtin(self.modules)
        order: list[str] = []

        def visit(name: str) -> None:
            if name in builtin:
                return
            if name not in files:
                msg = f"kernel {self.release} has no module {name} in {self.modules}: use linux-image-amd64"
                raise GuestUnavailable(msg)
            if files[name] in order:
                return
            for needed in _depends(read_module(files[name])):
                visit(needed)
            order.append(files[name])

        for name in names:
            visit(name)
        return order

    def has(self, name: str) -> bool:
        """Tell whether the kernel has this module, built in or loadable."""
        return name in _builtin(self.modules) or name in self._files()

    def _files(self) -> dict[str, str]:
        return {
            _module_name(file): os.path.join(directory, file)
            for directory, _, entries in os.walk(os.path.join(self.modules, "kernel"))
            for file in entries
            if ".ko" in file
        }


def read_module(path: str) -> bytes:
    """Return a module as insmod(8) wants it: a ``.ko.xz`` is decompressed."""
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".ko"):
        return data
    if path.endswith(".ko.xz"):
        return lzma.decompress(data)
    msg = f"{path}: cannot decompress this kernel module; .ko and .ko.xz are known"
    raise GuestUnavailable(msg)


def find_kernel(series: str | None = None) -> GuestKernel:
    """Return the newest kernel with 9P: from the cache when there is one there, else from the host's /boot.

    With `series`, such as "6.12", it is the newest of that one, which Debian may have in a package of its own.

    Raises `GuestUnavailable` when there is none; Debian's cloud kernels, for one, have no 9P.
    """
    packages = ["linux-image-amd64"] if series is None else [f"linux-image-{series}-amd64", "linux-image-amd64"]
    seen: list[str] = []
    for root in (*(os.path.join(cache_directory(), "packages", package) for package in packages), "/"):
        for kernel in reversed(GuestKernel.below(root)):
            if series is not None and not kernel.release.startswith(f"{series}."):
                continue
            if kernel.has("9p") and os.access(kernel.image, os.R_OK):
                return kernel
            seen.append(kernel.image)
    unfit = f" ({', '.join(seen)}: no 9P modules, or not readable)" if seen else ""
    which = "kernel" if series is None else f"Linux {series}"
    msg = f"no {which} with 9P for the guest{unfit}: {_REMEDY.format(package=packages[0])}"
    raise GuestUnavailable(msg)


def find_busybox() -> str:
    """Return the path of a statically linked busybox. Raises `GuestUnavailable` when there is none."""
    for path in (os.path.join(cache_directory(), "packages", "busybox-static", "bin", "busybox"), "/bin/busybox"):
        if os.path.exists(path):
            with open(path, "rb") as file:
                if b"/ld-linux" not in file.read():  # a dynamic one asks for this loader, which the guest has not
                    return path
    msg = f"no statically linked busybox for the guest: {_REMEDY.format(package='busybox-static')}"
    raise GuestUnavailable(msg)


def _module_name(file: str) -> str:
    """Return a module's name: file names may have dashes where names have underscores."""
    return os.path.basename(file).partition(".ko")[0].replace("-", "_")


def _builtin(modules: str) -> frozenset[str]:
    try:
        with open(os.path.join(modules, "modules.builtin"), encoding="utf-8") as file:
            return frozenset(_module_name(line) for line in file)
    except FileNotFoundError:
        return frozenset()


def _depends(module: bytes) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode("ascii").split(",") if name] if found else []
