"""The independent witnesses: iperf3 and wrk, run so that their results read like those of `ringweir-load`."""
import json
import re
import subprocess
import time

from . import install, procs
from .procs import LabError
from .scenarios import Tool

MARGIN_S = 30.0                     # a generator that takes this much longer than its window hangs
# Both counts of a process differ by a tick at each end, and the thread that runs now is not up to date.
TOLERATED_DIFFERENCE_S = 0.03

WEB_CONF = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/web.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    open_file_cache max=16;
    types {{ }}
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{listen} backlog=4096;
        root {folder};
    }}
}}
"""
WEB_FILES_BYTES = (128, 65_536)
WRK_UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}


def missing(tool):
    """A sentence if this tool or what stands behind it is absent."""
    needed = {Tool.LOAD: (), Tool.IPERF3: ("iperf3",), Tool.WRK: ("wrk", "nginx")}[tool]
    absent = [name for name in needed if install.program(name) is None]
    return f"{' and '.join(absent)} not installed: {install.line()}" if absent else None


def start_backend(tool, rig, fleet, log):
    """The process behind the forwarder, and its port."""
    if tool is Tool.LOAD:
        backend = fleet.start([str(rig.load), "backend"], {rig.load_core}, stdout=subprocess.PIPE, stderr=log)
        line = backend.stdout.readline()
        if not line.strip():
            raise LabError("the backend did not start")
        return backend, int(line)
    port = procs.free_port()
    argv = [install.program("iperf3"), "-s", "-B", "127.0.0.1", "-p", str(port)] if tool is Tool.IPERF3 else _web_server(rig, port)
    backend = fleet.start(argv, {rig.load_core}, stdout=subprocess.DEVNULL, stderr=log)
    procs.wait_until_listening(backend, port, f"the backend of {tool.value}")
    return backend, port


def run(tool, rig, fleet, scenario, listen, pids):
    """One load of iperf3 or wrk, in the words of `ringweir-load run --json`."""
    seconds = int(scenario.seconds(rig.seconds))
    if tool is Tool.IPERF3:
        argv = [install.program("iperf3"), "-c", "127.0.0.1", "-p", str(listen), "-t", str(seconds), "-J",
                *scenario.args]
    else:
        *options, path = scenario.args
        argv = [install.program("wrk"), "-t", "1", "-d", f"{seconds}s", "--latency", *options,
                f"http://127.0.0.1:{listen}{path}"]
    before = _Sample(pids)
    began = time.monotonic()
    process = fleet.start(argv, {rig.load_core}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        out, _ = process.communicate(timeout=seconds + MARGIN_S)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{tool.value} hangs") from error
    finally:
        fleet.stop(process)
    spending = before.until(_Sample(pids))
    text = out.decode(errors="replace")
    if process.returncode != 0:
        raise LabError(f"{tool.value}: status {process.returncode}: {text.strip()[-200:]}")
    read = _read_iperf3 if tool is Tool.IPERF3 else _read_wrk
    return {"scenario": tool.value, "wall_seconds": time.monotonic() - began, "failed": 0, "sent_bytes": None,
            "arrived_bytes": None, "spending": spending} | read(text)


def _web_server(rig, port):
    folder = rig.folder / f"web-{port}"
    folder.mkdir(exist_ok=True)
    for size in WEB_FILES_BYTES:
        (folder / str(size)).write_bytes(b"w" * size)
    path = folder / "web.conf"
    path.write_text(WEB_CONF.format(folder=folder, listen=port), encoding="ascii")
    return [install.program("nginx"), "-p", str(folder), "-c", str(path), "-e", "stderr"]


def _read_iperf3(text):
    said = json.loads(text)
    if "error" in said:
        raise LabError(f"iperf3: {said['error']}")
    received = said["end"]["sum_received"]
    # The whole life of the streams is counted, on both sides: bytes here, CPU in the spending.
    return {"units": 0, "bytes": int(received["bytes"]), "latency_us": None, "payload_seconds": received["seconds"]}


def _read_wrk(text):
    done = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", text)
    if not done:
        raise LabError(f"wrk said nothing that can be read: {text.strip()[-200:]}")
    latency = {f"p{percent}": float(value) * WRK_UNITS_US[unit] for percent, value, unit in
               re.findall(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)}
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    failed = sum(map(int, errors.groups())) if errors else 0
    failed += int(refused.group(1)) if refused else 0
    return {"units": int(done.group(1)), "bytes": 0, "latency_us": latency, "failed": failed,
            "payload_seconds": float(done.group(2)) * WRK_UNITS_US[done.group(3)] / 1e6}


class _Sample:
    """What the forwarder and the machine have spent so far; `ringweir-load` does the same in src/witness.rs."""

    def __init__(self, pids):
        self.threads = procs.thread_seconds(pids)
        self.processes = procs.process_seconds(pids)
        self.cores = procs.core_seconds()

    def until(self, later):
        by_thread = {tid: spent - self.threads.get(tid, 0.0) for tid, spent in later.threads.items()}
        threads, processes = sum(by_thread.values()), later.processes - self.processes
        return {
            "cpu_seconds": processes if processes - threads > TOLERATED_DIFFERENCE_S else threads,
            "threads_seconds": threads,
            "processes_seconds": processes,
            "threads_ended": len(self.threads.keys() - later.threads.keys()),
            "threads": len(later.threads),
            "by_thread": [{"tid": tid, "name": "", "seconds": spent}
                          for tid, spent in sorted(by_thread.items(), key=lambda item: -item[1]) if spent > 0],
            "cores": [{key: now[key] - then[key] for key in now} for then, now in zip(self.cores, later.cores)],
        }
