"""The command line: what to install, build, measure, and write."""
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

from . import install, measure, peers, procs, report, rounds, tools
from .scenarios import FAMILIES, SCENARIOS

PERF = Path(__file__).resolve().parent.parent
CHECKOUT = PERF.parent


def main():
    """Returns the exit status: 0 when every measurement of ours worked."""
    signal.signal(signal.SIGTERM, _terminated)
    options = _parse()
    try:
        if options.list:
            return _list()
        if options.results is not None:
            return _results(options)
        if options.install:
            install.install()
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
    parser.add_argument("--install", action="store_true",
                        help=f"first install what is missing, as root ({' '.join(install.PACKAGES)})")
    parser.add_argument("--short", action="store_true", help="under two minutes: fewer scenarios, short windows")
    parser.add_argument("--ringweir", type=Path, metavar="PATH", help="use this binary and do not build one")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=PATH",
                        help="another ringweir beside it, io_uring engine, as peer NAME; may be repeated")
    parser.add_argument("--splice-at", metavar="BYTES",
                        help="ringweir with these values of engine.splice too, separated by commas, as peers splice-BYTES")
    parser.add_argument("--realm", type=Path, metavar="PATH", help="where realm is, if not in PATH")
    parser.add_argument("--ss-rust", type=Path, metavar="FOLDER",
                        help="where ssserver and sslocal of shadowsocks-rust are, if not in PATH")
    parser.add_argument("--no-build", action="store_true", help="use the binaries that are there")
    parser.add_argument("--peers", metavar="NAMES", help="only these, separated by commas")
    parser.add_argument("--scenarios", metavar="NAMES",
                        help=f"only these or these families ({', '.join(FAMILIES)}), separated by commas; also in --short")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each peer meets each scenario")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a measured window")
    parser.add_argument("--patience", type=float, metavar="S",
                        help="how long in all to wait for strangers to leave the two cores alone")
    parser.add_argument("--load-core", type=int, metavar="CORE", help="for load and backend (default: the first)")
    parser.add_argument("--forwarder-core", type=int, metavar="CORE", help="for the forwarder (default: the last)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: perf/out/<timestamp>")
    parser.add_argument("--add", action="store_true",
                        help="keep what --out holds of other scenarios: a long run in slices, one report")
    parser.add_argument("--results", nargs="?", type=Path, const=Path(), metavar="FOLDER",
                        help="print a run's tables for RESULTS.md and draw its plots again (default: the newest), and end")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    options = parser.parse_args()
    if options.add and options.out is None:
        parser.error("--add needs --out")
    return options


def _list():
    for scenario in SCENARIOS:
        remarks = ", ".join(([scenario.family] if scenario.family else [])
                            + ([] if scenario.in_short else ["not in --short"]))
        print(f"{scenario.name:18}  {scenario.title}{f'  ({remarks})' if remarks else ''}")
    return 0


def _results(options):
    """What perf/RESULTS.md holds, ready to paste; the report and plots are made again from the figures."""
    folder = options.results
    if folder == Path():
        folder = max((PERF / "out").glob("*/results.json"), default=PERF / "results.json",
                     key=lambda path: path.stat().st_mtime).parent
    if not (folder / "results.json").exists():
        raise procs.LabError(f"{_shown(folder / 'results.json')} does not exist: measure first")
    facts, present, records = report.read(folder)
    report.write(folder, facts, present, records)
    print(report.tables(facts, present, records))
    return 0


def _run(options):
    load_core, forwarder_core = _cores(options)
    procs.raise_descriptor_limit()
    load, ringweir = _binaries(options)
    thresholds = options.splice_at.split(",") if options.splice_at else []
    present, absent = peers.find(ringweir, options.realm, _others(options.also), thresholds, options.ss_rust)
    scenarios, unfit = _scenarios(options)
    absent += unfit
    for reason in absent:
        print(f"left out: {reason}")
    if options.short and not options.peers:
        present = [peer for peer in present if peer.in_short or peer.name in _names(options.also)]
    present = [peer for peer in _chosen(present, options.peers) if any(map(peer.can, scenarios))]
    if not present or not scenarios:
        raise procs.LabError("nothing to measure")
    pace = rounds.pace(options, scenarios, present)
    out = options.out or PERF / "out" / time.strftime("%Y%m%d-%H%M%S")
    logs = out / "raw"
    logs.mkdir(parents=True, exist_ok=True)
    earlier = _earlier(out, scenarios) if options.add else None
    folder = Path(tempfile.mkdtemp(prefix="ringweir-perf-"))
    rig = measure.Rig(load, ringweir, load_core, forwarder_core, folder, logs, pace.seconds, min(0.3, pace.seconds / 3))
    plan = rounds.plan(pace.rounds, scenarios, present, options.short)
    rounds.announce(plan, present, rig)
    began = time.monotonic()
    records, broken_off = [], None
    try:
        folder.chmod(0o755)     # nginx' worker gives up root
        rounds.measure_all(rig, plan, records, pace)
    except BaseException as error:  # whatever it was, the figures until then are not lost
        broken_off = error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if records:
        facts = _facts(rig, present, absent, pace.rounds, time.monotonic() - began, broken_off is not None)
        print(report.console(present, report.measured(records), records))
        _write(out, facts, present, records, earlier)
        print(f"report: {_shown(out / 'report.md')}")
    if broken_off is not None:
        raise broken_off
    # A peer that cannot do a scenario is a finding, told in the report; one of ours that cannot is a failure.
    ours = {peer.name for peer in present if not peer.is_rival}
    return 1 if any("error" in record and record["peer"] in ours for record in records) else 0


def _write(out, facts, present, records, earlier):
    """With what was measured before, where the run is one of several slices."""
    if earlier is not None:
        old_facts, old_present, old_records = earlier
        names = {peer.name for peer in present}
        present = [peer for peer in old_present if peer.name not in names] + present
        records = old_records + records
        facts["peers"] = old_facts["peers"] | facts["peers"]
        facts["took_s"] += old_facts["took_s"]
        facts["interrupted"] |= old_facts["interrupted"]
    report.write(out, facts, present, records)


def _earlier(out, scenarios):
    if not (out / "results.json").exists():
        return None
    again = {scenario.name for scenario in scenarios}
    facts, present, records = report.read(out)
    return facts, present, [record for record in records if record["scenario"] not in again]


def _cores(options):
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise procs.LabError("two cores are needed: one for the load, one for the forwarder alone")
    load = usable[0] if options.load_core is None else options.load_core
    forwarder = usable[-1] if options.forwarder_core is None else options.forwarder_core
    if load == forwarder or not {load, forwarder} <= set(usable):
        raise procs.LabError(f"cores {load} and {forwarder} are not two of {usable}")
    return load, forwarder


def _names(also):
    return [text.partition("=")[0] for text in also]


def _others(also):
    for text in also:
        name, _, path = text.partition("=")
        if not name or not path or "/" in name:
            raise procs.LabError(f"--also {text}: NAME=PATH is wanted")
    return [(text.partition("=")[0], Path(text.partition("=")[2])) for text in also]


def _scenarios(options):
    """Those asked for, and a sentence for each tool that is absent."""
    if options.scenarios:
        wanted = set(options.scenarios.split(","))
        unknown = wanted - {row.name for row in SCENARIOS} - set(FAMILIES)
        if unknown:
            raise procs.LabError(f"no such scenario: {', '.join(sorted(unknown))}; perf/run --list names them")
        rows = [row for row in SCENARIOS if row.name in wanted or row.family in wanted]
    else:
        rows = [row for row in SCENARIOS if row.in_short or not options.short]
    reasons = {row.tool: reason for row in rows if (reason := tools.missing(row.tool))}
    return [row for row in rows if row.tool not in reasons], list(reasons.values())


def _chosen(present, names):
    if not names:
        return present
    wanted = names.split(",")
    unknown = set(wanted) - {peer.name for peer in present}
    if unknown:
        raise procs.LabError(f"no such peer: {', '.join(sorted(unknown))}; there are "
                             f"{', '.join(peer.name for peer in present)}")
    return [peer for peer in present if peer.name in wanted]


def _binaries(options):
    """Cargo decides what needs building. A daemon that does not build is left out; a generator that does not is fatal."""
    target = _target_folder()
    load, ringweir = target / "ringweir-load", options.ringweir or target / "ringweir"
    if not options.no_build:
        # Two calls, so that the features the generator asks of shared crates do not reach the daemon.
        if not _cargo("ringweir-perf"):
            raise procs.LabError("ringweir-load does not build")
        if options.ringweir is None and not _cargo("ringweir", "--bin", "ringweir"):
            print("left out: ringweir does not build")
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


def _facts(rig, present, absent, round_count, took_s, interrupted):
    return {
        "when": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_core": rig.load_core,
        "forwarder_core": rig.forwarder_core,
        "rounds": round_count,
        "window_s": rig.seconds,
        "warmup_s": rig.warmup,
        "took_s": took_s,
        "interrupted": interrupted,
        "forwarder_descriptors": procs.forwarder_descriptors(),
        "peers": {peer.name: {"version": peer.version, "ours": peer.ours, "floor": peer.floor} for peer in present},
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
