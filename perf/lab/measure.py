"""One measurement: a fresh backend, a fresh forwarder, one load, figures."""
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from . import procs
from .procs import LabError

GIB = float(1 << 30)
RUN_MARGIN_S = 30.0                 # a generator that takes this much longer than its window hangs
HELD_TIMEOUT_S = 60.0
SETTLE_STEP_S = 0.1                 # memory counts once it stays within 1 % for one step
SETTLE_AT_MOST_S = 2.0

# More than this share of the window, and a figure is marked as disturbed. /proc/stat counts in steps of 10 ms.
FOREIGN_SHARE = 0.05
STEAL_SHARE = 0.03
TICK_ALLOWANCE_S = 0.04


# Between measurements nothing of ours runs: whoever keeps a core this busy then is a stranger.
CALM_PROBE_S = 0.3
CALM_SHARE = 0.15


@dataclass(frozen=True)
class Rig:
    """What all measurements of a run share."""
    load: Path                      # the ringweir-load binary
    load_core: int
    forwarder_core: int
    folder: Path                    # temporary files of the peers
    logs: Path                      # what they said, and the histograms
    seconds: float
    warmup: float


def measure(rig, fleet, peer, scenario, round_number):
    """Returns {"values", "disturbed", "disturbance", "notes", "raw"}; raises LabError."""
    with (rig.logs / f"{peer.name}.log").open("ab") as log:
        backend = forwarder = None
        try:
            backend, to = _start_backend(rig, fleet, log)
            forwarder, listen, pids = _start_forwarder(rig, fleet, peer, to, log)
            moved = procs.repin(pids, rig.forwarder_core)
            if scenario.sessions:
                result = _idle(rig, fleet, scenario, listen, pids)
            else:
                hlog = rig.logs / f"{scenario.name}.{peer.name}.{round_number}.hlog"
                result = _loaded(rig, fleet, scenario, listen, pids, hlog)
            if forwarder.poll() is not None:
                raise LabError(f"{peer.name} ended during the run with status {forwarder.returncode}")
            if moved:
                result["notes"].append(f"{moved} threads had left the forwarder's core and were put back")
            return result
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            # A process that vanished under our eyes, or said what cannot be read: this measurement's failure alone.
            raise LabError(f"{type(error).__name__}: {error}") from error
        finally:
            for process in (forwarder, backend):
                if process is not None:
                    fleet.stop(process)


def wait_until_calm(rig, at_most_s):
    """Waits until strangers leave both cores alone, no longer than `at_most_s`; returns the seconds it took."""
    began = time.monotonic()
    while (spent := time.monotonic() - began) < at_most_s:
        before = procs.busy_seconds((rig.load_core, rig.forwarder_core))
        time.sleep(CALM_PROBE_S)
        after = procs.busy_seconds((rig.load_core, rig.forwarder_core))
        if all(now - then <= CALM_SHARE * CALM_PROBE_S for then, now in zip(before, after)):
            break
    return spent


def _start_backend(rig, fleet, log):
    backend = fleet.start([str(rig.load), "backend"], rig.load_core, stdout=subprocess.PIPE, stderr=log)
    line = backend.stdout.readline()
    if not line.strip():
        raise LabError("the backend did not start")
    return backend, int(line)


def _start_forwarder(rig, fleet, peer, to, log):
    listen = procs.free_port()
    folder = rig.folder / f"{peer.name}-{listen}"
    folder.mkdir(exist_ok=True)     # the kernel may give the same port twice in a run
    forwarder = fleet.start(peer.command(folder, listen, to), rig.forwarder_core,
                            descriptors=procs.forwarder_descriptors(), stdout=log, stderr=log)
    procs.wait_until_listening(forwarder, listen, peer.name)
    return forwarder, listen, procs.tree(forwarder.pid)


def _run_args(rig, args, listen, seconds, warmup):
    return [str(rig.load), "run", *args, "--to", f"127.0.0.1:{listen}",
            "--seconds", f"{seconds:.3f}", "--warmup", f"{warmup:.3f}", "--json"]


def _loaded(rig, fleet, scenario, listen, pids, hlog):
    companion = None
    if scenario.beside:
        # It runs until it is ended: its own window is longer than anything it stands beside.
        argv = _run_args(rig, scenario.beside, listen, rig.seconds + RUN_MARGIN_S, 0)
        companion = fleet.start(argv, rig.load_core, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        argv = _run_args(rig, scenario.args, listen, rig.seconds, rig.warmup)
        argv += ["--watch", ",".join(map(str, pids))]
        if scenario.args[0] not in ("up", "down"):
            argv += ["--hlog", str(hlog)]
        raw = _generate(rig, fleet, argv)
        if companion is not None and companion.poll() is not None:
            raise LabError("the load beside it broke off")
    finally:
        if companion is not None:
            fleet.stop(companion)
    return _judge(rig, raw)


def _generate(rig, fleet, argv):
    process = fleet.start(argv, rig.load_core, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=rig.seconds + rig.warmup + RUN_MARGIN_S)
    except subprocess.TimeoutExpired as error:
        raise LabError("the load generator hangs") from error
    finally:
        fleet.stop(process)
    if process.returncode != 0:
        raise LabError(err.decode(errors="replace").strip() or f"load generator: status {process.returncode}")
    return json.loads(out)


def _judge(rig, raw):
    """Figures per unit of work, and whether someone else was on the forwarder's core."""
    wall, spending = raw["wall_seconds"], raw["spending"]
    cpu = spending["cpu_seconds"]
    values, notes = {}, []
    if raw["units"] == 0 and raw["bytes"] == 0:
        raise LabError("no work went through within the window")
    if raw["units"]:
        values |= {"cpu_us_per_unit": cpu * 1e6 / raw["units"], "units_per_s": raw["units"] / wall}
        values |= {f"{name}_us": raw["latency_us"][name] for name in ("p50", "p99", "p999")}
    else:
        values |= {"cpu_s_per_gib": cpu * GIB / raw["bytes"], "gib_per_s": raw["bytes"] / GIB / wall}
    core = spending["cores"][rig.forwarder_core]
    values |= {"cpu_share": cpu / wall, "core_busy_s": core["busy_seconds"]}
    foreign = core["busy_seconds"] - cpu
    steal = max(spending["cores"][number]["steal_seconds"] for number in (rig.load_core, rig.forwarder_core))
    disturbed = []
    if foreign > FOREIGN_SHARE * wall + TICK_ALLOWANCE_S:
        disturbed.append(f"{foreign / wall:.0%} of the forwarder's core went to others")
    if steal > STEAL_SHARE * wall:
        disturbed.append(f"{steal / wall:.0%} stolen by the hypervisor")
    if raw["failed"]:
        notes.append(f"{raw['failed']} sessions failed")
    if raw["sent_bytes"] != raw["arrived_bytes"]:
        notes.append(f"{raw['sent_bytes']} bytes were sent, {raw['arrived_bytes']} arrived")
    if spending["threads_ended"]:
        notes.append(f"{spending['threads_ended']} threads of the forwarder ended within the window")
    return {"values": values, "disturbed": disturbed, "disturbance": max(foreign, 0) / wall + steal / wall,
            "notes": notes, "raw": raw}


def _idle(rig, fleet, scenario, listen, pids):
    """Memory and descriptors that so many idle sessions add."""
    at_start = procs.descriptors(pids)
    _generate(rig, fleet, _run_args(rig, ("pingpong", "--connections", "4"), listen, 0.05, 0.0))
    _await(lambda: procs.descriptors(pids) <= at_start, SETTLE_AT_MOST_S)
    before, fds_before = procs.memory(pids), procs.descriptors(pids)
    argv = [str(rig.load), "run", *scenario.args, "--connections", str(scenario.sessions),
            "--to", f"127.0.0.1:{listen}", "--json"]
    process = fleet.start(argv, rig.load_core, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    try:
        line = process.stdout.readline()
        if not line:
            raise LabError(process.stderr.read().decode(errors="replace").strip() or "idle sessions broke off")
        held = json.loads(line)["held"]
        after, fds = _settled_memory(pids), procs.descriptors(pids)
        out, _ = process.communicate(b"\n", timeout=HELD_TIMEOUT_S)
        raw = json.loads(out)
    finally:
        fleet.stop(process)
    per_session = max(held, 1)
    values = {
        "pss_bytes_per_session": (after["Pss"] - before["Pss"]) / per_session,
        "anon_bytes_per_session": (after["Anonymous"] - before["Anonymous"]) / per_session,
        "whole_bytes_per_session": after["Pss"] / per_session,
        "fds_per_session": (fds - fds_before) / per_session,
        "alive": raw["alive"],
    }
    short = raw["connections"] - raw["alive"]
    notes = [f"{short} of {raw['connections']} sessions did not answer"] if short else []
    return {"values": values, "disturbed": [], "disturbance": 0.0, "notes": notes,
            "raw": raw | {"memory_before": before, "memory_after": after}}


def _settled_memory(pids):
    """Forwarders may give memory back a moment after the last byte."""
    last = procs.memory(pids)
    deadline = time.monotonic() + SETTLE_AT_MOST_S
    while time.monotonic() < deadline:
        time.sleep(SETTLE_STEP_S)
        now = procs.memory(pids)
        if abs(now["Pss"] - last["Pss"]) <= 0.01 * last["Pss"]:
            return now
        last = now
    return last


def _await(holds, at_most_s):
    deadline = time.monotonic() + at_most_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(procs.POLL_S)
