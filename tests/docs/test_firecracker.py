"""What the Firecracker tutorial's page cannot try by itself: the kernel's options and the root file system."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.docs.pages import ROOT, blocks, commands
from tests.processes import DEADLINE

PAGE = "docs/tutorial-firecracker.md"


def test_the_options_of_the_kernel_are_linuxs_and_debians_kernel_has_them() -> None:
    from uvmshare.testing.kernel import find_kernel

    (config,) = [block for block in blocks(PAGE) if block.language == "ini"]
    wanted = re.findall(r"^(CONFIG_\w+)=y$", config.text, re.MULTILINE)
    assert len(wanted) == len(config.text.splitlines()) == 6
    release = find_kernel().release
    places = [f"/boot/config-{release}", *map(str, Path(ROOT, ".cache/packages").glob(f"*/boot/config-{release}"))]
    debian = next(Path(place).read_text() for place in places if os.path.exists(place))
    missing = [name for name in wanted if not re.search(rf"^{name}=[ym]$", debian, re.MULTILINE)]
    assert not missing


@pytest.mark.long
@pytest.mark.guest
def test_the_root_file_system_of_the_tutorial_has_an_agent_that_answers() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("debootstrap needs root on Linux")
    from uvmshare import AgentClient
    from uvmshare.testing.guest_vm import GuestVM

    (block,) = [block for block in blocks(PAGE) if any("debootstrap" in line for _, line in commands(block))]

    async def ask(image: str, folder: str) -> int:
        async with await GuestVM.start(
            vsock=f"{folder}/v.sock",
            modules=("virtio_blk", "ext4", "crc32c_generic"),
            qemu_arguments=("-drive", f"file={image},if=virtio,format=raw"),
        ) as guest:
            await guest.check("mkdir /run/root && mount -t ext4 /dev/vda /run/root")
            await guest.check("for each in proc sys dev; do mount -o bind /$each /run/root/$each; done")
            unit = await guest.check(
                "chroot /run/root sh -c 'cat /etc/systemd/system/multi-user.target.wants/uvmshare*'"
            )
            started = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
            assert started
            await guest.check(f"chroot /run/root {started[1]} >/run/agent.log 2>&1 &")
            async with AgentClient(f"firecracker:{folder}/v.sock:5641") as agent:
                return len(await agent.listed())

    with tempfile.TemporaryDirectory(prefix="v-", dir="/tmp") as folder:
        script = "\n".join(line.replace("sudo ", "") for _, line in commands(block))
        bin_directory = os.path.dirname(sys.executable)
        environment = {"HOME": folder, "PATH": f"{bin_directory}:/usr/sbin:/usr/bin:/sbin:/bin"}
        done = subprocess.run(
            ["bash", "-euxc", script],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * DEADLINE,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert asyncio.run(ask(f"{folder}/rootfs.ext4", folder)) == 0
