//! Systems that refuse io_uring, as seccomp profiles of containers and `kernel.io_uring_disabled` do, or do not know it.
//! strace makes this kernel one of them.

use crate::harness::client::{assert_echo, connect};
use crate::harness::daemon::{Daemon, Setup, ringweir};
use crate::harness::server::Server;
use crate::harness::{Company, Engine, play};
use crate::relay::to;

/// How systems refuse it, and what is said of that.
const REFUSALS: [(&str, &str); 2] =
    [("EPERM", "forbidden to this process"), ("ENOSYS", "this kernel has no io_uring")];

fn refusing(error: &str) -> Option<Setup> {
    Setup::new(Engine::IoUring).without("io_uring_setup", error)
}

#[test]
fn where_io_uring_is_refused_auto_runs_on_tokio_and_says_so() {
    play(Engine::Tokio, Company::Welcome, |_| {
        let server = Server::echo();
        for (error, word) in REFUSALS {
            let Some(setup) = refusing(error) else { return };
            let daemon: Daemon = setup.on_any_engine().start(&to(server.address()));
            assert_echo(&mut connect(daemon.address("in")), b"served");
            let line = daemon.wait_line("the refusal", |line| line.contains("io_uring is refused here"));
            assert!(line.contains("WARN") && line.contains(word), "{error}: {line}");
            assert!(line.contains("the tokio engine serves instead"), "{error}: {line}");
            assert_eq!(daemon.status()["engine"], "tokio", "{error}");
            assert!(daemon.metrics().contains("engine=\"tokio\""), "{error}");
            let table = ringweir(&["status", "--admin", &daemon.admin()]).stdout;
            assert!(table.lines().next().unwrap().contains(" on tokio, "), "{error}: {table}");
        }
    });
}

#[test]
fn who_asks_for_io_uring_where_it_is_refused_is_told_and_not_served_otherwise() {
    play(Engine::Tokio, Company::Welcome, |_| {
        let server = Server::echo();
        for (error, word) in REFUSALS {
            let Some(setup) = refusing(error) else { return };
            let (code, said) = setup.refused(&to(server.address()));
            assert_eq!(code, 1, "{error}: {said}");
            assert!(
                said.contains("the io_uring engine does not start") && said.contains(word),
                "{error}: {said}"
            );
            assert!(!said.contains("engine: tokio"), "{error}: {said}");
        }
    });
}
