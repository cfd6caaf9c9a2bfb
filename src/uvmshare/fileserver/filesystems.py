"""Which file systems answer by themselves, and which may wait for a program or another host, for ever perhaps.

What lives here: the one list of those that do, by name (proc_pid_mountinfo(5)) and by number (statfs(2)). What must
not: what is done with the others (`mount.foreign`, `supervisor.opening`).
"""

from __future__ import annotations

from typing import Final

__all__ = ["LOCAL", "LOCAL_NUMBERS"]

LOCAL: Final = {
    # On disks, and in memory
    "ext2": 0xEF53, "ext3": 0xEF53, "ext4": 0xEF53, "xfs": 0x58465342, "btrfs": 0x9123683E, "f2fs": 0xF2F52010,
    "zfs": 0x2FC12FC1, "bcachefs": 0xCA451A4E, "tmpfs": 0x01021994, "devtmpfs": 0x01021994, "overlay": 0x794C7630,
    "ramfs": 0x858458F6, "rootfs": 0x858458F6, "squashfs": 0x73717368, "erofs": 0xE0F5E1E2, "iso9660": 0x9660,
    "udf": 0x15013346, "vfat": 0x4D44, "msdos": 0x4D44, "exfat": 0x2011BAB0, "ntfs3": 0x7366746E, "hfs": 0x4244,
    "hfsplus": 0x482B, "jfs": 0x3153464A, "reiserfs": 0x52654973, "nilfs2": 0x3434, "cramfs": 0x28CD3D45,
    # The kernel's own
    "proc": 0x9FA0, "sysfs": 0x62656572, "devpts": 0x1CD1, "cgroup2": 0x63677270, "cgroup": 0x27E0EB,
    "debugfs": 0x64626720, "tracefs": 0x74726163, "securityfs": 0x73636673, "hugetlbfs": 0x958458F6,
    "configfs": 0x62656570, "bpf": 0xCAFE4A11, "mqueue": 0x19800202, "efivarfs": 0xDE5E81E4, "nsfs": 0x6E736673,
}  # fmt: skip
"""All that is not among them may wait: FUSE, NFS, SMB, 9P, Ceph, AFS, autofs."""

LOCAL_NUMBERS: Final = frozenset(LOCAL.values())
