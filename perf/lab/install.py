"""What the lab needs from Debian: said always, installed when asked for."""
import os
import shutil
import subprocess

from .procs import LabError

# Program, the folders beside PATH where Debian puts it, package.
PROGRAMS = (("nginx", "nginx"), ("haproxy", "haproxy"), ("iperf3", "iperf3"), ("wrk", "wrk"),
            ("ss-server", "shadowsocks-libev"))
NGINX_STREAM_PACKAGE = "libnginx-mod-stream"
PACKAGES = ("nginx", NGINX_STREAM_PACKAGE, "haproxy", "iperf3", "wrk", "shadowsocks-libev")
INSTALL = ("apt-get", "install", "-y", "--no-install-recommends")
# Packages that would start a service of their own, which nobody asked for here.
SERVICES = ("nginx", "haproxy", "shadowsocks-libev")
SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", os.path.expanduser("~/.cargo/bin"))


def program(name):
    """The path of a program in PATH or where such things lie beside it, or None."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(SYSTEM_FOLDERS))


def line(packages=PACKAGES):
    """The command that installs them."""
    return " ".join((*INSTALL, *packages))


def install():
    """Installs what is missing. As anybody but root: says what root would run, as an error."""
    missing = _missing()
    if not missing:
        print("nothing to install: " + ", ".join(PACKAGES) + " are there")
        return
    if os.geteuid() != 0:
        raise LabError(f"installing needs root; run: sudo {line(missing)}")
    if not shutil.which("apt-get"):
        raise LabError("there is no apt-get here; install by your system's means: " + ", ".join(missing))
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    if not _apt(("apt-get", "update", "-q"), environment) or not _apt((*INSTALL, *missing), environment):
        raise LabError(f"this failed: {line(missing)}")
    for service in SERVICES:
        if service in missing and os.path.isdir("/run/systemd/system"):
            subprocess.run(["systemctl", "disable", "--now", service], check=False)


def _apt(argv, environment):
    print("$", " ".join(argv), flush=True)
    return subprocess.run(argv, env=environment, check=False).returncode == 0


def _missing():
    missing = [package for name, package in PROGRAMS if program(name) is None]
    if not _is_installed(NGINX_STREAM_PACKAGE):
        missing.append(NGINX_STREAM_PACKAGE)
    return missing


def _is_installed(package):
    if not shutil.which("dpkg-query"):
        return False
    done = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", package],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout == "installed"
