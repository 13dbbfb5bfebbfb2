"""Processes: started with limits, found by their listening port, ended by their pid. And what /proc says of them."""
import ctypes
import enum
import os
import resource
import signal
import socket
import subprocess
import time

PR_SET_PDEATHSIG = 1
FORWARDER_DESCRIPTORS = 20_000      # the limit under which the project's session goal is stated
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 3.0
POLL_S = 0.005
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """A measurement that cannot be made; the text says which and why."""


def raise_descriptor_limit():
    """Soft limit to hard; returns the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def forwarder_descriptors():
    """The limit a forwarder gets: the project's 20,000, or less where the machine allows less."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return FORWARDER_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, FORWARDER_DESCRIPTORS)


class Rank(enum.Enum):
    """Who goes first where several share a core."""
    USUAL = "usual"
    PUNCTUAL = "punctual"           # runs at once when its timer fires; needs root, and is usual without
    BACKGROUND = "background"       # runs when nobody else wants to


def _take_rank(rank):
    if rank is Rank.PUNCTUAL:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            pass
    elif rank is Rank.BACKGROUND:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class Fleet:
    """Every process of ours. Leaving the `with` ends them all, by pid, whatever happened."""

    def __init__(self):
        self._running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in list(self._running):
            self.stop(process)

    def start(self, argv, cores, rank=Rank.USUAL, *, descriptors=None, stdin=None, stdout=None, stderr=None):
        """Starts `argv` on these cores. It dies with this script even if the script is killed."""
        def prepare():
            os.sched_setaffinity(0, cores)
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            _take_rank(rank)
            if descriptors is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
        process = subprocess.Popen(argv, preexec_fn=prepare, start_new_session=True,
                                   stdin=stdin or subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        self._running.append(process)
        return process

    def stop(self, process):
        """TERM, then KILL for what does not listen, children included."""
        family = tree(process.pid) if process.poll() is None else []
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                for pid in family:
                    _kill(pid)
                process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process in self._running:
            self._running.remove(process)


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def tree(pid):
    """`pid` and all its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children", encoding="ascii") as file:
                    found.extend(int(child) for child in file.read().split())
        except OSError:
            continue
    return found


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_listening(process, port, name):
    """Waits without connecting: a probe would be a session in the forwarder's books."""
    wanted = f":{port:04X}"
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with open("/proc/net/tcp", encoding="ascii") as file:
            if any(row[1].endswith(wanted) and row[3] == "0A" for row in map(str.split, file)):
                return
        if process.poll() is not None:
            raise LabError(f"{name} ended at once with status {process.returncode}")
        time.sleep(POLL_S)
    raise LabError(f"{name} does not listen on port {port} after {START_TIMEOUT_S:.0f} s")


def repin(pids, cores):
    """Puts threads that left the forwarder's cores back, and says how many did. Kernel helpers cannot be moved."""
    moved = 0
    for pid in pids:
        for tid in map(int, _listdir(f"/proc/{pid}/task")):
            try:
                if not os.sched_getaffinity(tid) <= cores:
                    os.sched_setaffinity(tid, cores)
                    moved += 1
            except OSError:
                continue
    return moved


def busy_seconds(cores):
    """What each of these cores has done since boot, for anybody; stolen time counts as done."""
    spent = core_seconds()
    return [spent[core]["busy_seconds"] + spent[core]["steal_seconds"] for core in cores]


def core_seconds():
    """Per core of the machine: what it has done since boot, for anybody, and what was stolen from it."""
    with open("/proc/stat", encoding="ascii") as file:
        rows = [list(map(int, row[1:])) for line in file if (row := line.split())[0].startswith("cpu")][1:]
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal (proc(5))
    return [{"busy_seconds": sum(row[field] for field in (0, 1, 2, 5, 6)) / ticks_per_second,
             "softirq_seconds": row[6] / ticks_per_second, "steal_seconds": row[7] / ticks_per_second}
            for row in rows]


def thread_seconds(pids):
    """CPU time of every living thread of these processes, by tid, from schedstat."""
    spent = {}
    for pid in pids:
        for tid in _listdir(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{tid}/schedstat", encoding="ascii") as file:
                    spent[int(tid)] = int(file.read().split()[0]) / 1e9
            except OSError:
                continue
    return spent


def process_seconds(pids):
    """utime + stime of these processes, ended threads included, in steps of 10 ms."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pids):
    """Bytes by kind, summed over the processes, from smaps_rollup."""
    total = {"Pss": 0, "Rss": 0, "Anonymous": 0}
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                key, _, rest = line.partition(":")
                if key in total:
                    total[key] += int(rest.split()[0]) * 1024
    return total


def descriptors(pids):
    """Open descriptors, summed over the processes."""
    return sum(len(_listdir(f"/proc/{pid}/fd")) for pid in pids)


def _listdir(path):
    try:
        return os.listdir(path)
    except OSError:
        return []
