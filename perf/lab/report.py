"""report.md, results.json, the plots, and a table on the console."""
import json
from statistics import median

from . import figures, goals, peers, plots
from .figures import show
from .goals import table
from .scenarios import SCENARIOS, Place, Tool


def write(out, facts, present, records):
    """Writes everything into the folder `out`."""
    scenarios = measured(records)
    results = {"facts": facts, "summary": _summary_as_data(present, scenarios, records), "records": records}
    (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (out / "goals.md").write_text(goals.markdown(present, records) + "\n", encoding="utf-8")
    drawn = plots.write(out, present, scenarios, records)
    (out / "report.md").write_text(_markdown(facts, present, scenarios, records, drawn), encoding="utf-8")


def read(out):
    """(facts, peers, records) of a report written before."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    present = [peers.Peer(name, peer["version"], None, ours=peer["ours"], floor=peer["floor"])
               for name, peer in results["facts"]["peers"].items()]
    return results["facts"], present, results["records"]


def measured(records):
    """The scenarios that there are records of."""
    names = {row["scenario"] for row in records}
    return [scenario for scenario in SCENARIOS if scenario.name in names]


def console(present, scenarios, records):
    """The headline figures, with each peer's ratio to the best peer that is not ours."""
    lines = [""]
    for scenario in scenarios:
        metric = scenario.metrics[0]
        best = figures.best_peer(present, scenario, metric, records)
        lines.append(f"{scenario.title} [{metric.unit}]")
        for peer in present:
            spread = figures.figures(records, scenario, peer, metric)
            if not spread and (peer.floor or not figures.was_measured(records, scenario, peer)):
                continue
            ratio = f"{spread[0] / best[1]:5.2f} x best peer" if spread and best and best[1] else ""
            ratio += "  (no calm round)" if figures.is_disturbed(records, scenario, peer) else ""
            lines.append(f"  {peer.name:19} {show(spread, metric):>28}  {ratio}")
    return "\n".join(lines)


def tables(facts, present, records):
    """What perf/RESULTS.md holds of a run, ready to paste: the goals, the curve, the ratios of everything."""
    scenarios = measured(records)
    parts = [f"{facts['when']}, Linux {facts['kernel']}, {facts['cpu']}, {facts['cores']} cores; up to "
             f"{facts['rounds']} interleaved rounds, windows of {facts['window_s']:.1f} s.", "",
             goals.markdown(present, records)]
    curve = _curve_table(present, scenarios, records)
    if curve:
        parts += ["", "CPU µs of an exchange by message size, ×16 (bold is best):", "", curve]
    parts += ["", "Headline figures over the best peer that is not ringweir:", "",
              _ratio_table(present, [row for row in scenarios if row.family not in ("curve", "shadowsocks")], records)]
    tunnels = [row for row in scenarios if row.family == "shadowsocks"]
    if tunnels:
        parts += ["", "Shadowsocks, CPU of one end: the figures, and over the best peer that is not ringweir:", "",
                  _medians_table(present, tunnels, records)]
    return "\n".join(parts)


def _markdown(facts, present, scenarios, records, drawn):
    parts = ["# ringweir beside other forwarders", "", _conditions(facts, present, records), ""]
    for name, caption in drawn:
        parts += [f"![{caption}]({name})", ""]
    parts += ["## Goals", "", goals.markdown(present, records), "", "## Ratio to the best peer", "",
              "Headline figure of each scenario over that of the best peer that is not ringweir. "
              "Below 1 is better, except for sessions alive.", "", _ratio_table(present, scenarios, records)]
    curve = _curve_table(present, scenarios, records)
    if curve:
        parts += ["", "## CPU µs of an exchange by message size, ×16", "", curve]
    parts += ["", "## Figures", "", "Median over the rounds, least and most in brackets. Bold is best.", ""]
    for scenario in scenarios:
        parts += [f"### {scenario.name}: {scenario.title}", "", f"`{_command(scenario)}`", "",
                  _figure_table(present, scenario, records), ""]
    remarks = _remarks(records)
    if remarks:
        parts += ["## Remarks", "", remarks, ""]
    return "\n".join(parts)


def _command(scenario):
    args = " ".join(scenario.args)
    return f"ringweir-load run {args}" if scenario.tool is Tool.LOAD else f"{scenario.tool.value} {args}".rstrip()


def _conditions(facts, present, records):
    counted = [row for row in records if "values" in row]
    disturbed = sum(1 for row in counted if row["disturbed"])
    rows = [
        f"{facts['when']}, Linux {facts['kernel']}, {facts['cpu']}, {facts['cores']} cores.",
        f"Forwarder alone on core {facts['forwarder_core']}, load and backend on core {facts['load_core']}; one "
        f"worker each, where the scenario does not say otherwise; {facts['forwarder_descriptors']:,} descriptors.",
        f"Interleaved rounds: {facts['rounds']}; windows of {facts['window_s']:.2f} s after "
        f"{facts['warmup_s']:.2f} s of warm-up; {facts['took_s']:.0f} s in all; {disturbed} of {len(counted)} "
        f"measurements were disturbed and are left out; where no round was calm, the calmest stands alone, "
        "marked with a tilde.",
        "Peers: " + "; ".join(f"{peer.name} ({peer.version})" for peer in present) + ".",
        "Settings: " + ", ".join(f"{name} = {value}" for name, value in facts["sysctl"].items()) + ".",
    ]
    rows += [f"Left out: {reason}." for reason in facts["absent"]]
    if facts["interrupted"]:
        rows.append("**The run was interrupted: rounds are missing.**")
    return "\n".join(f"- {row}" for row in rows)


def _ratio_table(present, scenarios, records):
    peers_shown = [peer for peer in present if not peer.floor
                   and any(figures.was_measured(records, scenario, peer) for scenario in scenarios)]
    rows = []
    for scenario in scenarios:
        metric, row = scenario.metrics[0], [scenario.name]
        best = figures.best_peer(present, scenario, metric, records)
        for peer in peers_shown:
            spread = figures.figures(records, scenario, peer, metric)
            mark = "~" if figures.is_disturbed(records, scenario, peer) else ""
            row.append(f"{mark}{spread[0] / best[1]:.2f}" if best and best[1] and spread else "–")
        rows.append(row)
    return table(["scenario"] + [peer.name for peer in peers_shown], rows)


def _medians_table(present, scenarios, records):
    """Medians; of ours with the ratio to the best rival as well."""
    shown = [peer for peer in present if any(figures.was_measured(records, scenario, peer) for scenario in scenarios)]
    rows = []
    for scenario in scenarios:
        metric, row = scenario.metrics[0], [scenario.title, scenario.metrics[0].unit]
        best = figures.best_peer(present, scenario, metric, records)
        for peer in shown:
            spread = figures.figures(records, scenario, peer, metric)
            mark = "~" if figures.is_disturbed(records, scenario, peer) else ""
            text = f"{mark}{spread[0]:,.{metric.digits}f}" if spread else "–"
            ratios = figures.ratios_by_round(records, scenario, peer, best[0], metric) if best and peer.ours else []
            ratio = median(ratios) if ratios else spread[0] / best[1] if best and spread else 0
            row.append(f"{text} ({ratio:.2f})" if peer.ours and spread and best else text)
        rows.append(row)
    return table(["end, method: work", "figure"] + [peer.name for peer in shown], rows)


def _curve_table(present, scenarios, records):
    rows = []
    for scenario in (row for row in scenarios if row.family == "curve"):
        metric = scenario.metrics[0]
        spreads = [figures.figures(records, scenario, peer, metric) for peer in present if not peer.floor]
        best = min((spread[0] for spread in spreads if spread), default=None)
        marks = ["~" if figures.is_disturbed(records, scenario, peer) else "" for peer in present if not peer.floor]
        texts = [f"{mark}{spread[0]:,.1f}" if spread else "–" for mark, spread in zip(marks, spreads)]
        texts = [f"**{text}**" if spread and spread[0] == best else text for text, spread in zip(texts, spreads)]
        rows.append([scenario.name.removeprefix("curve-"), *texts])
    return table(["size"] + [peer.name for peer in present if not peer.floor], rows) if rows else ""


def _figure_table(present, scenario, records):
    best = {}
    for metric in scenario.metrics:
        medians = [spread[0] for peer in present if not peer.floor
                   and (spread := figures.figures(records, scenario, peer, metric))]
        if medians:
            best[metric.key] = min(medians) if metric.lower_is_better else max(medians)
    rows = []
    for peer in present:
        row = [peer.name]
        mark = "~" if figures.is_disturbed(records, scenario, peer) else ""
        for metric in scenario.metrics:
            spread = figures.figures(records, scenario, peer, metric)
            text = mark + show(spread, metric)
            row.append(f"**{text}**" if spread and not peer.floor and spread[0] == best[metric.key] else text)
        if any(cell != "–" for cell in row[1:]) or figures.was_measured(records, scenario, peer):
            rows.append(row)
    told = "" if scenario.place is Place.ALONE else f"\n\nForwarder: {scenario.place.value}."
    return table(["peer"] + [metric.unit for metric in scenario.metrics], rows) + told


def _remarks(records):
    lines = []
    for row in records:
        remarks = [f"failed: {row['error']}"] if "error" in row else row["disturbed"] + row["notes"]
        lines += [f"- round {row['round']}, {row['scenario']}, {row['peer']}: {remark}" for remark in remarks]
    return "\n".join(lines)


def _summary_as_data(present, scenarios, records):
    summary = {}
    for scenario in scenarios:
        for peer in present:
            for metric in scenario.metrics:
                spread = figures.figures(records, scenario, peer, metric)
                if spread:
                    cell = summary.setdefault(scenario.name, {}).setdefault(peer.name, {})
                    cell[metric.key] = dict(zip(("median", "min", "max"), spread))
    return summary
