//! Programs that others wrote, as servers and proxies behind the daemon.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::daemon::free_port;
use super::{PATIENCE, eventually};

/// A program in the foreground at a port of its own; killed when it is dropped.
pub(crate) struct Peer {
    child: Option<Child>,
    command: Command,
    address: SocketAddr,
    folder: PathBuf,
}

impl Peer {
    /// nginx, which answers every request with this name.
    pub(crate) fn nginx(name: &str) -> Option<Peer> {
        let (address, folder) = (free_address(), folder("nginx"));
        let path = folder.display();
        let config = format!(
            "daemon off; master_process off; pid {path}/pid; error_log {path}/error.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
             fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;\n\
             server {{ listen {address} reuseport; location / {{ return 200 \"{name}\"; }} }} }}\n"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, config).expect("write its configuration");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&folder).arg("-e").arg(folder.join("error.log")).arg("-c").arg(file);
        Peer::start(command, address, folder)
    }

    /// microsocks, open to everybody.
    pub(crate) fn microsocks() -> Option<Peer> {
        let address = free_address();
        let mut command = Command::new("microsocks");
        command.args(["-i", "127.0.0.1", "-p", &address.port().to_string()]);
        Peer::start(command, address, folder("microsocks"))
    }

    /// Dante, open to everybody.
    pub(crate) fn dante() -> Option<Peer> {
        let (address, folder) = (free_address(), folder("dante"));
        let config = format!(
            "logoutput: {}/log\ninternal: 127.0.0.1 port = {}\nexternal: lo\nsocksmethod: none\n\
             clientmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\n\
             client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\nsocks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n",
            folder.display(),
            address.port()
        );
        let file = folder.join("danted.conf");
        fs::write(&file, config).expect("write its configuration");
        let mut command = Command::new("danted");
        command.arg("-f").arg(file).arg("-p").arg(folder.join("pid")).args(["-N", "1"]);
        Peer::start(command, address, folder)
    }

    /// `None`, said aloud, where it is not installed.
    fn start(mut command: Command, address: SocketAddr, folder: PathBuf) -> Option<Peer> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut peer = Peer { child: None, command, address, folder };
        if let Err(error) = peer.try_revive() {
            eprintln!("SKIPPED: {:?} is not to be had: {error}", peer.command.get_program());
            return None;
        }
        Some(peer)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it as a crash does, its children as well.
    pub(crate) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let children = fs::read_to_string(children).unwrap_or_default();
        let _ = child.kill();
        let _ = child.wait();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        eventually(PATIENCE, "nobody listens there", || TcpStream::connect(self.address).is_err());
    }

    /// Starts it again where it was.
    pub(crate) fn revive(&mut self) {
        self.try_revive().unwrap_or_else(|error| panic!("{:?}: {error}", self.command));
    }

    fn try_revive(&mut self) -> std::io::Result<()> {
        let mut child = self.command.spawn()?;
        eventually(PATIENCE, "it listens", || {
            assert!(matches!(child.try_wait(), Ok(None)), "{:?} has ended", self.command);
            TcpStream::connect(self.address).is_ok()
        });
        self.child = Some(child);
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn folder(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(&std::env::temp_dir()).join(format!("{name}-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    folder
}
