//! Network namespaces that a test makes and removes.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// An empty network of its own, with its loopback up.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// `None`, said aloud, where this machine does not let us.
    pub(crate) fn new() -> Option<Namespace> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringweir-{}-{number}", process::id());
        if let Err(error) = ip(&["netns", "add", &name]) {
            eprintln!("SKIPPED: no network namespace is to be had: {error}");
            return None;
        }
        let namespace = Namespace { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        Some(namespace)
    }

    /// Runs `ip` inside.
    #[track_caller]
    pub(crate) fn ip(&self, arguments: &[&str]) {
        let inside = [&["-n", &self.name], arguments].concat();
        ip(&inside).unwrap_or_else(|error| panic!("ip {inside:?}: {error}"));
    }

    /// Joins this one, by a link that is called `far` there, to another; each end gets the addresses of its side.
    #[track_caller]
    pub(crate) fn link(&self, other: &Namespace, far: &str, addresses: &[(&str, &str)]) {
        self.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", far, "netns", &other.name]);
        for (end, device) in [(self, "eth0"), (other, far)] {
            end.ip(&["link", "set", device, "up"]);
        }
        for (own, others) in addresses {
            for (end, device, address) in [(self, "eth0", own), (other, far, others)] {
                // Without a check for twins, which would take a second.
                let plain = ["addr", "add", address, "dev", device];
                let nodad = [&plain[..], &["nodad"]].concat();
                end.ip(if address.contains(':') { &nodad } else { &plain });
            }
        }
    }

    /// Loads rules of nftables inside; false, said aloud, where they are not to be had.
    pub(crate) fn nft(&self, rules: &str) -> bool {
        let done = Command::new("ip").args(["netns", "exec", &self.name, "nft", rules]).output();
        match done {
            Ok(done) if done.status.success() => true,
            Ok(done) => {
                eprintln!("SKIPPED: nftables refuses the rules: {}", String::from_utf8_lossy(&done.stderr));
                false
            }
            Err(error) => {
                eprintln!("SKIPPED: no nftables: {error}");
                false
            }
        }
    }

    /// Runs something inside: what it starts, threads and processes, stays there.
    pub(crate) fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace has a name");
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("moved");
                body()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let done = Command::new("ip").args(arguments).output().map_err(|error| error.to_string())?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}
