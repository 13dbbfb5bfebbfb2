"""The forwarders: how each is found, set up with one worker, and started."""
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from . import procs

NGINX_MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")
INSTALL = "apt-get install nginx libnginx-mod-stream haproxy"

NGINX_CONF = """\
{load_module}daemon off;
worker_processes 1;
worker_rlimit_nofile {descriptors};
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections {descriptors}; }}
stream {{
    server {{
        listen 127.0.0.1:{listen} backlog=4096;
        proxy_pass 127.0.0.1:{to};
        proxy_timeout 1h;
    }}
}}
"""

HAPROXY_CONF = """\
global
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
{extra}listen forward
    bind 127.0.0.1:{listen}
    server backend 127.0.0.1:{to}
"""


@dataclass(frozen=True)
class Peer:
    """`command(folder, listen, to)` writes what the peer needs into `folder` and returns its argv."""
    name: str
    version: str
    command: Callable[[Path, int, int], list]
    ours: bool = False
    in_short: bool = True


def find(ringweir):
    """All peers present, and for each absent one a sentence."""
    present, absent = [], []
    for look in (_nginx, _haproxy, _realm, lambda: _ringweir(ringweir)):
        peers, reason = look()
        present.extend(peers)
        if reason:
            absent.append(reason)
    return present, absent


def _nginx():
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if not binary:
        return [], f"nginx is not installed: {INSTALL}"
    module = next((path for folder in NGINX_MODULES
                   if (path := Path(folder) / "ngx_stream_module.so").exists()), None)
    built_in = "--with-stream " in _output([binary, "-V"]) + " "
    if module is None and not built_in:
        return [], f"nginx has no stream module: {INSTALL}"

    def command(folder, listen, to):
        path = folder / "nginx.conf"
        path.write_text(NGINX_CONF.format(
            load_module=f"load_module {module};\n" if module else "", folder=folder, listen=listen, to=to,
            descriptors=procs.forwarder_descriptors()), encoding="ascii")
        return [binary, "-p", str(folder), "-c", str(path), "-e", "stderr"]
    return [Peer("nginx", _first_line(_output([binary, "-v"])), command)], None


def _haproxy():
    binary = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if not binary:
        return [], f"haproxy is not installed: {INSTALL}"

    def peer(name, extra, in_short=True):
        def command(folder, listen, to):
            path = folder / "haproxy.cfg"
            path.write_text(HAPROXY_CONF.format(extra=extra, listen=listen, to=to), encoding="ascii")
            return [binary, "-db", "-f", str(path)]
        return Peer(name, _first_line(_output([binary, "-v"])), command, in_short=in_short)
    # Left to itself, 2.6 never splices on loopback (strace shows recvfrom and sendto alone): hence the forced one.
    return [peer("haproxy", ""), peer("haproxy-auto", "    option splice-auto\n", in_short=False),
            peer("haproxy-splice", "    option splice-request\n    option splice-response\n")], None


def _realm():
    """Measured where someone has installed it; it is no Debian package, so nothing is said where not."""
    binary = shutil.which("realm")
    if not binary:
        return [], None

    def command(_folder, listen, to):
        return [binary, "-l", f"127.0.0.1:{listen}", "-r", f"127.0.0.1:{to}"]
    return [Peer("realm", _first_line(_output([binary, "--version"])), command)], None


def _ringweir(binary):
    if binary is None or not Path(binary).exists():
        return [], f"ringweir is not built ({binary or 'no binary'}): its engines are left out"

    def peer(name, engine):
        def command(_folder, listen, to):
            return [str(binary), "forward", "--listen", f"127.0.0.1:{listen}", "--to", f"127.0.0.1:{to}",
                    "--engine", engine, "--workers", "1"]
        return Peer(name, _first_line(_output([str(binary), "--version"])), command, ours=True)
    return [peer("ringweir-uring", "io-uring"), peer("ringweir-tokio", "tokio")], None


def _output(argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout


def _first_line(text):
    first = text.strip().splitlines()[0] if text.strip() else "unknown"
    return first.removeprefix("nginx version: ").split(" - http")[0]
