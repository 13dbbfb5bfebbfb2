"""What the plots show: bars of the headline figures, the message-size curve, latency by percentile."""
from xml.sax.saxutils import escape

from . import bars, figures, hdr, lines
from .lines import Axis, Panel, Series
from .scenarios import Place

# Okabe and Ito's colours, which the colour-blind tell apart; a peer keeps its own in every plot. Ours are thick as well.
COLOURS = {
    "nginx": "#009e73", "haproxy": "#b5a642", "haproxy-auto": "#8a93a0", "haproxy-splice": "#e69f00", "realm": "#d55e00",
    "ss-libev": "#009e73", "ss-rust": "#d55e00",
    "ringweir-uring": "#0072b2", "ringweir-uring-copy": "#56b4e9", "ringweir-tokio": "#cc79a7", "no-forwarder": "#8a93a0",
}
OTHERS = ("#7a5195", "#2f4b7c", "#665191", "#a05195", "#003f5c")

QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)
PERCENTILE_TICKS = ((0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"))
RATIO_TICKS = tuple((step / 4, f"{step / 4:g}") for step in range(13))
WORST_RATIO_SHOWN = 3.0


def write(out, present, scenarios, records):
    """Draws what there are figures for; returns [(file, caption)]."""
    drawn = []
    plain = [row for row in scenarios if row.family != "curve"]
    groups = _bar_groups(present, plain, records)
    if groups:
        drawn.append(("bars.svg", "headline figures", bars.draw(groups)))
    panels = _curve(present, [row for row in scenarios if row.family == "curve"], records)
    if panels:
        drawn.append(("curve.svg", "CPU by message size", lines.draw(panels)))
    # Open loops first: in closed ones latency is mostly the queue of the other connections.
    rows = sorted((row for row in plain if row.place is Place.ALONE), key=lambda row: not row.is_open_loop)
    panels = [panel for row in rows if (panel := _latency(out / "raw", present, row, records))]
    if panels:
        drawn.append(("latency.svg", "latency by percentile", lines.draw(panels)))
    for name, _, text in drawn:
        (out / name).write_text(text, encoding="utf-8")
    return [(name, caption) for name, caption, _ in drawn]


def _bar_groups(present, scenarios, records):
    groups = []
    for scenario in scenarios:
        metric = scenario.metrics[0]
        rows = [(escape(peer.name), peer.ours, spread, escape(figures.show(spread, metric)))
                for peer in present if (spread := figures.figures(records, scenario, peer, metric))]
        if rows:
            groups.append((escape(f"{scenario.title}, {metric.unit}"), rows))
    return groups


def _curve(present, scenarios, records):
    """CPU per message size: beside the best rival of each size, and as it is."""
    ratios, absolute = [], []
    for peer, colour in zip(present, _colours(present)):
        ratio, plain = [], []
        for scenario in scenarios:
            metric = scenario.metrics[0]
            spread, best = figures.figures(records, scenario, peer, metric), \
                figures.best_peer(present, scenario, metric, records)
            if spread:
                plain.append((scenario.size_bytes, spread[0]))
                if best:
                    ratio.append((scenario.size_bytes, spread[0] / best[1]))
        style = "ours" if peer.ours else ""
        absolute += [Series(peer.name, colour, plain, style)] if plain else []
        ratios += [Series(peer.name, colour, ratio, style)] if ratio else []
    sizes = sorted({x for series in absolute for x, _ in series.points})
    if len(sizes) < 2:
        return []
    x = Axis(sizes[0], sizes[-1], tuple((size, _size(size)) for size in sizes))
    y = lines.logarithmic([value for series in absolute for _, value in series.points], lambda value: f"{value:g}")
    panels = [Panel("CPU µs of an exchange, by message size, ×16", x, y, absolute)]
    if ratios:
        most = min(WORST_RATIO_SHOWN, max(value for series in ratios for _, value in series.points) + 0.1)
        ticks = tuple(tick for tick in RATIO_TICKS if tick[0] <= most)
        panels.insert(0, Panel("CPU of an exchange over that of the best rival at each message size (lower is better)",
                               x, Axis(0.0, most, ticks, logarithmic=False), ratios, marks=(1.0,)))
    return panels


def _latency(raw, present, scenario, records):
    """Every calm round of a peer in one histogram: percentiles of windows cannot be averaged."""
    series = []
    for peer, colour in zip(present, _colours(present)):
        rows = [row for row in records if row["scenario"] == scenario.name and row["peer"] == peer.name
                and row.get("hlog") and (raw / row["hlog"]).exists()]
        rows = [row for row in rows if not row["disturbed"]] or sorted(rows, key=lambda row: row["disturbance"])[:1]
        counts = {}
        for row in rows:
            for value, count in hdr.read(raw / row["hlog"]).items():
                counts[value] = counts.get(value, 0) + count
        points = [(1 / (1 - quantile), value / 1e3) for quantile, value in hdr.at_quantiles(counts, QUANTILES)]
        if points:
            style = "ours" if peer.ours else "floor" if peer.floor else ""
            series.append(Series(peer.name, colour, points, style))
    if not series:
        return None
    last = max(x for one in series for x, _ in one.points)
    ticks = tuple((1 / (1 - quantile), label) for quantile, label in PERCENTILE_TICKS)
    x = Axis(2.0, max(last, 100.0), tuple(tick for tick in ticks if tick[0] <= last * 1.001))
    y = lines.logarithmic([value for one in series for _, value in one.points], _microseconds)
    return Panel(f"{scenario.title}: latency by percentile, calm rounds together", x, y, series)


def _colours(present):
    strangers = [peer.name for peer in present if peer.name not in COLOURS]
    return [COLOURS.get(peer.name) or OTHERS[strangers.index(peer.name) % len(OTHERS)] for peer in present]


def _size(size_bytes):
    return f"{size_bytes >> 10}K" if size_bytes < 1 << 20 else f"{size_bytes >> 20}M"


def _microseconds(value):
    return f"{value:g} µs" if value < 1e3 else f"{value / 1e3:g} ms" if value < 1e6 else f"{value / 1e6:g} s"
