"""The forwarders: how each is found, set up with so many workers, and started."""
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from . import install, procs, shadowsocks

NGINX_MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")

NGINX_CONF = """\
{load_module}daemon off;
worker_processes {workers};
{affinity}worker_rlimit_nofile {descriptors};
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections {descriptors}; }}
stream {{
    server {{
        listen 127.0.0.1:{listen} backlog=4096{reuseport};
        proxy_pass 127.0.0.1:{to};
        proxy_timeout 1h;
    }}
}}
"""

HAPROXY_CONF = """\
global
    nbthread {workers}
{affinity}defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
{extra}listen forward
    bind 127.0.0.1:{listen}{shards}
    server backend 127.0.0.1:{to}
"""

RINGWEIR_CONF = """\
[engine]
kind = "{engine}"
workers = {workers}
{splice}
[admin]
listen = "unix:{folder}/admin.sock"

[[listener]]
name = "forward"
bind = "127.0.0.1:{listen}"
protocol = "tcp"
target = "backend"

[upstream.backend]
address = "127.0.0.1:{to}"
"""
SPLICE_OFF = 'splice = "off"\n'


@dataclass(frozen=True)
class Run:
    """What a peer is started for: a folder of its own, its ports, and the cores it may use, one worker each."""
    folder: Path
    listen: int
    to: int
    cores: tuple
    end: shadowsocks.End | None = None              # of a tunnel; `to` is the server then, for a client

    @property
    def workers(self):
        return len(self.cores)


@dataclass(frozen=True)
class Peer:
    """`command(run)` writes what the peer needs into the run's folder and returns its argv; so does `tunnel(run)`,
    where the run is one end of a tunnel. None: it does no such thing."""
    name: str
    version: str
    command: Callable[[Run], list] | None
    ours: bool = False
    in_short: bool = True
    status: Callable[[Run], list] | None = None     # argv that prints what it says of itself, as JSON
    floor: bool = False             # no forwarder at all: what the rig itself costs
    tunnel: Callable[[Run], list] | None = None
    methods: tuple = ()             # of tunnels, where it does not know all

    def can(self, scenario):
        """Whether it is to be measured there."""
        if self.floor:
            return scenario.floor
        if scenario.role is None:
            return self.command is not None
        return self.tunnel is not None and (not self.methods or scenario.method in self.methods)

    def argv(self, run):
        """What starts it for this run, whose folder gets what it needs."""
        return self.command(run) if run.end is None else self.tunnel(run)

    @property
    def is_rival(self):
        """Someone to be beaten."""
        return not self.ours and not self.floor


NO_FORWARDER = Peer("no-forwarder", "the load straight at its backend", None, in_short=False, floor=True)


def find(ringweir, realm=None, others=(), thresholds=(), shadowsocks_rust=None):
    """All peers present, and for each absent one a sentence.

    `others`: more ringweir binaries, as (name, path). `thresholds`: more values of engine.splice.
    `shadowsocks_rust`: the folder of its programs.
    """
    present, absent = [], []
    looks = [_nginx, _haproxy, lambda: _realm(realm), lambda: _shadowsocks(shadowsocks_rust),
             lambda: _ringweir(ringweir, thresholds)]
    looks += [lambda name=name, path=path: _other_ringweir(name, path) for name, path in others]
    for look in looks:
        peers, reason = look()
        present.extend(peers)
        if reason:
            absent += [reason] if isinstance(reason, str) else reason
    return present + [NO_FORWARDER], absent


def nginx_modules():
    """The folder of nginx' dynamic modules, or None."""
    return next((folder for folder in map(Path, NGINX_MODULES) if folder.exists()), None)


def _nginx():
    binary = install.program("nginx")
    if not binary:
        return [], f"nginx is not installed: {install.line()}"
    modules = nginx_modules()
    module = modules / "ngx_stream_module.so" if modules and (modules / "ngx_stream_module.so").exists() else None
    built_in = "--with-stream " in _output([binary, "-V"]) + " "
    if module is None and not built_in:
        return [], f"nginx has no stream module: {install.line()}"

    def command(run):
        path = run.folder / "nginx.conf"
        several = run.workers > 1
        path.write_text(NGINX_CONF.format(
            load_module=f"load_module {module};\n" if module else "", folder=run.folder, listen=run.listen, to=run.to,
            workers=run.workers, affinity="worker_cpu_affinity auto;\n" if several else "",
            reuseport=" reuseport" if several else "", descriptors=procs.forwarder_descriptors()), encoding="ascii")
        return [binary, "-p", str(run.folder), "-c", str(path), "-e", "stderr"]
    return [Peer("nginx", _first_line(_output([binary, "-v"])), command)], None


def _haproxy():
    binary = install.program("haproxy")
    if not binary:
        return [], f"haproxy is not installed: {install.line()}"

    def peer(name, extra, in_short=True):
        def command(run):
            path = run.folder / "haproxy.cfg"
            pinned = "".join(f"    cpu-map 1/{thread} {core}\n" for thread, core in enumerate(run.cores, 1))
            several = run.workers > 1
            path.write_text(HAPROXY_CONF.format(
                extra=extra, listen=run.listen, to=run.to, workers=run.workers, affinity=pinned if several else "",
                shards=" shards by-thread" if several else ""), encoding="ascii")
            return [binary, "-db", "-f", str(path)]
        return Peer(name, _first_line(_output([binary, "-v"])), command, in_short=in_short)
    # Left to itself, 2.6 never splices on loopback (strace shows recvfrom and sendto alone): hence the forced one.
    return [peer("haproxy", ""), peer("haproxy-auto", "    option splice-auto\n", in_short=False),
            peer("haproxy-splice", "    option splice-request\n    option splice-response\n")], None


def _realm(given):
    binary = str(given) if given else install.program("realm")
    if not binary or not Path(binary).exists():
        return [], "realm is not installed (perf/README.md says how to get it)"

    def command(run):
        # Its runtime takes as many workers as there are cores it may use.
        return [binary, "-l", f"127.0.0.1:{run.listen}", "-r", f"127.0.0.1:{run.to}"]
    return [Peer("realm", _first_line(_output([binary, "--version"])), command)], None


def _shadowsocks(folder):
    """Both of them, and a sentence for each that is absent."""
    found, absent = [], []
    for name, (program, reason), ask, methods in (
            ("ss-libev", shadowsocks.libev(), "-h", shadowsocks.LIBEV_METHODS),
            ("ss-rust", shadowsocks.rust(folder), "--version", ())):
        if program is None:
            absent.append(reason)
            continue
        version = _first_line(_output([program[0], ask]))
        found.append(Peer(name, version, None, tunnel=program[1], methods=methods))
    return found, absent


def _ringweir(binary, thresholds):
    if binary is None or not Path(binary).exists():
        return [], f"ringweir is not built ({binary or 'no binary'}): its engines are left out"
    peers = [_ringweir_peer("ringweir-uring", binary, "io-uring")]
    reason = None
    if _takes(binary, SPLICE_OFF):
        peers.append(_ringweir_peer("ringweir-uring-copy", binary, "io-uring", SPLICE_OFF, in_short=False))
    else:
        reason = "ringweir-uring-copy: this ringweir does not know engine.splice"
    for threshold in thresholds:
        splice = f"splice = {threshold}\n"
        if not threshold.isdecimal() or not _takes(binary, splice):
            raise procs.LabError(f"--splice-at {threshold}: this ringweir does not take engine.splice = {threshold}")
        peers.append(_ringweir_peer(f"splice-{threshold}", binary, "io-uring", splice))
    return peers + [_ringweir_peer("ringweir-tokio", binary, "tokio")], reason


def _other_ringweir(name, binary):
    if not Path(binary).exists():
        raise procs.LabError(f"--also {name}: there is no {binary}")
    return [_ringweir_peer(name, binary, "io-uring")], None


def _ringweir_peer(name, binary, engine, splice="", in_short=True):
    def command(run):
        (run.folder / "admin.sock").unlink(missing_ok=True)
        path = run.folder / "ringweir.toml"
        path.write_text(RINGWEIR_CONF.format(engine=engine, splice=splice, workers=run.workers, folder=run.folder,
                                             listen=run.listen, to=run.to), encoding="ascii")
        return [str(binary), "run", "--config", str(path)]

    def status(run):
        return [str(binary), "status", "--json", "--admin", f"unix:{run.folder}/admin.sock"]
    version = _first_line(_output([str(binary), "--version"]))
    # Nothing that is sealed is spliced: one of each engine is enough.
    tunnel = None if splice else lambda run: shadowsocks.ringweir(binary, engine, run)
    return Peer(name, version, command, ours=True, in_short=in_short, status=status, tunnel=tunnel)


def _takes(binary, splice):
    text = RINGWEIR_CONF.format(engine="io-uring", splice=splice, workers=1, folder="/nowhere", listen=1, to=2)
    done = subprocess.run([str(binary), "check", "/dev/stdin"], input=text, text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def _output(argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout


def _first_line(text):
    first = text.strip().splitlines()[0] if text.strip() else "unknown"
    return first.removeprefix("nginx version: ").split(" - http")[0]
