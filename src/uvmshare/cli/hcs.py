"""`uvmshare hcs`: the shares of a Hyper-V utility VM, on Windows.

What lives here: the commands and the order in which they ask and write down. What must not: the binding
to HCS, or the record's files (`uvmshare.cli.hcs_record`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import click
import msgspec

from uvmshare.cli.foreground import Ready, print_line, serve_shares, until_signalled
from uvmshare.cli.output import say_json
from uvmshare.cli.share_spec import share_options, shares_argument
from uvmshare.errors import ComputeSystemGone, ComputeSystemStopped, ShareNotFound
from uvmshare.hcs.schema import DEFAULT_PORT, removal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvmshare import AddOptions
    from uvmshare.cli.hcs_record import Recorded, RecordedShares
    from uvmshare.cli.share_spec import ShareSpec
    from uvmshare.hcs.compute_system import ComputeSystem

__all__ = ["hcs"]


class _Listed(msgspec.Struct, frozen=True):
    """One line of `uvmshare hcs list`, in HCS's words."""

    vm: str
    owner: str
    os: str
    state: str


@click.group()
def hcs() -> None:
    """Shares of a running Hyper-V utility VM, through the Host Compute Service (Windows).

    VM is the id of a compute system, as `uvmshare hcs list` prints it. You must be an administrator or a
    member of the group Hyper-V Administrators. The VM must have been created with a Plan 9
    device ("Devices":{"Plan9":{}}). Every answer is one line of JSON.

    \b
    uvmshare hcs list
    uvmshare hcs serve VM C:\\src:ro C:\\out     hold shares until Ctrl-C, then remove them
    uvmshare hcs add VM C:\\src:ro              add a share that stays until it is removed
    uvmshare hcs shares VM
    uvmshare hcs remove VM NAME
    """  # noqa: D301  \b is click's mark for lines that stay as they are


_vm = click.argument("vm", metavar="VM")
_port = click.option(
    "--port",
    type=click.IntRange(1, 2**32 - 1),
    default=DEFAULT_PORT,
    show_default=True,
    help="The hvsocket port that the guest dials.",
)
_state_dir = click.option(
    "--state-dir",
    metavar="DIR",
    envvar="UVMSHARE_STATE_DIR",
    default=lambda: click.get_app_dir("uvmshare", roaming=False),
    help="Where added shares are written down.  [default: uvmshare in your local application data]",
)


@hcs.command("list")
def list_() -> None:
    """List the virtual machines of this host.

    \b
    Example:
      uvmshare hcs list
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    from uvmshare.hcs.compute_system import ComputeSystem  # noqa: PLC0415  --help need not load it
    from uvmshare.hcs.schema import SystemQuery  # noqa: PLC0415  as above

    for found in asyncio.run(ComputeSystem.enumerate(SystemQuery(types=("VirtualMachine",)))):
        _print(_Listed(found.id, found.owner, found.runtime_os_type, found.state))


@hcs.command()
@_vm
@_port
@_state_dir
@shares_argument
def add(vm: str, port: int, state_dir: str, shares: tuple[ShareSpec, ...]) -> None:
    """Add shares that stay until they are removed, or the VM exits. Each SHARE is PATH[:ro][:only=NAME,NAME].

    HCS keeps no list of them that can be read, so they are written down for `uvmshare hcs shares`. All are
    added, or none is. It prints a line for each, with the name that the guest mounts it by:

    \b
      {"share":"1790000000","path":"c:\\\\src","read_only":true,"port":564}

    \b
    Example:
      uvmshare hcs add VM C:\\src:ro
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    options = share_options(shares)
    for share in asyncio.run(_add(_record(state_dir, vm), port, options)):
        _print(share)


@hcs.command()
@_vm
@click.argument("name")
@_port
@_state_dir
def remove(vm: str, name: str, port: int, state_dir: str) -> None:
    """Remove the share of this NAME, whoever added it. It is no error if the share is already gone.

    \b
    Example:
      uvmshare hcs remove VM 1790000000
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    record = _record(state_dir, vm)
    ports = {share.share: share.port for share in record.shares()}
    asyncio.run(_remove(record, name, ports.get(name, port)))


@hcs.command()
@_vm
@_state_dir
def shares(vm: str, state_dir: str) -> None:
    """List the shares that `uvmshare hcs add` has put on the VM.

    It is what was written down, not what HCS says: HCS cannot be asked. Shares of `uvmshare hcs serve`, and of
    other programs, are not among them.

    \b
    Example:
      uvmshare hcs shares VM
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    for share in _record(state_dir, vm).shares():
        _print(share)


@hcs.command()
@_vm
@_port
@shares_argument
def serve(vm: str, port: int, shares: tuple[ShareSpec, ...]) -> None:
    """Hold shares on the VM until Ctrl-C, then remove them. Each SHARE is PATH[:ro][:only=NAME,NAME].

    All are served, or none is. Ends with an error when the VM exits. It prints a line for each share, then
    one that says that it is ready:

    \b
      {"share":"0","path":"c:\\\\src","read_only":true}
      {"ready":true}

    \b
    Example:
      uvmshare hcs serve VM C:\\src:ro C:\\out

    Exit status: 130 after Ctrl-C, 0 after SIGTERM, 1 when it could not serve or the VM exited.
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    until_signalled(_serve(vm, port, share_options(shares)))


def _record(state_dir: str, vm: str) -> RecordedShares:
    from uvmshare.cli.hcs_record import RecordedShares  # noqa: PLC0415  --help need not load it

    return RecordedShares(state_dir, vm)


def _print(line: msgspec.Struct) -> None:
    say_json(line)


async def _add(record: RecordedShares, port: int, options: Sequence[AddOptions]) -> list[Recorded]:
    from uvmshare.hcs.compute_system import ComputeSystem  # noqa: PLC0415  --help need not load it
    from uvmshare.hcs.utility_vm import UtilityVM  # noqa: PLC0415  as above
    from uvmshare.share.interfaces import NamedShare  # noqa: PLC0415  as above

    added: list[Recorded] = []
    async with await ComputeSystem.open(record.vm) as system:
        vm = UtilityVM(system, port=port)
        for share in options:
            vm.require_able(share)
        try:
            for share in options:
                recorded = record.reserve(
                    share.host_path, read_only=share.read_only, port=port, only=share.allowed_names
                )
                added.append(recorded)
                await vm.add_plan9(NamedShare(recorded.share, share))
        except BaseException as error:
            for recorded in added:
                try:
                    await _take_out(system, record, recorded.share, port)
                except Exception as left:  # noqa: BLE001  the first error matters more
                    error.add_note(str(left))
            raise
    return added


async def _remove(record: RecordedShares, name: str, port: int) -> None:
    from uvmshare.hcs.compute_system import ComputeSystem  # noqa: PLC0415  --help need not load it

    try:
        system = await ComputeSystem.open(record.vm)
    except ComputeSystemGone:
        record.forget(name)
        raise
    async with system:
        await _take_out(system, record, name, port)


async def _take_out(system: ComputeSystem, record: RecordedShares, name: str, port: int) -> None:
    with suppress(ShareNotFound, ComputeSystemGone):  # not there, as asked
        await system.modify(removal(name, port))
    record.forget(name)


async def _serve(id_: str, port: int, options: Sequence[AddOptions]) -> None:
    from uvmshare import Manager, UtilityVM  # noqa: PLC0415  --help need not load it
    from uvmshare.hcs.compute_system import ComputeSystem  # noqa: PLC0415  as above

    async with await ComputeSystem.open(id_) as system, Manager(UtilityVM(system, port=port)) as manager:
        await serve_shares(manager, options)
        print_line(Ready(ready=True))
        status = await system.wait_exit()
        how = status.exit_type or "HCS does not say how"
        msg = f"compute system {id_}: the VM has exited ({how}), and its shares with it"
        raise ComputeSystemStopped(msg)
