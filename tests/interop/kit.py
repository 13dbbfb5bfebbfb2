"""What the suites share: the daemon under test, processes around it that end with the suite, and the verdict.

A suite is judged directly first, then through ringweir on each engine, and every case must end as it did directly.
It calls `main` with a function that sets its servers up once and returns the judge, which is called for each way.
"""

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RINGWEIR = os.environ.get("RINGWEIR") or str(HERE.parent.parent / "target" / "debug" / "ringweir")
ENGINES = ("io-uring", "tokio")
PATIENCE_SECONDS = 30
SKIPPED = 77
LOWEST_PORT = 10_000

# What the machine's owner has set for proxies and indexes holds for what is installed, not for what is judged.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not re.fullmatch(r"(?i)(https?|ftp|all|no)_proxy|pip_.*|git_.*|pg.*|ssh_.*|ringweir_.*", name)
} | {"LC_ALL": "C.UTF-8"}


class Skip(Exception):
    """What the suite needs is not here; said aloud, and in CI a failure."""


def sbin_path():
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def need(**commands):
    """Sees to the Debian packages whose command is missing (`command="package"`)."""
    install(
        package
        for command, package in commands.items()
        if not shutil.which(command.replace("_", "-"), path=sbin_path())
    )


def install(packages):
    """Installs these Debian packages, if that may be done here."""
    missing = sorted(set(packages))
    if not missing:
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        with open(__file__, "rb") as lock:
            # apt takes no two at once.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if apt_install(missing):
                return
    raise Skip("not installed: " + " ".join(missing))


def apt_install(packages):
    # In run level 1 Debian's packages start no services.
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    if subprocess.run(command, env=env, capture_output=True).returncode == 0:
        return True
    subprocess.run(["apt-get", "update", "-qq"], env=env, check=False)
    return subprocess.run(command, env=env, stdout=subprocess.DEVNULL).returncode == 0


def venv(folder, *packages):
    """A Python environment with these packages from PyPI; returns its folder of programs."""
    if importlib.util.find_spec("ensurepip") is None:
        install(["python3-venv"])
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise Skip("python3-venv does not work: " + error.stderr.decode()[-300:]) from None
    programs = Path(folder) / "bin"
    installed = subprocess.run([programs / "python", "-m", "pip", "install", "-q", *packages], capture_output=True)
    if installed.returncode != 0:
        raise Skip("PyPI gives no " + " ".join(packages) + ": " + installed.stderr.decode()[-300:])
    return programs


def npm(folder, *packages):
    """Packages of the npm registry in this folder; returns the environment in which node finds them."""
    install = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", folder, *packages]
    if subprocess.run(install, stdout=subprocess.DEVNULL).returncode != 0:
        raise Skip("the npm registry gives no " + " ".join(packages))
    return CLEAN | {"NODE_PATH": f"{folder}/node_modules"}


def free_port():
    """A port of loopback that nobody listens on, for programs that cannot say which one the kernel gave them.

    Below those that the kernel gives to connections, so that none of these takes it before its program does.
    """
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(LOWEST_PORT, max(lowest_given, LOWEST_PORT + 1000))
        if is_free(socket.AF_INET, "127.0.0.1", port) and is_free(socket.AF_INET6, "::1", port):
            return port


def is_free(family, host, port):
    try:
        with socket.socket(family) as probe:
            probe.bind((host, port))
            return True
    except OSError as error:
        # A machine without IPv6 has all of its ports free.
        return error.errno != errno.EADDRINUSE


def eventually(what, holds):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_SECONDS} s: {what}")
        time.sleep(0.02)
    return found


def is_listening(address):
    """Whether somebody accepts at `(host, port)` or at the path of a Unix socket."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


class Process:
    """A process that ends when its context does. Its output is in a file that a failure shows."""

    def __init__(self, command, log, listens_at=None, **options):
        self.log = Path(log)
        options = {"env": CLEAN | {"PATH": sbin_path()}, "stdin": subprocess.DEVNULL} | options
        with self.log.open("wb") as output:
            self.child = subprocess.Popen(
                [str(word) for word in command], stdout=output, stderr=subprocess.STDOUT, **options
            )
        if listens_at is not None:
            try:
                eventually(f"{command[0]} listens", lambda: self.is_running() and is_listening(listens_at))
            except AssertionError:
                self.stop()
                raise

    def is_running(self):
        if self.child.poll() is not None:
            raise AssertionError(f"{self.child.args[0]} has ended:\n{self.text()}")
        return True

    def text(self):
        return self.log.read_text(errors="replace")

    def stop(self, by=signal.SIGTERM):
        if self.child.poll() is None:
            self.child.send_signal(by)
            try:
                self.child.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def run(command, input=None, seconds=PATIENCE_SECONDS, **options):
    """A program to its end: what it wrote, as bytes. Any other exit than 0 fails."""
    options = {"env": CLEAN | {"PATH": sbin_path()}} | options
    command = [str(word) for word in command]
    if input is None:
        options.setdefault("stdin", subprocess.DEVNULL)
    # A group of its own: what hangs is ended with its helpers.
    done = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **({"stdin": subprocess.PIPE} if input is not None else {}),
        **options,
    )
    try:
        output, errors = done.communicate(input, timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, signal.SIGKILL)
        output, errors = done.communicate()
        raise AssertionError(
            f"{' '.join(command)}: not within {seconds} s:\n{errors.decode(errors='replace')}"
        ) from None
    if done.returncode != 0:
        said = (output[-1500:] + errors[-1500:]).decode(errors="replace")
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}:\n{said}")
    return output


class Ringweir:
    """The daemon on one engine with a configuration; when its context ends, its sessions must have been used."""

    def __init__(self, engine, folder, config):
        self.folder = Path(tempfile.mkdtemp(prefix="ringweir-", dir=folder))
        (self.folder / "config.toml").write_text(f'[admin]\nlisten = "unix:{self.folder}/admin.sock"\n{config}')
        listeners = config.count("[[listener]]")
        command = [RINGWEIR, "run", "--config", self.folder / "config.toml", "--engine", engine, "--workers", "2"]
        self.process = Process(command, self.folder / "log")
        ready = lambda: self.process.is_running() and len(set(self.announced())) >= listeners
        try:
            eventually("ringweir listens", ready)
        except AssertionError as error:
            self.process.stop()
            if "io_uring" in str(error):
                raise Skip(f"this machine refuses io_uring: {error}") from None
            raise

    def announced(self):
        found = re.findall(r"listening name=(\S+) address=(\S+)", self.process.text())
        return {name: address for name, address in found}

    def port(self, listener="in"):
        return int(self.announced()[listener].rsplit(":", 1)[1])

    def committed(self):
        """How many sessions its targets have served or serve."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE_SECONDS)
            admin.connect(f"{self.folder}/admin.sock")
            admin.sendall(b"GET /status HTTP/1.1\r\nHost: ringweir\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: admin.recv(65536), b""))
        return sum(target["committed"] for target in json.loads(answer.split(b"\r\n\r\n", 1)[1])["targets"])

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.process.is_running()
                assert self.committed() > 0, "nothing went through ringweir"
            else:
                print(f"ringweir said last:\n{self.process.text()[-2000:]}", file=sys.stderr)
        finally:
            self.process.stop()


class Way:
    """How the judge reaches its servers: directly (`engine` is None) or through ringweir."""

    def __init__(self, engine, folder):
        self.engine = engine
        self.folder = folder

    def __str__(self):
        return self.engine or "direct"

    def ringweir(self, config):
        return Ringweir(self.engine, self.folder, config)

    @contextlib.contextmanager
    def port_of(self, address):
        """The loopback port at which a client finds this endpoint: `HOST:PORT` or `unix:PATH`."""
        if self.engine is None:
            yield int(address.rsplit(":", 1)[1])
            return
        config = (
            '[[listener]]\nname = "in"\nbind = "127.0.0.1:0"\ntarget = "out"\n'
            f'[upstream.out]\naddress = "{address}"\n'
        )
        with self.ringweir(config) as daemon:
            yield daemon.port()

    @contextlib.contextmanager
    def proxy(self, more=""):
        """The port of a proxy for everything that ringweir understands, or None when the way is direct."""
        if self.engine is None:
            yield None
            return
        config = '[[listener]]\nname = "in"\nbind = "127.0.0.1:0"\nprotocol = "mixed"\ntarget = "direct"\n'
        with self.ringweir(config + more) as daemon:
            yield daemon.port()


class Cases:
    """Collects what became of each case of a suite that has no judge of its own."""

    def __init__(self, way):
        self.way = way
        self.outcomes = {}

    def try_out(self, name, check, *arguments):
        try:
            check(*arguments)
            self.outcomes[name] = "passed"
        except (AssertionError, OSError, ValueError, KeyError) as error:
            print(f"{self.way}: {name}: {error}", file=sys.stderr)
            self.outcomes[name] = "failed"


def passed(outcomes, good):
    return sum(outcome in good for outcome in outcomes.values())


def differences(direct, through):
    for case in sorted(direct.keys() | through.keys()):
        if direct.get(case) != through.get(case):
            yield f"  {case}: {direct.get(case)} directly, {through.get(case)} through ringweir"


def judge_all(name, prepare, cases, good):
    """The suite's row of the table; raises AssertionError where a way differs from the direct one."""
    begin = time.monotonic()
    row, faults = [name], []
    with tempfile.TemporaryDirectory(prefix="interop-") as folder, contextlib.ExitStack() as servers:
        # Servers that drop their rights find their way to what is theirs.
        os.chmod(folder, 0o711)
        judge = prepare(Path(folder), servers)
        direct = judge(Way(None, folder))
        row.append(f"{passed(direct, good)}/{len(direct)}")
        assert len(direct) == cases, f"the suite has {len(direct)} cases, {cases} are expected"
        bad = [f"  {case}: {outcome}" for case, outcome in direct.items() if outcome not in good]
        assert not bad, "\n".join([f"{len(bad)} of {cases} fail directly", *bad])
        for engine in ENGINES:
            through = judge(Way(engine, folder))
            row.append(f"{passed(through, good)}/{len(through)}")
            found = list(differences(direct, through))
            faults += [f"{name} on {engine}: {len(found)} cases differ", *found] if found else []
    row.append(f"{time.monotonic() - begin:.0f}")
    return row, faults


def main(name, prepare, cases, good=("passed",)):
    """Runs a suite of so many cases. `prepare(folder, servers)` returns `judge(way)`, which returns case → outcome."""
    try:
        if not os.access(RINGWEIR, os.X_OK):
            sys.exit(f"there is no {RINGWEIR}: cargo build, or name it in RINGWEIR")
        row, faults = judge_all(name, prepare, cases, good)
    except Skip as reason:
        print(f"SKIPPED: {name}: {reason}", file=sys.stderr)
        sys.exit(SKIPPED)
    except AssertionError as error:
        sys.exit(f"FAILED: {name}: {error}")
    print("RESULT", *row, sep="\t")
    if faults:
        sys.exit("\n".join(["FAILED:", *faults]))
