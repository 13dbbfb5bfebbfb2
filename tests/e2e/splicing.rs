//! Systems that refuse to splice: sandboxes forbid splice(2), and some kernels of others do not know it for sockets.
//! strace makes this kernel one of them, from one moment on.

use std::fs;
use std::net::Shutdown;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::client::connect;
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::pattern::{DOWN, End, UP};
use crate::harness::server::Server;
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};
use crate::relay::to;

scenarios!(Welcome:
    a_stream_goes_on_in_buffers_where_the_system_refuses_to_splice,
);

/// What is sent before, and in all.
const BEFORE_BYTES: u64 = 3_000_000;
const REQUEST_BYTES: u64 = 8_000_000;
const ANSWER_BYTES: u64 = 5_000_000;

fn a_stream_goes_on_in_buffers_where_the_system_refuses_to_splice(engine: Engine) {
    let (sender, requests) = mpsc::channel();
    let server = Server::new(move |mut stream| {
        sender.send(UP.read_to_end(&mut stream)).unwrap();
        // That it went through is the client's to tell.
        let _ = DOWN.write(&mut stream, ANSWER_BYTES);
    });
    let config = format!("engine.splice = 1\n{}", to(server.address()));
    let daemon = Setup::new(engine).workers(1).start(&config);
    let figure = |path: &[&str]| number(&named(&daemon.status(), "listeners", "in")["pipes"], path);
    let delivered = || number(named(&daemon.status(), "listeners", "in"), &["bytes_up"]);
    let (mut expected_up, mut expected_refusals) = (0, 0);
    for error in ["EINVAL", "ENOSYS", "EPERM", "EOPNOTSUPP"] {
        let mut client = connect(daemon.address("in"));
        UP.write(&mut client, BEFORE_BYTES).unwrap();
        eventually(PATIENCE, "all of it has arrived", || delivered() == expected_up + BEFORE_BYTES);
        let [up, down] = ["bytes_up", "bytes_down"].map(|key| figure(&[key]));
        assert!(up > 0, "nothing was spliced");
        let Some(refusing) = Refusing::begin(&daemon, error) else { return };
        let mut offset = BEFORE_BYTES;
        while offset < REQUEST_BYTES {
            let piece = UP.at(offset, REQUEST_BYTES - offset);
            std::io::Write::write_all(&mut client, piece).unwrap();
            offset += piece.len() as u64;
        }
        client.shutdown(Shutdown::Write).unwrap();
        requests.recv_timeout(PATIENCE).unwrap().assert(REQUEST_BYTES, End::Fin);
        DOWN.read_to_end(&mut client).assert(ANSWER_BYTES, End::Fin);
        // Each direction asks once.
        expected_refusals += 2;
        assert_eq!(figure(&["refused", "unsupported"]), expected_refusals, "{error}");
        let spliced = ["bytes_up", "bytes_down"].map(|key| figure(&[key]));
        assert_eq!(spliced, [up, down], "{error}: spliced all the same");
        drop(refusing);
        expected_up += REQUEST_BYTES;
    }
}

/// Every splice(2) of a daemon fails, until this is dropped.
struct Refusing(Child);

impl Refusing {
    /// `None`, said aloud, where there is no strace or nobody may be traced.
    fn begin(daemon: &Daemon, error: &str) -> Option<Refusing> {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=splice", "-e"]).arg(format!("inject=splice:error={error}"));
        command.args(["-o", "/dev/null", "-p", &daemon.pid().to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut refusing = match child {
            Ok(child) => Refusing(child),
            Err(error) => {
                eprintln!("SKIPPED: strace is not to be had: {error}");
                return None;
            }
        };
        let mut has_ended = false;
        eventually(PATIENCE, "every thread is traced", || {
            has_ended = !matches!(refusing.0.try_wait(), Ok(None));
            has_ended || is_traced(daemon.pid())
        });
        if has_ended {
            eprintln!("SKIPPED: the daemon may not be traced");
        }
        (!has_ended).then_some(refusing)
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        // It lets go of what it traces.
        if let Some(pid) = Pid::from_raw(self.0.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

fn is_traced(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon runs");
    let is_traced = |thread: fs::DirEntry| {
        // A thread that has ended meanwhile is none.
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"))
            .is_none_or(|tracer| tracer.trim() != "0")
    };
    threads.filter_map(Result::ok).all(is_traced)
}
