"""Which messages change a file or a name: each is noted, so that it is never told back to the guest that sent it."""

from __future__ import annotations

import sys
from typing import Final

import pytest

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver.mount.handlers import noting, table
from uvmshare.ninep import messages as m

UNCHANGING: Final = frozenset(
    (
        *(m.Tversion, m.Tauth, m.Tattach, m.Tflush),
        *(m.Twalk, m.Tgetattr, m.Tstatfs, m.Tread, m.Treaddir, m.Treadlink),
        *(m.Tlock, m.Tgetlock, m.Txattrwalk),
        m.Tfsync,  # to the disk goes what a Twrite has changed
        m.Txattrcreate,  # the attribute is set when its fid is clunked
    )
)
"""Messages after which every file and every name is as it was."""
REQUESTS: Final = frozenset(cls for number, cls in m.BY_TYPE.items() if number % 2 == 0)
"""All that a guest may send: replies have odd numbers."""


def test_each_message_is_noted_or_is_known_to_change_nothing() -> None:
    of_names, of_files = noting._OF_NAMES.keys(), noting._OF_FILES.keys()
    assert not of_names & of_files
    noted = of_names | of_files
    assert not noted & UNCHANGING
    assert noted | UNCHANGING == REQUESTS, (
        "a new message must be put into `noting`, or on the list of what changes none"
    )


def test_what_a_read_only_share_refuses_is_noted() -> None:
    assert table._WRITES.keys() - noting._OF_NAMES.keys() - noting._OF_FILES.keys() == {m.Txattrcreate}


def test_each_message_that_names_a_file_anew_is_noted_where_the_kernel_says_who_changed_something_too() -> None:
    """A name is a string of the message, and a file that is named by no name is taken away by its fid."""
    with_names = {cls for cls in table._WRITES if "name" in "".join(cls.__struct_fields__)} - {m.Txattrcreate}
    assert with_names | {m.Tremove} == noting._OF_NAMES.keys()
