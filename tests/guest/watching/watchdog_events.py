"""Runs in a guest: writes what watchdog tells of the directory `src`, a line each, after "ready"."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from watchdog.events import FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class _Told(FileSystemEventHandler):
    """Writes down what changes; that a file was opened or read is none."""

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in ("created", "modified", "closed", "moved", "deleted"):
            _say(f"{event.event_type} {os.fsdecode(event.src_path)} {os.fsdecode(event.dest_path)}")


def main() -> None:
    """Watch for ever."""
    observer = InotifyObserver()
    observer.schedule(_Told(), "src", recursive=True)
    observer.start()
    _say("ready")
    observer.join()


if __name__ == "__main__":
    main()
