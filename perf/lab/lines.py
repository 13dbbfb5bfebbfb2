"""Panels of lines, as an SVG that reads well on a light and on a dark page."""
import math
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 860, 64, 180
HEIGHT, TITLE, FOOT, GAP = 260, 28, 34, 22

STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #444 }
.title { font-weight: 600 }
.grid { stroke: #8a93a0; stroke-opacity: .25 }
.mark { stroke: #444; stroke-dasharray: 4 3 }
.line { fill: none; stroke-width: 1.5 }
.ours { stroke-width: 3 }
.floor { stroke-dasharray: 2 3 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } .mark { stroke: #ccc } }"""


@dataclass(frozen=True)
class Axis:
    """From `least` to `most`, logarithmic or not, with labelled ticks."""
    least: float
    most: float
    ticks: tuple                    # (value, label)
    logarithmic: bool = True

    def at(self, value):
        """Its place, 0 to 1; what lies outside is put on the edge."""
        scale = math.log if self.logarithmic else float
        value = min(max(value, self.least), self.most)
        return (scale(value) - scale(self.least)) / (scale(self.most) - scale(self.least))


@dataclass(frozen=True)
class Series:
    """A peer's points, (x, y)."""
    name: str
    colour: str
    points: list
    style: str = ""                 # "ours", "floor" or nothing


@dataclass(frozen=True)
class Panel:
    title: str
    x: Axis
    y: Axis
    series: list
    marks: tuple = field(default=())    # horizontal lines worth seeing


def draw(panels):
    """One panel below the other."""
    body, top = [], 8
    for panel in panels:
        body += _panel(panel, top)
        top += TITLE + HEIGHT + FOOT + GAP
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" '
            f'height="{top}" role="img">\n<style>\n{STYLE}\n</style>\n' + "\n".join(body) + "\n</svg>\n")


def logarithmic(values, show):
    """An axis over these values with ticks at 1, 2 and 5 times the powers of ten."""
    least, most = min(values), max(values)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    ticks = [digit * 10.0 ** power for power in powers for digit in (1, 2, 5)]
    least = max((tick for tick in ticks if tick <= least), default=least)
    most = min((tick for tick in ticks if tick >= most), default=most)
    if least == most:
        most *= 2
    return Axis(least, most, tuple((tick, show(tick)) for tick in ticks if least <= tick <= most))


def _panel(panel, top):
    floor, width = top + TITLE + HEIGHT, WIDTH - LEFT - RIGHT
    parts = [f'<text class="title" x="8" y="{top + 14}">{escape(panel.title)}</text>']
    for value, label in panel.x.ticks:
        x = LEFT + panel.x.at(value) * width
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top + TITLE}" y2="{floor}"/>'
                     f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{escape(label)}</text>')
    for value, label in panel.y.ticks:
        y = floor - panel.y.at(value) * HEIGHT
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for value in panel.marks:
        y = floor - panel.y.at(value) * HEIGHT
        parts.append(f'<line class="mark" x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for row, series in enumerate(panel.series):
        points = " ".join(f"{LEFT + panel.x.at(x) * width:.1f},{floor - panel.y.at(y) * HEIGHT:.1f}"
                          for x, y in series.points)
        y, x = top + TITLE + 10 + row * 18, LEFT + width + 14
        parts.append(f'<polyline class="line {series.style}" stroke="{series.colour}" points="{points}"/>'
                     f'<line class="line {series.style}" stroke="{series.colour}" x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}"/>'
                     f'<text x="{x + 28}" y="{y + 4}">{escape(series.name)}</text>')
    return parts
