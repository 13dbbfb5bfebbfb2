"""Shadowsocks: one end of a tunnel as each peer plays it, and the far end, which is ringweir for all of them."""
from dataclasses import dataclass
from pathlib import Path

from . import install
from .scenarios import Role

LIBEV_METHODS = ("aes-256-gcm", "chacha20-ietf-poly1305")   # it knows nothing of SIP022
TIMEOUT_S = "3600"
# Peers are told --no-delay: of 16 KiB some chunks are whole segments and some not, and with Nagle's algorithm every
# exchange waits 40 ms for an acknowledgement that is delayed (1,700 exchanges a second of 20,000).
HOST = "127.0.0.1"
# Any text for SIP004; 32 bytes in base64 for SIP022. They guard nothing but loopback.
PASSWORD, KEY = "measured on loopback", "NZk1cMHlOgLxBiVzVHQWLYs9PxTVUGPbd8F6q/oVDKw="

RINGWEIR_HEAD = """\
[engine]
kind = "{engine}"
workers = {workers}

[admin]
listen = "unix:{folder}/admin.sock"

[[listener]]
name = "tunnel"
bind = "127.0.0.1:{listen}"
"""
RINGWEIR_SERVER = RINGWEIR_HEAD + """\
protocol = "shadowsocks"
method = "{method}"
password = "{password}"
target = "direct"
"""
RINGWEIR_CLIENT = RINGWEIR_HEAD + """\
protocol = "tcp"
target = "backend"

[upstream.backend]
address = "127.0.0.1:{destination}"
via = "server"

[upstream.server]
kind = "shadowsocks"
address = "127.0.0.1:{to}"
method = "{method}"
password = "{password}"
"""


@dataclass(frozen=True)
class End:
    """Which end of a tunnel a run is, and where the tunnel leads: a server is told that by its clients."""
    role: Role
    method: str
    destination: int

    @property
    def password(self):
        """What both ends share."""
        return KEY if self.method.startswith("2022-") else PASSWORD

    @property
    def other_role(self):
        """What the far end is."""
        return Role.CLIENT if self.role is Role.SERVER else Role.SERVER


def ringweir(binary, engine, run):
    """Writes ringweir's configuration for this end into the run's folder; returns its argv."""
    (run.folder / "admin.sock").unlink(missing_ok=True)
    text = RINGWEIR_SERVER if run.end.role is Role.SERVER else RINGWEIR_CLIENT
    path = run.folder / "ringweir.toml"
    path.write_text(text.format(
        engine=engine, workers=run.workers, folder=run.folder, listen=run.listen, to=run.to,
        method=run.end.method, password=run.end.password, destination=run.end.destination), encoding="ascii")
    return [str(binary), "run", "--config", str(path)]


def libev():
    """As `rust`, of shadowsocks-libev."""
    server, client = install.program("ss-server"), install.program("ss-tunnel")
    if not server or not client:
        return None, f"shadowsocks-libev is not installed: {install.line()}"

    def command(run):
        shared = ["-m", run.end.method, "-k", run.end.password, "-t", TIMEOUT_S, "--no-delay"]
        if run.end.role is Role.SERVER:
            return [server, "-s", HOST, "-p", str(run.listen), *shared]
        return [client, "-s", HOST, "-p", str(run.to), "-b", HOST, "-l", str(run.listen),
                "-L", f"{HOST}:{run.end.destination}", *shared]
    return (server, command), None


def rust(folder):
    """((a program that tells its version, argv of a run), None) of shadowsocks-rust, or (None, a sentence)."""
    server, client = (_in(folder, name) for name in ("ssserver", "sslocal"))
    if not server or not client:
        return None, "shadowsocks-rust is not installed (perf/README.md says how to get it)"

    def command(run):
        # One thread and no work-stealing runtime, as the others have it.
        shared = ["-m", run.end.method, "-k", run.end.password, "--timeout", TIMEOUT_S, "--single-threaded",
                  "--tcp-no-delay"]
        if run.end.role is Role.SERVER:
            return [server, "-s", f"{HOST}:{run.listen}", *shared]
        return [client, "-s", f"{HOST}:{run.to}", "-b", f"{HOST}:{run.listen}", "--protocol", "tunnel",
                "-f", f"{HOST}:{run.end.destination}", *shared]
    return (server, command), None


def _in(folder, name):
    if folder is None:
        return install.program(name)
    return str(Path(folder) / name) if (Path(folder) / name).exists() else None
