from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pytest

from uvmshare.errors import AccessDenied, OperationDenied
from uvmshare.hcs import schema
from uvmshare.hcs.utility_vm import UtilityVM
from uvmshare.share.interfaces import NamedShare
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions as RealOptions

if TYPE_CHECKING:
    from pathlib import Path

    from uvmshare.share.options import AddOptions


@dataclass(frozen=True)
class Options:
    """What `AddOptions` holds, without its look at the host's files: C:\\x is on no test machine."""

    host_path: str
    read_only: bool = False
    allowed_names: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    map_owner: str | None = None


def share(name: str, options: Options) -> NamedShare:
    return NamedShare(name, cast("AddOptions", options))


class Recorder:
    """A compute system that keeps the documents it is given, as bytes, and may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.documents: list[bytes] = []
        self._error = error

    async def modify(self, request: schema.ModifySettingRequest) -> None:
        self.documents.append(schema.encode(request))
        if self._error is not None:
            raise self._error


HEAD = '{"ResourcePath":"VirtualMachine/Devices/Plan9/Shares","RequestType":'
ADDED = [
    pytest.param(Options("C:\\x"), '"Path":"C:\\\\x","Port":564,"Flags":4', id="writable"),
    pytest.param(Options("C:\\x", read_only=True), '"Path":"C:\\\\x","Port":564,"Flags":5', id="read-only"),
    pytest.param(
        Options("C:\\x", allowed_names=("f", "g")),
        '"Path":"C:\\\\x","Port":564,"Flags":132,"AllowedFiles":["f","g"]',
        id="restricted",
    ),
    pytest.param(
        Options("/é", read_only=True, allowed_names=("f",)),
        '"Path":"/é","Port":564,"Flags":133,"AllowedFiles":["f"]',
        id="read-only and restricted",
    ),
]


@pytest.mark.parametrize(("options", "fields"), ADDED)
def test_add_sends_what_hcsshim_sends(options: Options, fields: str) -> None:
    system = Recorder()
    asyncio.run(UtilityVM(system).add_plan9(share("7", options)))
    expected = f'{HEAD}"Add","Settings":{{"Name":"7","AccessName":"7",{fields}}}}}'
    assert system.documents == [expected.encode()]


@pytest.mark.parametrize(
    ("options", "word"),
    [(Options("C:\\x", hide=("*.key",)), "hide"), (Options("C:\\x", map_owner="1000/1000:0/0"), "map_owner")],
)
def test_what_no_document_of_hcs_can_say_is_refused_before_anything_is_sent(options: Options, word: str) -> None:
    system = Recorder()
    with pytest.raises(OperationDenied, match=f"neither hide names nor map owners, and {word} asks for it"):
        asyncio.run(UtilityVM(system).add_plan9(share("7", options)))
    assert system.documents == []


def test_a_manager_of_such_a_vm_gives_no_name_to_what_it_refuses(tmp_path: Path) -> None:
    system = Recorder()
    manager = Manager(UtilityVM(system))
    wanted = RealOptions(tmp_path, hide=["*.key"])
    with pytest.raises(OperationDenied, match="hide asks for it"):
        manager.resolve_share_name(wanted)
    with pytest.raises(OperationDenied, match="hide asks for it"):
        asyncio.run(manager.add(wanted))
    assert (system.documents, manager.shares()) == ([], ())


def test_remove_sends_the_key_of_the_share_and_nothing_else() -> None:
    system = Recorder()
    asyncio.run(UtilityVM(system).remove_plan9(share("7", Options("C:\\x", read_only=True))))
    assert system.documents == [f'{HEAD}"Remove","Settings":{{"Name":"7","AccessName":"7","Port":564}}}}'.encode()]


def test_the_port_is_that_of_the_utility_vm() -> None:
    system = Recorder()
    vm = UtilityVM(system, port=50001)
    asyncio.run(vm.add_plan9(share("0", Options("C:\\x"))))
    asyncio.run(vm.remove_plan9(share("0", Options("C:\\x"))))
    ports = [request.settings and request.settings.port for request in map(schema.decode, system.documents)]
    assert ports == [50001, 50001]


def test_the_error_of_the_compute_system_comes_through_as_it_is() -> None:
    error = AccessDenied("no")
    with pytest.raises(AccessDenied) as caught:
        asyncio.run(UtilityVM(Recorder(error)).add_plan9(share("0", Options("C:\\x"))))
    assert caught.value is error
