"""Medians and spread, as report.md, results.json, bars.svg and a table on the console."""
import json
from statistics import median
from xml.sax.saxutils import escape

from . import bars


def write(out, facts, present, scenarios, records):
    """Writes everything into the folder `out`."""
    results = {"facts": facts, "summary": _summary_as_data(present, scenarios, records), "records": records}
    (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (out / "bars.svg").write_text(bars.draw(_bar_groups(present, scenarios, records)), encoding="utf-8")
    (out / "report.md").write_text(_markdown(facts, present, scenarios, records), encoding="utf-8")


def console(present, scenarios, records):
    """The headline figures, with each peer's ratio to the best peer that is not ours."""
    lines = [""]
    for scenario in scenarios:
        metric = scenario.metrics[0]
        best = best_peer(present, scenario, metric, records)
        lines.append(f"{scenario.title} [{metric.unit}]")
        for peer in present:
            spread = figures(records, scenario, peer, metric)
            ratio = f"{spread[0] / best:5.2f} x best peer" if spread and best else ""
            ratio += "  (no calm round)" if is_disturbed(records, scenario, peer) else ""
            lines.append(f"  {peer.name:15} {_show(spread, metric):>28}  {ratio}")
    return "\n".join(lines)


def figures(records, scenario, peer, metric):
    """(median, least, most) over the calm rounds, or None. Where none was calm, the calmest stands alone."""
    rows = [row for row in records if row["scenario"] == scenario.name and row["peer"] == peer.name
            and "values" in row and metric.key in row["values"]]
    calm = [row for row in rows if not row["disturbed"]]
    rows = calm or sorted(rows, key=lambda row: row["disturbance"])[:1]
    values = [row["values"][metric.key] for row in rows]
    return (median(values), min(values), max(values)) if values else None


def is_disturbed(records, scenario, peer):
    """True when no round of this peer and scenario was calm."""
    rows = [row for row in records
            if row["scenario"] == scenario.name and row["peer"] == peer.name and "values" in row]
    return bool(rows) and all(row["disturbed"] for row in rows)


def best_peer(present, scenario, metric, records):
    """The best median among those that are not ours."""
    medians = [spread[0] for peer in present if not peer.ours
               if (spread := figures(records, scenario, peer, metric))]
    if not medians:
        return None
    return min(medians) if metric.lower_is_better else max(medians)


def _show(spread, metric):
    if spread is None:
        return "–"
    middle, least, most = (f"{value:,.{metric.digits}f}" for value in spread)
    return middle if least == most else f"{middle} ({least}–{most})"


def _markdown(facts, present, scenarios, records):
    parts = ["# ringweir beside other forwarders", "", _conditions(facts, records), "",
             "![headline figures](bars.svg)", "", "## Ratio to the best peer", "",
             "Headline figure of each scenario over that of the best peer that is not ringweir. "
             "Below 1 is better, except for sessions alive.", "",
             _ratio_table(present, scenarios, records)]
    goals = _goals(present, scenarios, records)
    if goals:
        parts += ["", "## Goals", "", goals]
    parts += ["", "## Figures", "", "Median over the rounds, least and most in brackets. Bold is best.", ""]
    for scenario in scenarios:
        parts += [f"### {scenario.title}", "", f"`ringweir-load run {' '.join(scenario.args)}`", "",
                  _figure_table(present, scenario, records), ""]
    remarks = _remarks(records)
    if remarks:
        parts += ["## Remarks", "", remarks, ""]
    return "\n".join(parts)


def _conditions(facts, records):
    measured = [row for row in records if "values" in row]
    disturbed = sum(1 for row in measured if row["disturbed"])
    rows = [
        f"{facts['when']}, Linux {facts['kernel']}, {facts['cpu']}, {facts['cores']} cores.",
        f"Forwarder alone on core {facts['forwarder_core']}, load and backend on core {facts['load_core']}; one "
        f"worker each; {facts['forwarder_descriptors']:,} descriptors.",
        f"Interleaved rounds: {facts['rounds']}; windows of {facts['window_s']:.2f} s after "
        f"{facts['warmup_s']:.2f} s of warm-up; {facts['took_s']:.0f} s in all; {disturbed} of {len(measured)} "
        f"measurements were disturbed and are left out; where no round was calm, the calmest stands alone, "
        "marked with a tilde.",
        "Peers: " + "; ".join(f"{name} ({version})" for name, version in facts["peers"].items()) + ".",
        "Settings: " + ", ".join(f"{name} = {value}" for name, value in facts["sysctl"].items()) + ".",
    ]
    rows += [f"Left out: {reason}." for reason in facts["absent"]]
    if facts["interrupted"]:
        rows.append("**The run was interrupted: rounds are missing.**")
    return "\n".join(f"- {row}" for row in rows)


def _table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _ratio_table(present, scenarios, records):
    rows = []
    for peer in present:
        row = [peer.name]
        for scenario in scenarios:
            metric = scenario.metrics[0]
            best, spread = best_peer(present, scenario, metric, records), \
                figures(records, scenario, peer, metric)
            mark = "~" if is_disturbed(records, scenario, peer) else ""
            row.append(f"{mark}{spread[0] / best:.2f}" if best and spread else "–")
        rows.append(row)
    return _table(["peer"] + [scenario.name for scenario in scenarios], rows)


def _goals(present, scenarios, records):
    ours = [peer for peer in present if peer.ours]
    rows = []
    for scenario in (row for row in scenarios if row.goal and ours):
        metric = scenario.metrics[0]
        best = best_peer(present, scenario, metric, records)
        row = [scenario.title, f"≤ {scenario.goal:.2f}"]
        for peer in ours:
            spread = figures(records, scenario, peer, metric)
            if not (best and spread):
                row.append("–")
                continue
            ratio = spread[0] / best
            row.append(f"{ratio:.2f} {'met' if ratio <= scenario.goal else 'missed'}")
        rows.append(row)
    return _table(["scenario", "goal"] + [peer.name for peer in ours], rows) if rows else ""


def _figure_table(present, scenario, records):
    best = {}
    for metric in scenario.metrics:
        medians = [spread[0] for peer in present if (spread := figures(records, scenario, peer, metric))]
        if medians:
            best[metric.key] = min(medians) if metric.lower_is_better else max(medians)
    rows = []
    for peer in present:
        row = [peer.name]
        for metric in scenario.metrics:
            spread = figures(records, scenario, peer, metric)
            text = ("~" if is_disturbed(records, scenario, peer) else "") + _show(spread, metric)
            row.append(f"**{text}**" if spread and spread[0] == best[metric.key] else text)
        rows.append(row)
    return _table(["peer"] + [metric.unit for metric in scenario.metrics], rows)


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
                spread = figures(records, scenario, peer, metric)
                if spread:
                    cell = summary.setdefault(scenario.name, {}).setdefault(peer.name, {})
                    cell[metric.key] = dict(zip(("median", "min", "max"), spread))
    return summary


def _bar_groups(present, scenarios, records):
    groups = []
    for scenario in scenarios:
        metric = scenario.metrics[0]
        rows = [(escape(peer.name), peer.ours, spread, escape(_show(spread, metric)))
                for peer in present if (spread := figures(records, scenario, peer, metric))]
        if rows:
            groups.append((escape(f"{scenario.title}, {metric.unit}"), rows))
    return groups
