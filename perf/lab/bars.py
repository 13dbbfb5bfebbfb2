"""Horizontal bars with whiskers, as an SVG that reads well on a light and on a dark page."""

WIDTH, LEFT, RIGHT = 860, 130, 190
ROW, GAP, TITLE = 20, 18, 24

STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #444 }
.title { font-weight: 600 }
.peer { fill: #8a93a0 }
.ours { fill: #1f8fbf }
.whisker { stroke: #444; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } .whisker { stroke: #ccc } }"""


def draw(groups):
    """`groups`: (title, rows), a row being (name, is ours, (median, least, most), text); all text escaped."""
    body, top = [], 8
    for title, rows in groups:
        body.append(f'<text class="title" x="8" y="{top + 14}">{title}</text>')
        top += TITLE
        largest = max(spread[2] for _, _, spread, _ in rows) or 1
        scale = (WIDTH - LEFT - RIGHT) / largest
        for name, ours, spread, text in rows:
            body.append(_bar(top, name, ours, [max(value, 0) * scale for value in spread], text))
            top += ROW
        top += GAP
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" '
            f'height="{top}" role="img">\n<style>\n{STYLE}\n</style>\n' + "\n".join(body) + "\n</svg>\n")


def _bar(top, name, ours, lengths, text):
    middle, least, most = lengths
    y = top + ROW / 2
    return (f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{name}</text>'
            f'<rect class="{"ours" if ours else "peer"}" x="{LEFT}" y="{top + 3}" width="{middle:.1f}" '
            f'height="{ROW - 6}" rx="2"/>'
            f'<line class="whisker" x1="{LEFT + least:.1f}" x2="{LEFT + most:.1f}" y1="{y}" y2="{y}"/>'
            f'<text x="{LEFT + most + 8:.1f}" y="{y + 4}">{text}</text>')
