"""A journal in an SQLite file: `SqliteJournal` and what it is made of. See `docs/journal.md`."""

from uvmshare.sqlite_journal.journal import SqliteJournal

__all__ = ["SqliteJournal"]
