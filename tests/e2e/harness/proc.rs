//! What the kernel tells about a process and its sockets.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// The unit of CPU times in /proc: USER_HZ, which is 100 on every architecture that runs Rust's standard library.
const TICK: Duration = Duration::from_millis(10);

/// Memory of the process's own, without the pages of its program file.
pub(crate) fn own_memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon is listed");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// CPU time that all threads have used.
pub(crate) fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the daemon runs");
    // The name, in parentheses, may hold spaces; user and system time are the 14th and 15th fields.
    let after_name = &stat[stat.rfind(')').expect("a name in parentheses") + 2..];
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks: u32 = [11, 12].map(|index: usize| fields[index].parse::<u32>().expect("ticks")).iter().sum();
    TICK * ticks
}

/// How many descriptors the process has open.
pub(crate) fn open_descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the daemon runs").count()
}

/// The sockets in CLOSE-WAIT that a daemon has: accepted on `listener`, or dialled to `upstream`.
pub(crate) fn close_waits(listener: u16, upstream: u16) -> usize {
    const CLOSE_WAIT: &str = "08";
    let sockets = tcp_sockets();
    let left =
        |line: &&(u16, u16, String)| line.2 == CLOSE_WAIT && (line.0 == listener || line.1 == upstream);
    sockets.iter().filter(left).count()
}

/// The local ports of the sockets that wait for an answer to their SYN from `upstream`.
pub(crate) fn connecting(upstream: u16) -> BTreeSet<u16> {
    const SYN_SENT: &str = "02";
    let waits = |line: &&(u16, u16, String)| line.1 == upstream && line.2 == SYN_SENT;
    tcp_sockets().iter().filter(waits).map(|line| line.0).collect()
}

/// Local port, remote port and state of every TCP socket of the network namespace. The kernel tells them in pieces: one
/// may be listed twice, or be missed, while others come and go.
fn tcp_sockets() -> Vec<(u16, u16, String)> {
    let mut sockets = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // Without IPv6 the second does not exist.
        let Ok(text) = fs::read_to_string(table) else { continue };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let port = |field: &str| {
                let (_, port) = field.split_once(':').expect("address:port");
                u16::from_str_radix(port, 16).expect("a port")
            };
            sockets.push((port(fields[1]), port(fields[2]), fields[3].to_owned()));
        }
    }
    sockets
}
