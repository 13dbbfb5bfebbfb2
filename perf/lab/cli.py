"""The command line: builds, rounds, progress, results."""
import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import measure, peers, procs, report
from .scenarios import SCENARIOS

PERF = Path(__file__).resolve().parent.parent
CHECKOUT = PERF.parent

# What a measurement costs beside its window: two processes started and ended, a generator, the idle scenario's share.
OVERHEAD_S = 0.30
SHORT_BUDGET_S = 95.0
SHORT_ROUNDS, FULL_ROUNDS = 3, 5
SHORTEST_WINDOW_S, LONGEST_SHORT_WINDOW_S, FULL_WINDOW_S = 0.4, 1.5, 2.0
# A disturbed measurement is made again, but a busy machine must not make the run endless.
REPEATS_SHARE_SHORT, REPEATS_SHARE_FULL = 0.05, 0.25
# Nor must waiting for it to become calm.
PATIENCE_SHORT_S, PATIENCE_FULL_S = 0.0, 180.0


def main():
    """Returns the exit status: 0 when every measurement worked."""
    signal.signal(signal.SIGTERM, _terminated)
    options = _parse()
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("\nended on request; what was started has been ended", file=sys.stderr)
        return 130
    except procs.LabError as error:
        print(f"perf/run: {error}", file=sys.stderr)
        return 1


def _terminated(_number, _frame):
    raise KeyboardInterrupt


def _parse():
    parser = argparse.ArgumentParser(prog="perf/run", description="Measure ringweir beside other forwarders.")
    parser.add_argument("--short", action="store_true", help="under two minutes: fewer scenarios, short windows")
    parser.add_argument("--ringweir", type=Path, metavar="PATH", help="use this binary and do not build one")
    parser.add_argument("--no-build", action="store_true", help="use the binaries that are there")
    parser.add_argument("--peers", metavar="NAMES", help="only these, separated by commas")
    parser.add_argument("--scenarios", metavar="NAMES", help="only these, separated by commas; also in --short")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each peer meets each scenario")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a measured window")
    parser.add_argument("--patience", type=float, metavar="S",
                        help="how long in all to wait for strangers to leave the two cores alone")
    parser.add_argument("--load-core", type=int, metavar="CORE", help="for load and backend (default: the first)")
    parser.add_argument("--forwarder-core", type=int, metavar="CORE", help="for the forwarder (default: the last)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: perf/out/<timestamp>")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    return parser.parse_args()


def _run(options):
    if options.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name:12}  {scenario.title}{'' if scenario.in_short else '  (not in --short)'}")
        return 0
    load_core, forwarder_core = _cores(options)
    procs.raise_descriptor_limit()
    load, ringweir = _binaries(options)
    present, absent = peers.find(ringweir)
    for reason in absent:
        print(f"skipped: {reason}")
    if options.short and not options.peers:
        present = [peer for peer in present if peer.in_short]
    present = _chosen(present, options.peers, "peer")
    scenarios = [row for row in SCENARIOS if row.in_short or not options.short] \
        if not options.scenarios else _chosen(list(SCENARIOS), options.scenarios, "scenario")
    if not present:
        raise procs.LabError("no peer to measure")
    rounds = options.rounds or (SHORT_ROUNDS if options.short else FULL_ROUNDS)
    plan = _plan(rounds, scenarios, present)
    seconds = options.seconds or (_short_window(len(plan)) if options.short else FULL_WINDOW_S)
    out = options.out or PERF / "out" / time.strftime("%Y%m%d-%H%M%S")
    logs = out / "raw"
    logs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="ringweir-perf-"))
    rig = measure.Rig(load, load_core, forwarder_core, folder, logs, seconds, min(0.3, seconds / 3))
    _announce(plan, present, rig)
    began = time.monotonic()
    records, broken_off = [], None
    try:
        folder.chmod(0o755)     # nginx' worker gives up root
        _measure_all(rig, plan, records, options)
    except BaseException as error:  # whatever it was, the figures until then are not lost
        broken_off = error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if records:
        facts = _facts(rig, present, absent, rounds, time.monotonic() - began, broken_off is not None)
        report.write(out, facts, present, scenarios, records)
        print(report.console(present, scenarios, records))
        print(f"report: {_shown(out / 'report.md')}")
    if broken_off is not None:
        raise broken_off
    return 1 if any("error" in record for record in records) else 0


def _cores(options):
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise procs.LabError("two cores are needed: one for the load, one for the forwarder alone")
    load = usable[0] if options.load_core is None else options.load_core
    forwarder = usable[-1] if options.forwarder_core is None else options.forwarder_core
    if load == forwarder or not {load, forwarder} <= set(usable):
        raise procs.LabError(f"cores {load} and {forwarder} are not two of {usable}")
    return load, forwarder


def _chosen(rows, names, what):
    if not names:
        return rows
    wanted = names.split(",")
    unknown = set(wanted) - {row.name for row in rows}
    if unknown:
        raise procs.LabError(f"no such {what}: {', '.join(sorted(unknown))}; there are "
                             f"{', '.join(row.name for row in rows)}")
    return [row for row in rows if row.name in wanted]


def _binaries(options):
    """Cargo decides what needs building. A daemon that does not build is left out; a generator that does not is fatal."""
    target = _target_folder()
    load, ringweir = target / "ringweir-load", options.ringweir or target / "ringweir"
    if not options.no_build:
        # Two calls, so that the features the generator asks of shared crates do not reach the daemon.
        if not _cargo("ringweir-perf"):
            raise procs.LabError("ringweir-load does not build")
        if options.ringweir is None and not _cargo("ringweir", "--bin", "ringweir"):
            print("skipped: ringweir does not build; its engines are left out")
            ringweir = None
    if not load.exists():
        raise procs.LabError(f"{_shown(load)} does not exist: run without --no-build")
    return load, ringweir


def _target_folder():
    done = subprocess.run(["cargo", "metadata", "--no-deps", "--format-version", "1", "--offline"],
                          cwd=CHECKOUT, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise procs.LabError("cargo metadata failed")
    return Path(json.loads(done.stdout)["target_directory"]) / "release"


def _cargo(package, *more):
    argv = ["cargo", "build", "--release", "--quiet", "-p", package, *more]
    print("$", " ".join(argv), flush=True)
    return subprocess.run(argv, cwd=CHECKOUT, check=False).returncode == 0


def _plan(rounds, scenarios, present):
    """Round by round, every scenario in turn, its peers rotated by one each round and scenario."""
    plan = []
    for number in range(rounds):
        for position, scenario in enumerate(scenarios):
            if number < scenario.rounds_at_most:
                shift = (number + position) % len(present)
                plan += [(number + 1, scenario, peer) for peer in present[shift:] + present[:shift]]
    return plan


def _short_window(measurements):
    # The warm-up is a third of the window.
    window = (SHORT_BUDGET_S / measurements - OVERHEAD_S) / (4 / 3)
    return max(SHORTEST_WINDOW_S, min(LONGEST_SHORT_WINDOW_S, window))


def _announce(plan, present, rig):
    total = sum(rig.seconds + rig.warmup + OVERHEAD_S for _ in plan)
    print(f"{len(plan)} measurements of {rig.seconds:.2f} s, about {total / 60:.1f} min; forwarder alone on core "
          f"{rig.forwarder_core}, load and backend on core {rig.load_core}")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is not idle (load {load:.1f}): expect disturbed figures")
    for peer in present:
        print(f"  {peer.name:15} {peer.version}")


def _measure_all(rig, plan, records, options):
    repeats_left = int(len(plan) * (REPEATS_SHARE_SHORT if options.short else REPEATS_SHARE_FULL))
    patience_s = options.patience
    if patience_s is None:
        patience_s = PATIENCE_SHORT_S if options.short else PATIENCE_FULL_S
    broken = set()
    with procs.Fleet() as fleet:
        for done, (number, scenario, peer) in enumerate(plan, 1):
            record = {"round": number, "scenario": scenario.name, "peer": peer.name}
            # One failure may be chance, two are the rule: do not spend the run on waiting for the third.
            if (peer.name, scenario.name, 2) in broken:
                records.append(record | {"error": "failed twice before"})
                continue
            patience_s -= measure.wait_until_calm(rig, patience_s)
            try:
                result = measure.measure(rig, fleet, peer, scenario, number)
                if result["disturbed"] and repeats_left > 0:
                    repeats_left -= 1
                    patience_s -= measure.wait_until_calm(rig, patience_s)
                    again = measure.measure(rig, fleet, peer, scenario, number)
                    result = min(result, again, key=lambda one: one["disturbance"])
                    result["notes"].append("the calmer of two")
                record |= result
            except procs.LabError as error:
                record["error"] = str(error)
                broken.add((peer.name, scenario.name, 2 if (peer.name, scenario.name, 1) in broken else 1))
            records.append(record)  # whole or not at all: an interrupted one has no figures
            print(_progress(done, len(plan), number, scenario, peer, record), flush=True)


def _progress(done, total, number, scenario, peer, record):
    start = f"[{done:3}/{total}] round {number} {scenario.name:11} {peer.name:15}"
    if "error" in record:
        return f"{start} FAILED: {record['error']}"
    figures = [f"{record['values'][metric.key]:,.{metric.digits}f} {metric.unit}"
               for metric in scenario.metrics[:2]]
    remarks = record["disturbed"] + record["notes"]
    return f"{start} {', '.join(figures)}" + (f"  ({'; '.join(remarks)})" if remarks else "")


def _facts(rig, present, absent, rounds, took_s, interrupted):
    return {
        "when": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_core": rig.load_core,
        "forwarder_core": rig.forwarder_core,
        "rounds": rounds,
        "window_s": rig.seconds,
        "warmup_s": rig.warmup,
        "took_s": took_s,
        "interrupted": interrupted,
        "forwarder_descriptors": procs.forwarder_descriptors(),
        "peers": {peer.name: peer.version for peer in present},
        "absent": absent,
        "sysctl": {name: _sysctl(name) for name in (
            "net.ipv4.ip_local_port_range", "net.ipv4.tcp_tw_reuse", "net.core.somaxconn",
            "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem", "fs.pipe-user-pages-soft", "kernel.io_uring_disabled")},
    }


def _cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")


def _sysctl(name):
    # Dots part folders; only the last name of these holds none.
    try:
        return " ".join(Path("/proc/sys", *name.split(".")).read_text(encoding="ascii").split())
    except OSError:
        return "absent"


def _shown(path):
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
