"""Interleaved rounds: what is measured in which order, for how long, with progress."""
import os
import time
from dataclasses import dataclass

from . import measure, procs

# What a measurement costs beside its window and warm-up: processes started and ended, sessions opened.
OVERHEAD_S, OVERHEAD_IDLE_S = 0.30, 1.6
SHORT_BUDGET_S = 95.0
SHORT_ROUNDS, FULL_ROUNDS = 2, 5
SHORTEST_WINDOW_S, LONGEST_SHORT_WINDOW_S, FULL_WINDOW_S = 0.4, 1.5, 2.0
# A disturbed measurement is made again, but a busy machine must not make the run endless.
REPEATS_SHARE_SHORT, REPEATS_SHARE_FULL = 0.05, 0.25
# Nor must waiting for it to become calm.
PATIENCE_SHORT_S, PATIENCE_FULL_S = 0.0, 180.0


@dataclass(frozen=True)
class Pace:
    rounds: int
    seconds: float
    patience_s: float
    repeats_share: float


def pace(options, scenarios, present):
    """How often and how long, from the options or, in a short run, from the time there is."""
    rounds = options.rounds or (SHORT_ROUNDS if options.short else FULL_ROUNDS)
    seconds = options.seconds
    if seconds is None:
        seconds = _short_window(plan(rounds, scenarios, present, True)) if options.short else FULL_WINDOW_S
    patience_s = options.patience
    if patience_s is None:
        patience_s = PATIENCE_SHORT_S if options.short else PATIENCE_FULL_S
    return Pace(rounds, seconds, patience_s, REPEATS_SHARE_SHORT if options.short else REPEATS_SHARE_FULL)


def plan(rounds, scenarios, present, short):
    """[(round, scenario, peer)]: round by round, every scenario in turn, its peers rotated by one each time."""
    steps = []
    for number in range(rounds):
        for position, scenario in enumerate(scenarios):
            at_most = min(scenario.rounds_at_most, scenario.rounds_at_most_short) if short else scenario.rounds_at_most
            if number < at_most:
                row = [peer for peer in present if peer.can(scenario)]
                shift = (number + position) % max(len(row), 1)
                steps += [(number + 1, scenario, peer) for peer in row[shift:] + row[:shift]]
    return steps


def announce(steps, present, rig):
    """What is about to happen, and on what kind of machine."""
    total = sum(_cost_s(scenario, rig.seconds) for _, scenario, _ in steps)
    print(f"{len(steps)} measurements of {rig.seconds:.2f} s, about {total / 60:.1f} min; forwarder alone on core "
          f"{rig.forwarder_core}, load and backend on core {rig.load_core}")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is not idle (load {load:.1f}): expect disturbed figures")
    for peer in present:
        print(f"  {peer.name:19} {peer.version}")


def measure_all(rig, steps, records, pace_of_run):
    """Fills `records`, one for every step, with figures or an error."""
    repeats_left = int(len(steps) * pace_of_run.repeats_share)
    patience_s = pace_of_run.patience_s
    failures = {}
    left_s = sum(_cost_s(scenario, rig.seconds) for _, scenario, _ in steps)
    with procs.Fleet() as fleet:
        for done, (number, scenario, peer) in enumerate(steps, 1):
            record = {"round": number, "scenario": scenario.name, "peer": peer.name}
            left_s -= _cost_s(scenario, rig.seconds)
            # One failure may be chance, two are the rule: do not spend the run on waiting for the third.
            if failures.get((peer.name, scenario.name), 0) >= 2:
                records.append(record | {"error": "failed twice before"})
                continue
            patience_s -= measure.wait_until_calm(rig, patience_s)
            try:
                result = measure.measure(rig, fleet, peer, scenario, str(number))
                if result["disturbed"] and repeats_left > 0:
                    repeats_left -= 1
                    patience_s -= measure.wait_until_calm(rig, patience_s)
                    again = measure.measure(rig, fleet, peer, scenario, f"{number}-again")
                    result = min(result, again, key=lambda one: one["disturbance"])
                    result["notes"].append("the calmer of two")
                record |= result
            except procs.LabError as error:
                record["error"] = str(error)
                failures[peer.name, scenario.name] = failures.get((peer.name, scenario.name), 0) + 1
            records.append(record)  # whole or not at all: an interrupted one has no figures
            print(_progress(done, len(steps), left_s, number, scenario, peer, record), flush=True)


def _short_window(steps):
    """What is left of the budget, shared by the windows that can be chosen; the warm-up is a third of each."""
    chosen = [step for step in steps if _is_timed(step[1])]
    fixed = sum(_cost_s(scenario, 0.0) for _, scenario, _ in steps)
    window = (SHORT_BUDGET_S - fixed) / (4 / 3) / max(len(chosen), 1)
    return max(SHORTEST_WINDOW_S, min(LONGEST_SHORT_WINDOW_S, window))


def _is_timed(scenario):
    """Idle sessions take as long as they take; witnesses count whole seconds."""
    return not scenario.sessions and scenario.seconds(0.1) == 0.1


def _cost_s(scenario, window):
    if scenario.sessions:
        return OVERHEAD_IDLE_S
    if not _is_timed(scenario):
        return OVERHEAD_S + scenario.seconds(window)
    return OVERHEAD_S + window + min(0.3, window / 3)


def _progress(done, total, left_s, number, scenario, peer, record):
    left = f"{left_s / 60:.1f} min left" if left_s >= 6 else "at the end"
    start = f"[{done:3}/{total}, {left}] round {number} {scenario.name:14} {peer.name:19}"
    if "error" in record:
        return f"{start} FAILED: {record['error']}"
    told = [f"{record['values'][metric.key]:,.{metric.digits}f} {metric.unit}"
            for metric in scenario.metrics if metric.key in record["values"]]
    remarks = record["disturbed"] + record["notes"]
    return f"{start} {', '.join(told[:2])}" + (f"  ({'; '.join(remarks)})" if remarks else "")
