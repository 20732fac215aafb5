"""Shared parts of the self-contained HTML reports: style, tables, plots."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

WIDTH, HEIGHT = 960, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 28, 28
# The hues keep their order for people who see colors differently; the second GPU of each pair is dashed as well.
STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --ink: #1b1b1a; --soft: #66655f; --line: #dddcd6; --band: #f0efea;
  --bad: #b3261e; --fair: #8a5a00; --good: #1a6b3c;
  --die0: #2a78d6; --die1: #0f8f65; --die2: #b8720a; --die3: #8b4fd0; }
@media (prefers-color-scheme: dark) { :root { --paper: #191918; --ink: #ecebe6; --soft: #a3a29b; --line: #3b3a37;
  --band: #242422; --bad: #ff8a80; --fair: #f0b64a; --good: #6fcf97; --die0: #6aa9f4; --die1: #45c99a; --die2: #eda100;
  --die3: #bb94f2; } }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.soft, figcaption { color: var(--soft); } .result { font-size: 1.2rem; font-weight: 600; }
.passed { color: var(--good); } .failed, .halted, .error { color: var(--bad); }
.skipped, .warning { color: var(--fair); }
.finding { border-left: 4px solid; padding: .1rem 0 .1rem .8rem; margin: .8rem 0; }
.finding p { margin: 0; color: var(--ink); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.band { fill: var(--band); } .grid { stroke: var(--line); } .limit { stroke: var(--bad); stroke-dasharray: 2 4; }
.die { fill: none; stroke-width: 2; stroke-linejoin: round; } .die1, .die3 { stroke-dasharray: 6 3; }
.die0 { stroke: var(--die0); } .die1 { stroke: var(--die1); }
.die2 { stroke: var(--die2); } .die3 { stroke: var(--die3); }
.key { display: inline-block; margin-right: 1.2rem; } .key svg { display: inline; width: 28px; height: 10px; }
"""


def step_of(span: float, count: int = 5) -> float:
    """A round step that divides `span` into about `count` parts."""
    power = 1.0
    while power * 10 <= span / count:
        power *= 10
    return next((power * part for part in (1, 2, 5, 10) if power * part >= span / count), power * 10)


class Plot:
    """One SVG with lines over an axis from 0 to a round value above `most`; places on the other axis are the caller's.

    Attributes:
        parts: what is drawn, bottom first.
    """

    def __init__(self, title: str, most: float) -> None:
        self.step = step_of(most or 1)
        self.top = self.step * (int(most / self.step) + 1)
        self.parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'><title>{escape(title)}</title>"]

    def y(self, value: float) -> str:
        """Place of a value on the axis."""
        return f"{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top:.1f}"

    def rule(self, kind: str, value: float) -> str:
        """Begin of a horizontal line at a value, without its end."""
        return f"<line class='{kind}' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{self.y(value)}' y2='{self.y(value)}'"

    def grid(self) -> None:
        """Draw the axis' lines and numbers."""
        for place in range(int(self.top / self.step) + 1):
            value = place * self.step
            below = float(self.y(value)) + 4
            self.parts.append(f"{self.rule('grid', value)}/>")
            self.parts.append(f"<text x='{LEFT - 6}' y='{below:.1f}' text-anchor='end'>{value:g}</text>")

    def tick(self, x: str, text: str) -> None:
        """Write below the other axis."""
        self.parts.append(f"<text x='{x}' y='{HEIGHT - 8}' text-anchor='middle'>{text}</text>")

    def line(self, number: int, points: list[tuple[str, float]], title: str) -> None:
        """Draw line `number` through points (place, value)."""
        places = [f"{x},{self.y(value)}" for x, value in points]
        # A line of one point is not drawn.
        drawn = " ".join(places * 2 if len(places) == 1 else places)
        self.parts.append(f"<polyline class='die die{number % 4}' points='{drawn}'>"
                          f"<title>{escape(title)}</title></polyline>")

    def svg(self) -> str:
        return "".join([*self.parts, "</svg>"])


def legend(names: Iterable[str]) -> str:
    """The look of each line of a plot, with its name."""
    return "".join(
        f"<span class='key'><svg viewBox='0 0 28 10'><line class='die die{number % 4}' x1='0' x2='28' y1='5' y2='5'/>"
        f"</svg> {escape(name)}</span>"
        for number, name in enumerate(names)
    )


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table; a cell that is None stays empty."""
    body = "".join(
        "<tr>" + "".join(f"<td>{'' if cell is None else escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f"<div class='scroll'><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"


def document(title: str, body: str) -> str:
    """A page that needs nothing but itself."""
    return (
        "<!DOCTYPE html>\n"
        "<html lang='en'><head><meta charset='utf-8'/>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'/>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )
