"""Draws the states of a share and the transitions between them from the one table in `uvmshare.share.state`.

    python tools/state_diagram.py            # writes docs/state-diagram.svg and docs/state-diagram.md
    python tools/state_diagram.py --check    # fails when what is committed is stale

What lives here: where the boxes stand and how the lines run. What must not: a state, a trigger or a
transition; those are read. A transition without a line here is an error, not a gap in the picture.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from uvmshare.share.state import INITIAL_STATE, TRANSITIONS, ShareState

DOCS = Path(__file__).resolve().parent.parent / "docs"

WIDTH, HEIGHT = 880, 430
BOX_WIDTH, BOX_HEIGHT, LINE = 150, 46, 18

CENTRES = {
    ShareState.PENDING: (440, 83),
    ShareState.ADDED: (230, 225),
    ShareState.INVALID: (650, 225),
    ShareState.REMOVED: (440, 367),
}

# From, to: the line, where its labels begin, and how they are anchored there.
LINES = {
    (ShareState.PENDING, ShareState.ADDED): ("M 365 95 L 242 200", (296, 138), "end"),
    (ShareState.PENDING, ShareState.INVALID): ("M 515 95 L 638 200", (584, 124), "start"),
    (ShareState.PENDING, ShareState.REMOVED): ("M 440 107 L 440 342", (440, 225), "middle"),
    (ShareState.ADDED, ShareState.REMOVED): ("M 242 249 L 365 355", (296, 322), "end"),
    (ShareState.INVALID, ShareState.REMOVED): ("M 638 249 L 515 355", (584, 322), "start"),
    (ShareState.ADDED, ShareState.ADDED): ("M 155 215 C 105 195, 105 255, 155 235", (112, 276), "middle"),
    (ShareState.INVALID, ShareState.INVALID): ("M 725 215 C 775 195, 775 255, 725 235", (768, 276), "middle"),
}

COLOURS = {
    ShareState.PENDING: ("#eff6ff", "#3b82f6"),
    ShareState.ADDED: ("#ecfdf5", "#10b981"),
    ShareState.INVALID: ("#fff7ed", "#f97316"),
    ShareState.REMOVED: ("#f8fafc", "#94a3b8"),
}

HEAD = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="ui-sans-serif, system-ui, \
sans-serif" font-size="15" role="img" aria-labelledby="title">
  <title id="title">The states of a share and the transitions between them</title>
  <!-- Made by tools/state_diagram.py from the table in src/uvmshare/share/state.py -->
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
  <rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
"""


def edges() -> dict[tuple[ShareState, ShareState], list[str]]:
    """Return the table as lines from state to state, with the labels of each."""
    found: dict[tuple[ShareState, ShareState], list[str]] = {}
    for (state, trigger), following in TRANSITIONS.items():
        found.setdefault((state, following), []).append(trigger.value)
    return found


def svg() -> str:
    """Return the picture."""
    drawn = edges()
    if drawn.keys() != LINES.keys() or set(CENTRES) != set(ShareState):
        strange = sorted(f"{a.name} -> {b.name}" for a, b in drawn.keys() ^ LINES.keys())
        msg = (
            f"tools/state_diagram.py draws other transitions than the table has: {', '.join(strange) or 'a new state'}"
        )
        raise SystemExit(msg)
    parts = [HEAD]
    x, y = CENTRES[INITIAL_STATE]
    parts.append(f'  <circle cx="{x}" cy="{y - 60}" r="7" fill="#475569"/>\n')
    parts.append(f'  <path class="arrow" d="M {x} {y - 53} L {x} {y - BOX_HEIGHT // 2 - 2}"/>\n')
    parts += [f'  <path class="arrow" d="{path}"/>\n' for path, _, _ in LINES.values()]
    for state, (x, y) in CENTRES.items():
        fill, stroke = COLOURS[state]
        left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
        parts.append(
            f'  <rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.5"/>\n'
            f'  <text class="name" x="{x}" y="{y + 5}">{state.name}</text>\n'
        )
    for edge, labels in drawn.items():
        _, (x, y), anchor = LINES[edge]
        parts += [
            f'  <text class="edge" x="{x}" y="{y + number * LINE}" text-anchor="{anchor}">{label}</text>\n'
            for number, label in enumerate(labels)
        ]
    return "".join([*parts, "</svg>\n"])


def markdown() -> str:
    """Return the same as text: a Mermaid diagram and the table."""
    lines = [
        "# The states of a share",
        "",
        "Made by `tools/state_diagram.py` from the table in `src/uvmshare/share/state.py`.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {INITIAL_STATE.name}",
    ]
    for (state, following), labels in edges().items():
        lines.append(f"    {state.name} --> {following.name}: {'<br>'.join(labels)}")
    left_by = {state for state, _ in TRANSITIONS}
    lines += [f"    {state.name} --> [*]" for state in ShareState if state not in left_by]
    lines += ["```", "", "| In | when | becomes |", "|---|---|---|"]
    lines += [
        f"| {state.name} | {trigger.value} | {following.name} |" for (state, trigger), following in TRANSITIONS.items()
    ]
    return "\n".join([*lines, ""])


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description="Draw the state diagram from the table.")
    parser.add_argument("--check", action="store_true", help="fail when the committed files are stale")
    check = parser.parse_args().check
    status = 0
    for name, text in (("state-diagram.svg", svg()), ("state-diagram.md", markdown())):
        path = DOCS / name
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.stderr.write(f"docs/{name} is stale: run python tools/state_diagram.py\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
