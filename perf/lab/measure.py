"""One measurement: a fresh backend, a fresh forwarder, one load, figures."""
import json
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

from . import peers, procs, shadowsocks, tools
from .procs import LabError
from .scenarios import Place, Role, Tool

FAR_ENGINE = "io-uring"             # of ringweir as the far end of a tunnel
MIB, GIB = float(1 << 20), float(1 << 30)
BESIDE_AHEAD_S, BESIDE_LONGER_S = 0.1, 0.5
RUN_MARGIN_S = 30.0                 # a generator that takes this much longer than its window hangs
HELD_TIMEOUT_S = 60.0
STATUS_WITHIN_S = 5.0
STREAMS = ("up", "down")            # kinds of load without messages, hence without latencies
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
    ringweir: Path | None           # what plays the far end of a tunnel
    load_core: int
    forwarder_core: int
    folder: Path                    # temporary files of the peers
    logs: Path                      # what they said, and the histograms
    seconds: float
    warmup: float


def measure(rig, fleet, peer, scenario, attempt):
    """Returns {"values", "disturbed", "disturbance", "notes", "raw", …}; raises LabError. `attempt` names its files."""
    with (rig.logs / f"{peer.name}.log").open("ab") as log:
        backend = forwarder = far = None
        try:
            backend, to = tools.start_backend(scenario.tool, rig, fleet, log)
            if peer.floor:
                return _put_load(rig, fleet, peer, scenario, attempt, to, [], (backend,))
            cores = _cores(rig, scenario)
            run, front = _prepare(rig, peer, to, cores), None
            if scenario.role is not None:
                run, far, front = _tunnel(rig, fleet, scenario, run, log)
            forwarder = fleet.start(peer.argv(run), set(cores), descriptors=procs.forwarder_descriptors(),
                                    stdout=log, stderr=log)
            procs.wait_until_listening(forwarder, run.listen, peer.name)
            pids = procs.tree(forwarder.pid)
            moved = procs.repin(pids, set(cores))
            result = _put_load(rig, fleet, peer, scenario, attempt, front or run.listen, pids,
                               (backend, far) if far else (backend,))
            if forwarder.poll() is not None:
                raise LabError(f"{peer.name} ended during the run with status {forwarder.returncode}")
            if moved:
                result["notes"].append(f"{moved} threads had left the forwarder's cores and were put back")
            if peer.status:
                result["status"] = _status(peer, run, result["notes"])
            return result
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            # A process that vanished under our eyes, or said what cannot be read: this measurement's failure alone.
            if forwarder is not None and forwarder.poll() is not None:
                raise LabError(f"{peer.name} ended during the run with status {forwarder.returncode}") from error
            raise LabError(f"{type(error).__name__}: {error}") from error
        finally:
            for process in (forwarder, far, backend):
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


def _cores(rig, scenario):
    return {Place.ALONE: (rig.forwarder_core,), Place.BESIDE_LOAD: (rig.load_core,),
            Place.BOTH: (rig.load_core, rig.forwarder_core)}[scenario.place]


def _prepare(rig, peer, to, cores):
    listen = procs.free_port()
    folder = rig.folder / f"{peer.name}-{listen}"
    folder.mkdir(exist_ok=True)     # the kernel may give the same port twice in a run
    return peers.Run(folder, listen, to, cores)


def _tunnel(rig, fleet, scenario, run, log):
    """The run as one end of a tunnel, the far end, which runs on the load's core, and the port that the load goes to."""
    if rig.ringweir is None:
        raise LabError("the far end of a tunnel is ringweir, which is not there")
    end = shadowsocks.End(scenario.role, scenario.method, run.to)
    is_server = scenario.role is Role.SERVER
    folder = run.folder / "far"
    folder.mkdir(exist_ok=True)
    port = procs.free_port()
    far = peers.Run(folder, port, run.listen, (rig.load_core,), replace(end, role=end.other_role))
    process = fleet.start(shadowsocks.ringweir(rig.ringweir, FAR_ENGINE, far), {rig.load_core},
                          descriptors=procs.forwarder_descriptors(), stdout=log, stderr=log)
    try:
        procs.wait_until_listening(process, port, "the far end")
    except LabError:
        fleet.stop(process)
        raise
    return replace(run, to=port, end=end), process, port if is_server else run.listen


def _put_load(rig, fleet, peer, scenario, attempt, listen, pids, helpers):
    if scenario.sessions:
        return _idle(rig, fleet, scenario, listen, pids)
    if scenario.tool is not Tool.LOAD:
        return _judge(rig, peer, scenario, tools.run(scenario.tool, rig, fleet, scenario, listen, pids))
    more = ("--helpers", ",".join(str(helper.pid) for helper in helpers))
    if scenario.args[0] in STREAMS:
        return _judge(rig, peer, scenario, _loaded(rig, fleet, scenario, listen, pids, more))
    hlog = f"{scenario.name}.{peer.name}.{attempt}.hlog"
    raw = _loaded(rig, fleet, scenario, listen, pids, (*more, "--hlog", str(rig.logs / hlog)))
    return _judge(rig, peer, scenario, raw) | {"hlog": hlog}


def _status(peer, run, notes):
    """What a forwarder of ours says of itself: its counters belong to the figures."""
    done = subprocess.run(peer.status(run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=STATUS_WITHIN_S,
                          check=False)
    if done.returncode != 0:
        notes.append(f"no status: {done.stderr.decode(errors='replace').strip()}")
        return None
    return json.loads(done.stdout)


def _run_args(rig, args, listen, seconds, warmup):
    return [str(rig.load), "run", *args, "--to", f"127.0.0.1:{listen}",
            "--seconds", f"{seconds:.3f}", "--warmup", f"{warmup:.3f}", "--json"]


def _loaded(rig, fleet, scenario, listen, pids, more):
    argv = _run_args(rig, scenario.args, listen, rig.seconds, rig.warmup) + list(more)
    if pids:
        argv += ["--watch", ",".join(map(str, pids))]
    if not scenario.beside:
        return _generate(rig, fleet, argv, scenario.is_open_loop)
    # It begins before what it stands beside and ends after it; and it yields the load's core at once when a message
    # is due, so that what the messages wait for is the forwarder and not their neighbour's generator.
    beside = _run_args(rig, scenario.beside, listen, rig.seconds + rig.warmup + BESIDE_LONGER_S, 0)
    companion = fleet.start(beside, {rig.load_core}, procs.Rank.BACKGROUND, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)
    try:
        time.sleep(BESIDE_AHEAD_S)
        # Comma-separated lists add up when the option is given twice.
        raw = _generate(rig, fleet, argv + ["--helpers", str(companion.pid)], scenario.is_open_loop)
        if companion.poll() is not None:
            raise LabError("the load beside it broke off")
        out, _ = companion.communicate(timeout=BESIDE_LONGER_S + RUN_MARGIN_S)
        return raw | {"neighbour": json.loads(out)}
    finally:
        fleet.stop(companion)


def _generate(rig, fleet, argv, punctual=False):
    rank = procs.Rank.PUNCTUAL if punctual else procs.Rank.USUAL
    process = fleet.start(argv, {rig.load_core}, rank, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=rig.seconds + rig.warmup + RUN_MARGIN_S)
    except subprocess.TimeoutExpired as error:
        raise LabError("the load generator hangs") from error
    finally:
        fleet.stop(process)
    if process.returncode != 0:
        raise LabError(err.decode(errors="replace").strip() or f"load generator: status {process.returncode}")
    return json.loads(out)


def _judge(rig, peer, scenario, raw):
    """Figures per unit of work, and whether someone else was on the forwarder's core."""
    # A witness is watched from before it starts until after it ends; its own clock is that of its payload.
    wall, payload_s, spending = raw["wall_seconds"], raw.get("payload_seconds", raw["wall_seconds"]), raw["spending"]
    cpu = spending["cpu_seconds"]
    values, notes = {}, []
    if raw["units"] == 0 and raw["bytes"] == 0:
        raise LabError("no work went through within the window")
    if raw["units"]:
        values |= {"cpu_us_per_unit": cpu * 1e6 / raw["units"], "units_per_s": raw["units"] / payload_s}
        values |= {f"{name}_us": raw["latency_us"][name] for name in ("p50", "p99", "p999", "p99_typical")
                   if raw["latency_us"].get(name) is not None}
    else:
        values |= {"cpu_s_per_gib": cpu * GIB / raw["bytes"], "gib_per_s": raw["bytes"] / GIB / payload_s}
    machine = sum(core["busy_seconds"] for core in spending["cores"])
    values |= {"machine_us_per_unit": machine * 1e6 / raw["units"]} if raw["units"] else \
        {"machine_s_per_gib": machine * GIB / raw["bytes"]}
    if scenario.place is Place.BOTH:
        shares = sorted((thread["seconds"] for thread in spending["by_thread"]), reverse=True)[:scenario.workers]
        values["busiest_share"] = 100 * shares[0] / sum(shares)
    if "neighbour" in raw:
        values["neighbour_mib_per_s"] = raw["neighbour"]["bytes"] / MIB / raw["neighbour"]["wall_seconds"]
    core = spending["cores"][rig.forwarder_core]
    values |= {"cpu_share": cpu / wall, "core_busy_s": core["busy_seconds"]}
    if peer.floor:
        values = {key: value for key, value in values.items() if not key.startswith("cpu_")}
    # Beside the load the forwarder's core is not its own, and what else runs there cannot be told from the load.
    foreign = core["busy_seconds"] - cpu if scenario.place is Place.ALONE else 0.0
    steal = max(spending["cores"][number]["steal_seconds"] for number in (rig.load_core, rig.forwarder_core))
    disturbed = []
    if foreign > FOREIGN_SHARE * wall + TICK_ALLOWANCE_S:
        disturbed.append(f"{foreign / wall:.0%} of the forwarder's core went to others")
    if scenario.is_open_loop and scenario.place is Place.ALONE:
        # Here a stranger on the load's core is felt too: messages wait for him.
        strange = spending["cores"][rig.load_core]["busy_seconds"] - raw["load_cpu_seconds"]
        if strange > FOREIGN_SHARE * wall + TICK_ALLOWANCE_S:
            disturbed.append(f"{strange / wall:.0%} of the load's core went to others")
        foreign = max(foreign, 0) + max(strange, 0)
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
    process = fleet.start(argv, {rig.load_core}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
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
