"""Draws the states of a share and of a mount, and the transitions between them, from their tables.

    python tools/state_diagram.py            # writes docs/state-diagram.svg, docs/mount-states.svg and their .md
    python tools/state_diagram.py --check    # fails when what is committed is stale

The tables are `uvmshare.share.state` and `uvmshare.mounts.state`. What lives here: where the boxes stand and how the
lines run. What must not: a state, a trigger or a transition; those are read. A transition without a line here is
an error, not a gap in the picture.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvmshare.mounts import state as mounts
from uvmshare.mounts.state import MountLife, MountState
from uvmshare.share import state as shares
from uvmshare.share.state import ShareLife, ShareState

if TYPE_CHECKING:
    import enum
    from collections.abc import Mapping

    from uvmshare.lifecycle.transitions import Transitions

DOCS = Path(__file__).resolve().parent.parent / "docs"

BOX_WIDTH, BOX_HEIGHT, LINE = 150, 46, 18

BLUE = ("#eff6ff", "#3b82f6")
GREEN = ("#ecfdf5", "#10b981")
ORANGE = ("#fff7ed", "#f97316")
GREY = ("#f8fafc", "#94a3b8")

COLOURS = {
    ShareState.PENDING: BLUE,
    ShareState.ADDED: GREEN,
    ShareState.INVALID: ORANGE,
    ShareState.REMOVED: GREY,
}
"""By what callers see of a share."""
MOUNT_COLOURS = {
    MountState.PENDING: BLUE,
    MountState.MOUNTED: GREEN,
    MountState.INVALID: ORANGE,
    MountState.REVOKED: ORANGE,
    MountState.UNMOUNTED: GREY,
}

Line = tuple[str, tuple[int, int], str]
"""A line, where its labels begin, and how they are anchored there."""


@dataclass(frozen=True)
class Diagram:
    """One table and where its states stand in the picture."""

    name: str
    """Of the files in docs/."""
    source: str
    transitions: Transitions[Any, Any]
    """Of enums of each table's own."""
    size: tuple[int, int]
    centres: Mapping[enum.Enum, tuple[int, int]]
    colours: Mapping[enum.Enum, tuple[str, str]]
    lines: Mapping[tuple[enum.Enum, enum.Enum], Line]


SHARES = Diagram(
    name="state-diagram",
    source="src/uvmshare/share/state.py",
    transitions=shares.TRANSITIONS,
    size=(1200, 680),
    centres={
        ShareLife.PENDING: (590, 83),
        ShareLife.ADDING: (590, 190),
        ShareLife.ADDED: (590, 310),
        ShareLife.REMOVING: (590, 430),
        ShareLife.LOST: (200, 310),
        ShareLife.RESTORING: (200, 190),
        ShareLife.INVALID: (1000, 310),
        ShareLife.UNDOING: (1000, 430),
        ShareLife.DOUBTFUL: (180, 430),
        ShareLife.CLEARING: (180, 550),
        ShareLife.FAILED: (1000, 190),
        ShareLife.REMOVED: (590, 600),
        ShareLife.NOT_OURS: (1000, 550),
    },
    colours={life: COLOURS[life.state] for life in ShareLife},
    lines={
        (ShareLife.PENDING, ShareLife.ADDING): ("M 590 106 L 590 165", (598, 140), "start"),
        (ShareLife.PENDING, ShareLife.INVALID): ("M 667 80 C 1130 60, 1220 240, 1077 300", (1060, 110), "start"),
        (ShareLife.PENDING, ShareLife.REMOVED): ("M 513 95 C 300 250, 380 520, 545 575", (420, 128), "end"),
        (ShareLife.ADDING, ShareLife.ADDED): ("M 590 213 L 590 285", (598, 254), "start"),
        (ShareLife.ADDING, ShareLife.FAILED): ("M 667 190 L 923 190", (794, 184), "middle"),
        (ShareLife.ADDING, ShareLife.INVALID): ("M 667 203 L 923 300", (812, 228), "start"),
        (ShareLife.ADDED, ShareLife.REMOVING): ("M 575 333 L 575 405", (567, 374), "end"),
        (ShareLife.ADDED, ShareLife.LOST): ("M 513 310 L 277 310", (396, 304), "middle"),
        (ShareLife.ADDED, ShareLife.REMOVED): ("M 645 333 C 740 400, 740 520, 630 575", (718, 480), "start"),
        (ShareLife.REMOVING, ShareLife.ADDED): ("M 605 407 L 605 335", (613, 366), "start"),
        (ShareLife.REMOVING, ShareLife.REMOVED): ("M 590 453 L 590 575", (598, 540), "start"),
        (ShareLife.REMOVING, ShareLife.DOUBTFUL): ("M 513 430 L 257 430", (395, 402), "middle"),
        (ShareLife.LOST, ShareLife.RESTORING): ("M 185 287 L 185 215", (177, 255), "end"),
        (ShareLife.LOST, ShareLife.INVALID): ("M 277 322 C 420 400, 760 400, 923 322", (800, 362), "start"),
        (ShareLife.LOST, ShareLife.REMOVED): (
            "M 123 320 C 10 340, 10 640, 200 640 C 330 640, 420 625, 513 610",
            (300, 656),
            "middle",
        ),
        (ShareLife.RESTORING, ShareLife.ADDED): ("M 277 200 L 513 295", (420, 248), "start"),
        (ShareLife.RESTORING, ShareLife.LOST): ("M 215 213 L 215 285", (223, 236), "start"),
        (ShareLife.INVALID, ShareLife.UNDOING): ("M 985 333 L 985 405", (977, 374), "end"),
        (ShareLife.INVALID, ShareLife.REMOVED): ("M 930 333 L 655 575", (860, 440), "middle"),
        (ShareLife.UNDOING, ShareLife.INVALID): ("M 1015 407 L 1015 335", (1023, 356), "start"),
        (ShareLife.UNDOING, ShareLife.REMOVED): ("M 940 453 L 667 585", (840, 520), "start"),
        (ShareLife.DOUBTFUL, ShareLife.CLEARING): ("M 165 453 L 165 525", (157, 494), "end"),
        (ShareLife.DOUBTFUL, ShareLife.REMOVED): ("M 257 445 L 525 577", (408, 530), "middle"),
        (ShareLife.CLEARING, ShareLife.DOUBTFUL): ("M 195 527 L 195 455", (203, 474), "start"),
        (ShareLife.CLEARING, ShareLife.REMOVED): ("M 257 560 L 513 595", (350, 590), "middle"),
        (ShareLife.NOT_OURS, ShareLife.UNDOING): ("M 1000 527 L 1000 455", (1008, 495), "start"),
        (ShareLife.NOT_OURS, ShareLife.REMOVED): ("M 923 560 L 667 598", (790, 600), "middle"),
    },
)

MOUNTS = Diagram(
    name="mount-states",
    source="src/uvmshare/mounts/state.py",
    transitions=mounts.TRANSITIONS,
    size=(1260, 800),
    centres={
        MountLife.PENDING: (590, 83),
        MountLife.MOUNTING: (590, 190),
        MountLife.MOUNTED: (590, 310),
        MountLife.UNMOUNTING: (590, 430),
        MountLife.LOST: (200, 310),
        MountLife.RESTORING: (200, 190),
        MountLife.INVALID: (1000, 310),
        MountLife.UNDOING: (1000, 430),
        MountLife.OVERTAKEN: (200, 590),
        MountLife.REVOKED: (500, 590),
        MountLife.CLEARING: (880, 590),
        MountLife.UNMOUNTED: (700, 750),
    },
    colours={life: MOUNT_COLOURS[life.state] for life in MountLife},
    lines={
        (MountLife.PENDING, MountLife.MOUNTING): ("M 590 106 L 590 165", (598, 140), "start"),
        (MountLife.PENDING, MountLife.UNMOUNTED): ("M 667 80 C 1240 60, 1290 560, 777 745", (1030, 140), "start"),
        (MountLife.MOUNTING, MountLife.MOUNTED): ("M 590 213 L 590 285", (598, 254), "start"),
        (MountLife.MOUNTING, MountLife.INVALID): ("M 667 200 L 923 297", (806, 228), "start"),
        (MountLife.MOUNTING, MountLife.OVERTAKEN): ("M 513 205 C 400 260, 380 420, 240 565", (385, 410), "middle"),
        (MountLife.MOUNTED, MountLife.UNMOUNTING): ("M 575 333 L 575 405", (567, 386), "end"),
        (MountLife.MOUNTED, MountLife.LOST): ("M 513 310 L 277 310", (396, 304), "middle"),
        (MountLife.MOUNTED, MountLife.REVOKED): ("M 540 333 C 450 400, 440 480, 470 565", (452, 366), "end"),
        (MountLife.MOUNTED, MountLife.UNMOUNTED): ("M 640 333 C 740 400, 740 560, 715 725", (736, 500), "start"),
        (MountLife.UNMOUNTING, MountLife.MOUNTED): ("M 605 407 L 605 335", (613, 392), "start"),
        (MountLife.UNMOUNTING, MountLife.UNMOUNTED): ("M 610 453 L 690 725", (608, 478), "end"),
        (MountLife.UNMOUNTING, MountLife.INVALID): ("M 667 420 L 923 325", (820, 404), "middle"),
        (MountLife.UNMOUNTING, MountLife.CLEARING): ("M 645 453 L 835 565", (806, 512), "start"),
        (MountLife.LOST, MountLife.RESTORING): ("M 185 287 L 185 215", (177, 255), "end"),
        (MountLife.LOST, MountLife.INVALID): ("M 277 320 C 420 372, 760 372, 923 316", (760, 352), "middle"),
        (MountLife.LOST, MountLife.REVOKED): ("M 225 333 C 260 460, 360 540, 430 567", (262, 440), "end"),
        (MountLife.LOST, MountLife.UNMOUNTED): ("M 123 320 C 10 420, 40 770, 623 752", (262, 716), "start"),
        (MountLife.RESTORING, MountLife.MOUNTED): ("M 277 195 L 513 297", (330, 212), "start"),
        (MountLife.RESTORING, MountLife.LOST): ("M 215 213 L 215 285", (223, 246), "start"),
        (MountLife.RESTORING, MountLife.OVERTAKEN): ("M 123 200 C 60 300, 60 500, 160 565", (80, 400), "start"),
        (MountLife.INVALID, MountLife.UNDOING): ("M 985 333 L 985 405", (977, 374), "end"),
        (MountLife.INVALID, MountLife.REVOKED): ("M 940 333 C 860 460, 700 540, 577 580", (838, 452), "end"),
        (MountLife.INVALID, MountLife.UNMOUNTED): ("M 1077 315 C 1190 420, 1100 640, 777 735", (1126, 470), "start"),
        (MountLife.UNDOING, MountLife.INVALID): ("M 1015 407 L 1015 335", (1023, 366), "start"),
        (MountLife.UNDOING, MountLife.UNMOUNTED): ("M 1020 453 C 1030 560, 940 690, 777 728", (1020, 570), "start"),
        (MountLife.UNDOING, MountLife.CLEARING): ("M 980 453 L 905 565", (954, 512), "start"),
        (MountLife.REVOKED, MountLife.CLEARING): ("M 577 595 L 803 595", (640, 612), "start"),
        (MountLife.REVOKED, MountLife.UNMOUNTED): ("M 520 613 L 660 725", (556, 690), "end"),
        (MountLife.REVOKED, MountLife.REVOKED): ("M 470 613 C 440 660, 500 660, 490 615", (440, 668), "middle"),
        (MountLife.OVERTAKEN, MountLife.REVOKED): ("M 277 590 L 423 590", (350, 606), "middle"),
        (MountLife.OVERTAKEN, MountLife.OVERTAKEN): ("M 180 613 C 150 660, 230 660, 205 615", (190, 662), "middle"),
        (MountLife.CLEARING, MountLife.UNMOUNTED): ("M 860 613 L 745 725", (826, 660), "start"),
        (MountLife.CLEARING, MountLife.REVOKED): ("M 803 583 L 577 583", (690, 530), "middle"),
        (MountLife.CLEARING, MountLife.CLEARING): ("M 957 580 C 1000 560, 1000 620, 957 600", (964, 630), "start"),
    },
)

DIAGRAMS = (SHARES, MOUNTS)


def head(diagram: Diagram) -> str:
    """Return the beginning of the picture."""
    width, height = diagram.size
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="ui-sans-serif, system-ui, \
sans-serif" font-size="15" role="img" aria-labelledby="title">
  <title id="title">The states of a {diagram.transitions.thing} and the transitions between them</title>
  <!-- Made by tools/state_diagram.py from the table in {diagram.source} -->
  <defs>
    <marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">
      <path d="M0 0 10 5 0 10z" fill="#475569"/>
    </marker>
    <style>
      .arrow {{ stroke: #475569; stroke-width: 1.5; fill: none; marker-end: url(#arrow) }}
      .name {{ font-weight: 600; fill: #0f172a; text-anchor: middle }}
      .edge {{ fill: #334155; font-size: 13px; paint-order: stroke; stroke: #ffffff; stroke-width: 5 }}
    </style>
  </defs>
  <rect width="{width}" height="{height}" fill="#ffffff"/>
"""


def edges(diagram: Diagram) -> dict[tuple[enum.Enum, enum.Enum], list[str]]:
    """Return the table as lines from state to state, with the labels of each."""
    found: dict[tuple[enum.Enum, enum.Enum], list[str]] = {}
    for (state, trigger), following in diagram.transitions.table.items():
        found.setdefault((state, following), []).append(trigger.value)
    return found


def svg(diagram: Diagram) -> str:
    """Return the picture."""
    drawn = edges(diagram)
    initial: enum.Enum = diagram.transitions.initial
    if drawn.keys() != diagram.lines.keys() or set(diagram.centres) != set(type(initial)):
        strange = sorted(f"{a.name} -> {b.name}" for a, b in drawn.keys() ^ diagram.lines.keys())
        msg = (
            f"tools/state_diagram.py draws other transitions than the table in {diagram.source} has: "
            f"{', '.join(strange) or 'a new state'}"
        )
        raise SystemExit(msg)
    parts = [head(diagram)]
    x, y = diagram.centres[initial]
    parts.append(f'  <circle cx="{x}" cy="{y - 60}" r="7" fill="#475569"/>\n')
    parts.append(f'  <path class="arrow" d="M {x} {y - 53} L {x} {y - BOX_HEIGHT // 2 - 2}"/>\n')
    parts += [f'  <path class="arrow" d="{path}"/>\n' for path, _, _ in diagram.lines.values()]
    for state, (x, y) in diagram.centres.items():
        fill, stroke = diagram.colours[state]
        left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
        parts.append(
            f'  <rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.5"/>\n'
            f'  <text class="name" x="{x}" y="{y + 5}">{state.name}</text>\n'
        )
    for edge, labels in drawn.items():
        _, (x, y), anchor = diagram.lines[edge]
        parts += [
            f'  <text class="edge" x="{x}" y="{y + number * LINE}" text-anchor="{anchor}">{label}</text>\n'
            for number, label in enumerate(labels)
        ]
    return "".join([*parts, "</svg>\n"])


def markdown(diagram: Diagram) -> str:
    """Return the same as text: a Mermaid diagram and the table."""
    initial: enum.Enum = diagram.transitions.initial
    lines = [
        f"# The states of a {diagram.transitions.thing}",
        "",
        f"Made by `tools/state_diagram.py` from the table in `{diagram.source}`.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {initial.name}",
    ]
    for (state, following), labels in edges(diagram).items():
        lines.append(f"    {state.name} --> {following.name}: {'<br>'.join(labels)}")
    left_by = {state for state, _ in diagram.transitions.table}
    lines += [f"    {state.name} --> [*]" for state in type(initial) if state not in left_by]
    lines += ["```", "", "| In | when | becomes |", "|---|---|---|"]
    lines += [
        f"| {state.name} | {trigger.value} | {following.name} |"
        for (state, trigger), following in diagram.transitions.table.items()
    ]
    return "\n".join([*lines, ""])


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description="Draw the state diagrams from the tables.")
    parser.add_argument("--check", action="store_true", help="fail when the committed files are stale")
    check = parser.parse_args().check
    status = 0
    for diagram in DIAGRAMS:
        for suffix, text in ((".svg", svg(diagram)), (".md", markdown(diagram))):
            path = DOCS / f"{diagram.name}{suffix}"
            if not check:
                path.write_text(text)
            elif not path.exists() or path.read_text() != text:
                sys.stderr.write(f"docs/{path.name} is stale: run python tools/state_diagram.py\n")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
