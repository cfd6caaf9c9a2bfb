"""The Manager on top of the binding: what callers hold, and what the VM has."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.hcs.conftest import AFTER_DOING_IT, AT_ONCE, AT_THE_END, VM

from uvmshare.errors import ComputeSystemError, ComputeSystemGone
from uvmshare.hcs.compute_system import ComputeSystem
from uvmshare.hcs.utility_vm import UtilityVM
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareState

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hcs.conftest import StandIn


def test_two_callers_share_one_share_of_the_vm(standin: StandIn, tmp_path: Path) -> None:
    async def main() -> None:
        async with await ComputeSystem.open(VM, core=standin.core) as system:
            manager = Manager(UtilityVM(system))
            options = AddOptions(tmp_path, read_only=True)
            names = await asyncio.gather(manager.add(options), manager.add(options))
            assert list(names) == ["0", "0"]
            assert standin.count("modify") == 1
            [share] = standin.shares()
            assert (share["Path"], share["Flags"]) == (options.host_path, 5)
            await manager.remove("0")
            assert standin.count("modify") == 1
            await manager.remove("0")
            assert (standin.names(), standin.count("modify")) == ([], 2)

    asyncio.run(main())


def test_a_single_file_is_a_restricted_share(standin: StandIn, tmp_path: Path) -> None:
    (tmp_path / "one").touch()

    async def main() -> None:
        async with await ComputeSystem.open(VM, core=standin.core) as system:
            await Manager(UtilityVM(system)).add(AddOptions(tmp_path / "one"))

    asyncio.run(main())
    [share] = standin.shares()
    assert (share["AllowedFiles"], share["Flags"]) == (["one"], 0x84)


@pytest.mark.parametrize("hresult", [0xC037010E, 0xC0370110, 0x80370110, 0xC0370106])
def test_removing_from_a_vm_that_is_gone_succeeds(standin: StandIn, tmp_path: Path, hresult: int) -> None:
    async def main() -> None:
        async with await ComputeSystem.open(VM, core=standin.core) as system:
            manager = Manager(UtilityVM(system))
            name = await manager.add(AddOptions(tmp_path))
            standin.inject("HcsModifyComputeSystem", hresult)
            await manager.remove(name)
            assert manager.shares() == ()

    asyncio.run(main())


def test_an_add_with_unknown_outcome_is_undone(standin: StandIn, tmp_path: Path) -> None:
    async def main() -> None:
        async with await ComputeSystem.open(VM, core=standin.core) as system:
            manager = Manager(UtilityVM(system))
            standin.inject("HcsModifyComputeSystem", 0x80370118, AFTER_DOING_IT)
            with pytest.raises(ComputeSystemError):
                await manager.add(AddOptions(tmp_path))
            assert (standin.names(), manager.shares()) == ([], ())

    asyncio.run(main())


def test_when_the_vm_exits_its_shares_are_released_and_callers_are_told(standin: StandIn, tmp_path: Path) -> None:
    async def main() -> None:
        async with await ComputeSystem.open(VM, core=standin.core) as system:
            manager = Manager(UtilityVM(system))
            await manager.add(AddOptions(tmp_path), owner="a")
            (tmp_path / "pending").mkdir()
            manager.resolve_share_name(AddOptions(tmp_path / "pending"))
            standin.hold()
            adding = [
                asyncio.create_task(manager.add(AddOptions(tmp_path, read_only=True), owner=owner)) for owner in "ab"
            ]
            await asyncio.to_thread(standin.wait, "held", 1)
            standin.exit(VM)
            for task in adding:
                with pytest.raises(ComputeSystemGone, match="the VM has exited"):
                    await task
            assert manager.shares() == ()
            calls = standin.count("modify")
            await manager.remove("0", owner="a")  # as asked
            with pytest.raises(ComputeSystemGone, match="no share can be added any more"):
                await manager.add(AddOptions(tmp_path))
            await manager.aclose()
            assert standin.count("modify") == calls
            standin.let_end()

    asyncio.run(main())


def test_a_manager_made_after_the_exit_is_told_too(standin: StandIn, tmp_path: Path) -> None:
    async def main() -> None:
        async with await ComputeSystem.open(VM, core=standin.core) as system:
            standin.exit(VM)
            await system.wait_exit()
            manager = Manager(UtilityVM(system))
            await asyncio.sleep(0)
            with pytest.raises(ComputeSystemGone, match="no share can be added any more"):
                manager.resolve_share_name(AddOptions(tmp_path))

    asyncio.run(main())


ANSWERS = [
    (0x80070005, AT_ONCE),
    (0x80070005, AT_THE_END),
    (0x80370118, AT_THE_END),  # unknown, and not done
    (0x80370118, AFTER_DOING_IT),  # unknown, and done
]


def test_whatever_hcs_answers_the_vm_has_what_is_held_and_nothing_unseen(standin: StandIn, tmp_path: Path) -> None:
    class Callers(RuleBasedStateMachine):
        """Callers of one Manager, and an HCS that now and then fails or loses an answer."""

        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()
            self.system = self.runner.run(ComputeSystem.open(VM, core=standin.core))
            self.manager = Manager(UtilityVM(self.system))
            self.relied_on: set[tuple[str, str]] = set()
            """Owner and name: added, and no removal asked for."""
            self.asked: set[tuple[str, str]] = set()
            """Owner and name: a removal was asked for, and perhaps failed."""

        @initialize()
        def start(self) -> None:
            assert standin.names() == []

        @rule(answer=st.sampled_from(ANSWERS))
        def inject(self, answer: tuple[int, int]) -> None:
            standin.inject("HcsModifyComputeSystem", *answer)

        @rule(owners=st.lists(st.sampled_from("abc"), min_size=1, max_size=3), read_only=st.booleans())
        def add(self, owners: list[str], read_only: bool) -> None:
            options = AddOptions(tmp_path, read_only=read_only)
            added = self._run([self.manager.add(options, owner=owner) for owner in owners])
            self.relied_on |= {
                (owner, name) for owner, name in zip(owners, added, strict=True) if isinstance(name, str)
            }

        @rule(data=st.data())
        def remove(self, data: st.DataObject) -> None:
            if not self.relied_on | self.asked:
                return
            owner, name = data.draw(st.sampled_from(sorted(self.relied_on | self.asked)))
            self.relied_on.discard((owner, name))
            self.asked.add((owner, name))
            self._run([self.manager.remove(name, owner=owner)])

        def _run(self, calls: list[object]) -> list[object]:
            async def gather() -> list[object]:
                return await asyncio.gather(*calls, return_exceptions=True)  # type: ignore[call-overload, no-any-return]  # results of several kinds

            results = self.runner.run(gather())
            assert all(result is None or isinstance(result, str | ComputeSystemError) for result in results)
            return results

        @invariant()
        def nothing_is_unseen_and_nothing_held_is_missing(self) -> None:
            standin.settle()
            on_vm = set(standin.names())
            listed = {share.name: share for share in self.manager.shares()}
            assert on_vm <= set(listed)
            added = {name for name, share in listed.items() if share.state is ShareState.ADDED and not share.orphan}
            assert added <= on_vm
            assert {name for _, name in self.relied_on} <= added

        def teardown(self) -> None:
            standin.settle()
            self.runner.run(self._end())
            self.runner.close()
            assert standin.names() == []
            assert (standin.count("operations"), standin.count("systems"), standin.count("strings")) == (0, 0, 0)

        async def _end(self) -> None:
            for _ in range(len(ANSWERS) * 20):  # as often as answers may be waiting to go wrong
                try:
                    await self.manager.aclose()
                except Exception:  # noqa: BLE001  SharesLeft: what is left is tried again
                    continue
                break
            await self.system.close()
            standin.clear_injections()

    run_state_machine_as_test(
        Callers,
        settings=settings(
            max_examples=200, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
