"""What a stranger types on a fresh Debian, and what they expect to see: thirty steps, from installing to cleaning up.

What lives here: the steps. What must not: how they are typed (`tests/terminal.py`),
or anything that the pages do not say: every command is in the README or on a page that the README names, and every
wrong one is a right one with a slip in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["STEPS", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a stranger does: some lines typed into one window, and what they expect."""

    wants: str
    types: str
    """Lines, each typed when the one before it has ended, which must be with status 0."""

    sees: tuple[str, ...] = ()
    """Regular expressions that what is printed matches, each somewhere."""

    window: Literal["host", "vm"] = "host"
    """In the second one the guest is booted; from then on it is the guest's console."""

    fails: bool = False
    """Whether the last line ends with a status that is not 0. A guest's prompt does not show it."""

    slip_of: str = ""
    """The right command, of which `types` is a wrong one."""

    looks_again: bool = False
    """Whether it may take a moment until it is seen, so that they type it again."""

    saves: str = ""
    """The file into which a stranger copies a Python snippet before: the page's block that begins with this comment."""


STEPS: Final = (
    # Installing
    Step("what Python needs on Debian", "sudo apt install python3-venv"),
    Step("a place for it", "python3 -m venv ~/uvmshare"),
    Step("install it", "~/uvmshare/bin/pip install '.[daemon]'", ("Successfully installed .*uvmshare-",)),
    Step(
        "have the command at hand",
        "source ~/uvmshare/bin/activate\nuvmshare --version",
        (r"^uvmshare \d+\.\d+",),
    ),
    Step("see whether this host will do", "uvmshare doctor", ("Landlock|seccomp",)),
    # The first snippet
    Step(
        "something to share, and the first snippet",
        "mkdir -p ~/project ~/out && echo hello > ~/project/greeting.txt\npython first.py",
        (r"^the guest mounts share \d+ of ",),
        saves="first.py",
    ),
    # The first share
    Step(
        "the first share from the command line",
        "uvmshare serve --listen tcp:127.0.0.1:5640 ~/project:ro &",
        (r'"share":"0","path":"/home/me/project","read_only":true', r'"ready":true'),
    ),
    # Wrong input
    Step(
        "a command with a letter missing",
        "uvmshare serv --listen tcp:127.0.0.1:5641 ~/project:ro",
        ("[Dd]id you mean.*serve",),
        fails=True,
        slip_of="uvmshare serve --listen tcp:127.0.0.1:5640 ~/project:ro &",
    ),
    Step(
        "an address without its kind",
        "uvmshare serve --listen 127.0.0.1:5641 ~/project:ro",
        ("tcp:127.0.0.1:5641",),
        fails=True,
        slip_of="uvmshare serve --listen tcp:127.0.0.1:5640 ~/project:ro &",
    ),
    Step(
        "a directory that is not there",
        "uvmshare serve --listen tcp:127.0.0.1:5641 ~/projct:ro",
        ("/home/me/projct", "no such|not there|does not exist|No such"),
        fails=True,
        slip_of="uvmshare serve --listen tcp:127.0.0.1:5640 ~/project:ro &",
    ),
    Step(
        "the same port once more",
        "uvmshare serve --listen tcp:127.0.0.1:5640 ~/out",
        ("127.0.0.1:5640", "in use"),
        fails=True,
        slip_of="uvmshare serve --listen tcp:127.0.0.1:5640 ~/project:ro &",
    ),
    Step(
        "a volume, as container people write it",
        "uvmshare serve --listen tcp:127.0.0.1:5641 -v ~/project:/mnt",
        ("map",),
        fails=True,
        slip_of="uvmshare serve --listen tcp:127.0.0.1:5640 ~/project:ro &",
    ),
    # A guest of one's own
    Step(
        "what a guest is made of",
        "cp src/uvmshare/guest/agent.sh ~/agent.sh\n"
        "sudo apt install qemu-system-x86 busybox-static cpio kmod xz-utils\nmkdir ~/vm && cd ~/vm",
    ),
    Step(
        "a kernel with 9P",
        "apt-get download $(apt-cache depends --important linux-image-amd64 | grep -o 'linux-image-[0-9].*')\n"
        "mkdir -p kernel/usr/lib && ln -s usr/lib kernel/lib\n"
        "dpkg-deb -x linux-image-*.deb kernel\n"
        "version=$(ls kernel/lib/modules) && /sbin/depmod -b kernel $version",
    ),
    Step("a root file system", "sh ./make-initramfs $version", (r"\binitramfs$",), saves="make-initramfs"),
    Step(
        "boot it",
        "qemu-system-x86_64 -M q35 -m 512 -nographic -no-reboot -kernel ~/vm/kernel/boot/vmlinuz-* "
        "-initrd ~/vm/initramfs -append 'console=ttyS0 quiet' -nic user,model=virtio-net-pci",
        window="vm",
    ),
    # The first mount
    Step(
        "mount it",
        "mkdir -p /mnt/project\n"
        "mount -t 9p -o trans=tcp,port=5640,version=9p2000.L,aname=0 10.0.2.2 /mnt/project\n"
        "cat /mnt/project/greeting.txt",
        ("^hello",),
        window="vm",
    ),
    Step("read-only is read-only", "touch /mnt/project/new", ("Read-only file system",), window="vm"),
    Step("take it away", "kill %1 && wait %1", (), fails=False),
    Step(
        "nothing is left of it in the guest",
        "ls /mnt/project\numount /mnt/project",
        ("Input/output error|Connection reset|Broken pipe",),
        window="vm",
    ),
    # The daemon and the agent
    Step("a daemon", "uvmshare daemon 2> ~/daemon.log &"),
    Step(
        "a VM with an agent",
        "uvmshare vm add dev tcp:127.0.0.1:5640 --agent tcp:127.0.0.1:5641 --agent-dials",
        ("dev",),
        looks_again=True,
    ),
    Step("the agent", "sh /agent.sh --connect 10.0.2.2:5641 --server 10.0.2.2 &", window="vm"),
    Step(
        "a directory in the guest, without logging in there",
        "uvmshare map dev ~/project /run/uvmshare/project",
        ("/run/uvmshare/project",),
    ),
    Step(
        "both directions",
        "echo 'from the guest' > /run/uvmshare/project/answer.txt\nls /run/uvmshare/project",
        (r"answer\.txt\s+greeting\.txt",),
        window="vm",
    ),
    Step(
        "release what another owner holds",
        "uvmshare unmap dev /run/uvmshare/project --owner job-8",
        ("not held by '?job-8", "default"),
        fails=True,
        slip_of="uvmshare unmap dev /run/uvmshare/project",
    ),
    # A dead guest
    Step("the guest dies", "cat ~/project/answer.txt\npkill -9 qemu-system", ("^from the guest",)),
    Step("that is seen", "uvmshare vm ls\nuvmshare mounts", ("(?s)dev .*unreachable",), looks_again=True),
    # Cleaning up
    Step(
        "take all of it away",
        "uvmshare unmap dev /run/uvmshare/project --force\n"
        "uvmshare vm rm dev\n"
        "kill %1 && wait %1\n"
        "pgrep -u me -f uvmshare",
        fails=True,
    ),
    Step(
        "uninstall it",
        "deactivate && rm -r ~/uvmshare ~/vm\nls ~/project",
        (r"answer\.txt\s+greeting\.txt",),
    ),
)
