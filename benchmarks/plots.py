"""Pictures of the results: bars with their spread, as SVG.

What lives here: drawing. What must not: numbers that are not in the results.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

from benchmarks.report import judged

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["draw"]

_LEFT: Final = 330
_WIDTH: Final = 420
_RIGHT: Final = 60
_LINE: Final = 22
_TOP: Final = 56
_TEN: Final = tuple(
    f"{what}, one CPU, disk"
    for what in (
        "getattr, depth 8",
        "walk, depth 8",
        "open-read, depth 8",
        "create-unlink, depth 8",
        "readdir-changed, depth 1",
        "read-64k, depth 4",
        "read-1m, depth 4",
        "random-read-4k, depth 8",
        "write-1m, depth 4",
        "git-status, depth 8",
    )
)
"""The rows for the README: one of each kind of work, on a disk, the slower ones among them."""
_COLOURS: Final = {"diod": "#3465a4", "minimal": "#a0522d"}


def draw(results: dict[str, Any]) -> dict[str, str]:
    """Return the pictures by the names of their files."""
    rows = [row for row in results["servers"] if row["ratios"] and not row["row"]["by_latency"]]
    manager = results["manager"]
    by_name = {row["name"]: row for row in rows}
    return {
        "performance-ten.svg": _ratios(
            "uvmshare against diod: work for the same CPU time, as a ratio with its spread",
            [(name, judged(by_name[name], "diod"), None) for name in _TEN if name in by_name],
            _COLOURS["diod"],
        ),
        "performance-diod.svg": _ratios(
            "uvmshare against diod: work for the same CPU time, as a ratio with its spread",
            [(row["name"], judged(row, "diod"), row["row"]["to_diod"]) for row in rows],
            _COLOURS["diod"],
        ),
        "performance-limit.svg": _ratios(
            "uvmshare against the minimal C server: work for the same CPU time, as a ratio with its spread",
            [(row["name"], judged(row, "minimal"), row["row"]["to_minimal"]) for row in rows],
            _COLOURS["minimal"],
        ),
        "performance-manager.svg": _growth(
            {
                name: [(int(size), found["add_us"]["median"]) for size, found in manager[name].items()]
                for name in ("uvmshare", "published")
            }
        ),
    }


def _text(x: float, y: float, content: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(content)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="3 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashes}/>'


def _picture(width: float, height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _ratios(title: str, rows: Sequence[tuple[str, dict[str, float] | None, float | None]], colour: str) -> str:
    """Draw a bar a row on a logarithmic axis, its spread as a thin line, and the figure to reach as a mark."""
    shown = [(name, ratio, goal) for name, ratio, goal in rows if ratio is not None]
    edges = [0.25, 4.0, *(value for _, ratio, _ in shown for value in (ratio["min"], ratio["max"]) if value > 0)]
    low, high = math.floor(math.log2(min(edges))), math.ceil(math.log2(max(edges)))

    def x(value: float) -> float:
        return _LEFT + (math.log2(max(value, 2.0**low)) - low) / (high - low) * _WIDTH

    height = _TOP + len(shown) * _LINE + 10
    parts = [_text(10, 20, title, size=15)]
    for power in range(low, high + 1):
        at = x(2.0**power)
        parts.append(_line(at, _TOP - 8, at, height - 8, "#999999" if power == 0 else "#e0e0e0"))
        parts.append(_text(at, _TOP - 14, f"{2.0**power:g}", anchor="middle", size=11))
    for number, (name, ratio, goal) in enumerate(shown):
        y = _TOP + number * _LINE
        begin, end = sorted((x(1), x(ratio["median"])))
        parts.append(_text(_LEFT - 8, y + 12, name, anchor="end", size=11))
        parts.append(f'<rect x="{begin:.1f}" y="{y + 3}" width="{end - begin:.1f}" height="11" fill="{colour}"/>')
        parts.append(_line(x(ratio["min"]), y + 8.5, x(ratio["max"]), y + 8.5, "black"))
        if goal is not None:
            parts.append(_line(x(goal), y, x(goal), y + 17, "#cc0000"))
        parts.append(_text(_LEFT + _WIDTH + 8, y + 12, f"{ratio['median']:.2f}", size=11))
    marks = "; a red mark is the figure to reach" if any(goal is not None for *_, goal in shown) else ""
    parts.append(_text(10, 38, f"the axis is logarithmic{marks}", size=11))
    return _picture(_LEFT + _WIDTH + _RIGHT, height, parts)


def _growth(series: dict[str, list[tuple[int, float]]]) -> str:
    """Draw the cost of an add against the number of shares, both axes logarithmic."""
    width, height, left, bottom = 520.0, 320.0, 70.0, 270.0
    points = [point for some in series.values() for point in some]
    sizes = [math.log10(size) for size, _ in points]
    costs = [math.log10(cost) for _, cost in points]
    low, high = math.floor(min(costs)), math.ceil(max(costs))

    def place(size: float, cost: float) -> tuple[float, float]:
        across = (math.log10(size) - min(sizes)) / (max(sizes) - min(sizes))
        return left + across * (width - left - 110), bottom - (math.log10(cost) - low) / (high - low) * (bottom - 50)

    parts = [_text(10, 20, "CPU time of an add, by the number of shares", size=15)]
    for power in range(low, high + 1):
        _, y = place(10 ** min(sizes), 10.0**power)
        parts += [
            _line(left, y, width - 100, y, "#e0e0e0"),
            _text(left - 6, y + 4, f"{10.0**power:,.0f} us", anchor="end", size=11),
        ]
    for size in sorted({size for size, _ in points}):
        at, _ = place(size, 10.0**low)
        parts.append(_text(at, bottom + 18, f"{size:,}", anchor="middle", size=11))
    for (name, some), colour in zip(series.items(), _COLOURS.values(), strict=True):
        places = [place(*point) for point in some]
        line = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3" fill="{colour}"/>' for across, up in places]
        parts.append(_text(places[-1][0] + 8, places[-1][1] + 4, name, size=12))
    return _picture(width, height, parts)
