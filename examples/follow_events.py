"""What happens in the daemon, as it happens: shares that come and go, leases that end, agents that are lost.

    python follow_events.py [KIND...]

With kinds, such as lease.ended, only those are shown. It begins with what the daemon remembers, and ends with Ctrl-C or
with the daemon. Where events are missing, it says so.
"""

import sys

from uvmshare import Client
from uvmshare.printable import printable


def main(kinds: set[str]) -> None:
    """Print a line for each event of these kinds, or of all."""
    with Client() as client:
        for event in client.events(since="0"):
            if event is None:
                print("some events are missing here", flush=True)
            elif not kinds or event.kind in kinds:
                # Names come from others: they may hold what a terminal would take for a command.
                print(printable(f"{event.kind} {event.vm} {event.share or ''} {event.owner or ''}"), flush=True)


if __name__ == "__main__":
    try:
        main(set(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
