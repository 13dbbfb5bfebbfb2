"""The project's goals, as data, and the table that says which are reached."""
from dataclasses import dataclass
from statistics import median

from . import figures
from .scenarios import ALIVE, DESCRIPTORS, MEMORY, SCENARIOS

BY_NAME = {row.name: row for row in SCENARIOS}
# Two workers do the work of two at most; a little more is how the rounds fell.
BEYOND_TWO = 2.2
URING, TOKIO = "ringweir-uring", "ringweir-tokio"


@dataclass(frozen=True)
class Ratio:
    """The headline figure of ours over that of the best rival, or of the one named."""
    scenario: str
    at_most: float
    rival: str = ""


@dataclass(frozen=True)
class Absolute:
    """A figure of ours that needs no rival."""
    scenario: str
    metric: object
    limit: float


@dataclass(frozen=True)
class Scaling:
    """Twice the CPU per unit of one worker, over that of two: the speedup where cores are free."""
    name: str
    at_least: float


URING_GOALS = (
    Ratio("echo-64", 0.80), Ratio("echo-16k", 0.85), Ratio("echo-64k", 0.80), Ratio("crr", 0.85),
    Ratio("up", 0.75), Ratio("down", 0.75),
    Absolute("idle", MEMORY, 1024), Absolute("idle", DESCRIPTORS, 2),
    Absolute("capacity", ALIVE, 9_900), Absolute("capacity-two", ALIVE, 9_900),
    Ratio("beside-bulk", 1.00), Scaling("crr", 1.8), Scaling("up", 1.8),
)
TOKIO_GOALS = (
    Ratio("echo-64", 1.15, "nginx"), Ratio("echo-16k", 1.15, "nginx"), Ratio("crr", 1.15, "nginx"),
    Ratio("up", 1.15, "realm"), Ratio("down", 1.15, "realm"),
    Absolute("capacity", ALIVE, 9_900), Absolute("capacity-two", ALIVE, 9_900),
    Scaling("crr", 1.8), Scaling("up", 1.8),
)

# As either end of a tunnel, by every method, for both engines.
TUNNEL_GOALS = tuple(Ratio(row.name, 0.80) for row in SCENARIOS if row.family == "shadowsocks")

HEADER = ("work", "figure", "beside", "its figure", "ours", "ratio (least–most, rounds)", "goal", "goal reached?")
NOTE = (
    "A ratio is the median of those round by round; in brackets the least, the most, and how many rounds were calm for "
    "both. Where fewer than two were: the ratio of the medians. \"barely\" and \"nearly\": the goal lies within the range. "
    "\"~\": no round was calm. The speedup of two workers is what the CPU per unit of "
    "work allows where cores are free: twice the mean of one worker alone and one beside the load, over two workers."
)


def markdown(present, records):
    """Both engines' tables, ready to paste."""
    parts, measured = [], {row["scenario"] for row in records}
    for name, goals in ((URING, URING_GOALS), (TOKIO, TOKIO_GOALS)):
        ours = next((peer for peer in present if peer.name == name), None)
        if ours is not None:
            if any(not BY_NAME[scenario].role for scenario in measured):
                parts += [f"**{name}**", "", table(HEADER, [_row(goal, ours, present, records) for goal in goals]), ""]
            tunnels = [_row(goal, ours, present, records) for goal in TUNNEL_GOALS if goal.scenario in measured]
            if tunnels:
                parts += [f"**{name}, Shadowsocks**", "", table(HEADER, tunnels), ""]
    return "\n".join(parts + [NOTE]) if parts else ""


def table(header, rows):
    """A Markdown table whose first column is text and whose others are figures."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def speedup(records, ours, name):
    """(speedups of the rounds that were calm in all three places, median CPU per unit by place), or None."""
    scenarios = [BY_NAME[f"scale-{name}-{place}"] for place in ("alone", "beside", "two")]
    spreads = [figures.figures(records, scenario, ours, scenario.metrics[0]) for scenario in scenarios]
    if not all(spreads):
        return None
    by_place = [figures.by_round(records, scenario, ours, scenario.metrics[0]) for scenario in scenarios]
    numbers = sorted(set.intersection(*(set(rounds) for rounds in by_place)))
    speedups = [(by_place[0][number] + by_place[1][number]) / by_place[2][number] for number in numbers]
    medians = [spread[0] for spread in spreads]
    return speedups or [(medians[0] + medians[1]) / medians[2]], medians


def _row(goal, ours, present, records):
    if isinstance(goal, Ratio):
        return _ratio_row(goal, ours, present, records)
    if isinstance(goal, Absolute):
        return _absolute_row(goal, ours, present, records)
    return _scaling_row(goal, ours, records)


def _ratio_row(goal, ours, present, records):
    scenario = BY_NAME[goal.scenario]
    metric = scenario.metrics[0]
    if goal.rival:
        rival = next((peer for peer in present if peer.name == goal.rival), None)
    else:
        best = figures.best_peer(present, scenario, metric, records)
        rival = best[0] if best else None
    ratio = figures.ratio_of_medians(records, scenario, ours, rival, metric) if rival else None
    limit = f"≤ {goal.at_most:.2f} ×"
    if ratio is None:
        return [scenario.title, metric.unit, goal.rival or "–", "–", "–", "–", limit, "not measured"]
    rounds = figures.ratios_by_round(records, scenario, ours, rival, metric)
    # The calm rounds of two peers need not be the same; only in one round did both have the same machine.
    ratio = median(rounds) if len(rounds) > 1 else ratio
    span = f" ({min(rounds):.2f}–{max(rounds):.2f}, {len(rounds)})" if len(rounds) > 1 else ""
    reached = ratio <= goal.at_most
    told = "yes" if reached else "no"
    if len(rounds) > 1 and min(rounds) <= goal.at_most < max(rounds):
        told += ", barely" if reached else ", nearly"
    its, mine = (figures.figures(records, scenario, peer, metric) for peer in (rival, ours))
    mark = "~" if any(figures.is_disturbed(records, scenario, peer) for peer in (rival, ours)) else ""
    return [scenario.title, metric.unit, rival.name, f"{its[0]:,.{metric.digits}f}", f"{mine[0]:,.{metric.digits}f}",
            f"{mark}{ratio:.2f}{span}", limit, told]


def _absolute_row(goal, ours, present, records):
    scenario, metric = BY_NAME[goal.scenario], goal.metric
    best = figures.best_peer(present, scenario, metric, records)
    beside = [best[0].name, f"{best[1]:,.{metric.digits}f}"] if best else ["–", "–"]
    limit = f"{'≤' if metric.lower_is_better else '≥'} {goal.limit:,.0f}"
    mine = figures.figures(records, scenario, ours, metric)
    if mine is None:
        return [scenario.title, metric.unit, *beside, "–", "–", limit, "not measured"]
    # A session counts two descriptors even where a helper or two come and go beside it.
    held = round(mine[0], 2)
    reached = held <= goal.limit if metric.lower_is_better else held >= goal.limit
    return [scenario.title, metric.unit, *beside, f"{mine[0]:,.{metric.digits}f}", "–", limit,
            "yes" if reached else "no"]


def _scaling_row(goal, ours, records):
    scenario = BY_NAME[f"scale-{goal.name}-two"]
    metric = scenario.metrics[0]
    title = f"{BY_NAME[f'scale-{goal.name}-alone'].title.split(':')[0]}, one to two workers"
    found = speedup(records, ours, goal.name)
    limit = f"≥ {goal.at_least:.1f} ×"
    if found is None:
        return [title, metric.unit, "one worker", "–", "–", "–", limit, "not measured"]
    speedups, (alone, beside, two) = found
    value = median(speedups)
    span = f" ({min(speedups):.2f}–{max(speedups):.2f}, {len(speedups)})" if len(speedups) > 1 else ""
    told = "yes" if value >= goal.at_least else "no"
    if value > BEYOND_TWO:
        told = "not told: beyond 2 is noise"
    elif min(speedups) < goal.at_least <= max(speedups):
        told += ", barely" if value >= goal.at_least else ", nearly"
    one = f"{alone:,.{metric.digits}f} alone, {beside:,.{metric.digits}f} beside the load"
    return [title, metric.unit, "one worker", one, f"{two:,.{metric.digits}f}", f"{value:.2f}{span}", limit, told]
