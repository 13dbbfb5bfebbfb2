"""Statistics over records: medians with spread, who is best, ratios round by round."""
from statistics import median


def figures(records, scenario, peer, metric):
    """(median, least, most) over the calm rounds, or None. Where none was calm, the calmest stands alone."""
    rows = [row for row in _rows(records, scenario, peer) if metric.key in row["values"]]
    calm = [row for row in rows if not row["disturbed"]]
    rows = calm or sorted(rows, key=lambda row: row["disturbance"])[:1]
    values = [row["values"][metric.key] for row in rows]
    return (median(values), min(values), max(values)) if values else None


def is_disturbed(records, scenario, peer):
    """True when no round of this peer and scenario was calm."""
    rows = _rows(records, scenario, peer)
    return bool(rows) and all(row["disturbed"] for row in rows)


def best_peer(present, scenario, metric, records):
    """The rival with the best median, as (peer, median), or None."""
    medians = [(peer, spread[0]) for peer in present if peer.is_rival
               and (spread := figures(records, scenario, peer, metric))]
    if not medians:
        return None
    return (min if metric.lower_is_better else max)(medians, key=lambda pair: pair[1])


def ratio_of_medians(records, scenario, ours, rival, metric):
    """Ours over theirs, or None."""
    mine, its = figures(records, scenario, ours, metric), figures(records, scenario, rival, metric)
    return mine[0] / its[0] if mine and its and its[0] else None


def ratios_by_round(records, scenario, ours, rival, metric):
    """Ours over theirs in every round in which both were calm: what the machine did to one it did to the other."""
    mine, its = (by_round(records, scenario, peer, metric) for peer in (ours, rival))
    return [mine[number] / its[number] for number in sorted(mine.keys() & its.keys()) if its[number]]


def by_round(records, scenario, peer, metric):
    """{round: figure} of the calm rounds."""
    return {row["round"]: row["values"][metric.key] for row in _rows(records, scenario, peer)
            if metric.key in row["values"] and not row["disturbed"]}


def was_measured(records, scenario, peer):
    """Whether it was tried at all, failures included."""
    return any(row["scenario"] == scenario.name and row["peer"] == peer.name for row in records)


def show(spread, metric):
    """A figure with its range, for people."""
    if spread is None:
        return "–"
    middle, least, most = (f"{value:,.{metric.digits}f}" for value in spread)
    return middle if least == most else f"{middle} ({least}–{most})"


def _rows(records, scenario, peer):
    return [row for row in records
            if row["scenario"] == scenario.name and row["peer"] == peer.name and "values" in row]
