"""Processes that count in one SQLite table: ``count_in_sqlite.py JOURNAL PROCESSES TIMES``, in the current directory.

Prints the journal mode that SQLite took, the count, and what its integrity check says. What must not live here: what
these should be.
"""

import os
import sqlite3
import sys

journal, processes, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def opened() -> sqlite3.Connection:
    """Open the database; the time is long because an emulated guest is slow, and nothing waits so long in vain."""
    return sqlite3.connect("database", timeout=300, isolation_level=None)


def count() -> None:
    """Count `times` times, each in a transaction that takes its lock first."""
    connection = opened()
    for _ in range(times):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE counter SET value = value + 1")
        connection.execute("INSERT INTO history (pid, text) VALUES (?, ?)", (os.getpid(), "t" * 2000))
        connection.execute("COMMIT")
    connection.close()


first = opened()
mode = first.execute(f"PRAGMA journal_mode={journal}").fetchone()[0]
first.execute("CREATE TABLE counter (value INTEGER)")
first.execute("CREATE TABLE history (pid INTEGER, text TEXT)")
first.execute("INSERT INTO counter VALUES (0)")
first.close()
children = []
for _ in range(processes):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            count()
            status = 0
        finally:
            os._exit(status)
    children.append(child)
if any(os.waitpid(child, 0)[1] for child in children):
    sys.exit("a process failed")
last = opened()
value = last.execute("SELECT value FROM counter").fetchone()[0]
integrity = last.execute("PRAGMA integrity_check").fetchone()[0]
sys.stdout.write(f"{mode} {value} {integrity}\n")
