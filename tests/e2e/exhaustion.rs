//! Descriptors run out: quiet, patient, and back as soon as there are some again.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::client::{connect, is_served, try_echo};
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::proc::{cpu, open_descriptors};
use crate::harness::server::Server;
use crate::harness::{Engine, eventually, observe_for, scenarios};
use crate::relay::to;

scenarios!(Alone:
    a_running_daemon_survives_the_loss_of_descriptors,
    a_daemon_under_a_low_limit_serves_what_it_can,
);

/// How many clients come at once.
const CLIENTS: usize = 60;

/// How long CPU and log lines are counted.
const WINDOW: Duration = Duration::from_secs(3);

/// How soon a client is served after descriptors came back.
const BACK_WITHIN: Duration = Duration::from_secs(1);

/// No CPU and no log to speak of while nothing can be done.
fn assert_quiet(daemon: &Daemon) {
    let (cpu_before, lines_before) = (cpu(daemon.pid()), daemon.line_count());
    observe_for(WINDOW);
    let used = cpu(daemon.pid()) - cpu_before;
    let lines = daemon.line_count() - lines_before;
    assert!(used < WINDOW / 20, "{used:?} of CPU in {WINDOW:?} without descriptors");
    let most = WINDOW.as_secs() as usize + 1;
    assert!(lines <= most, "{lines} log lines in {WINDOW:?}:\n{}", daemon.text());
}

fn a_running_daemon_survives_the_loss_of_descriptors(engine: Engine) {
    let server = Server::echo();
    let mut daemon = Daemon::start(engine, &to(server.address()));
    let address = daemon.address("in");
    assert!(is_served(address));
    let idle = open_descriptors(daemon.pid());
    // Past its own account of the limit: accept(2) and socket(2) fail with EMFILE.
    daemon.limit_descriptors(idle as u64 + 20);
    let clients: Vec<TcpStream> = (0..CLIENTS).map(|_| connect(address)).collect();
    assert_quiet(&daemon);
    let open = open_descriptors(daemon.pid());
    assert!(open >= idle + 10, "{open} descriptors of {}: it served less than it could", idle + 20);

    drop(clients);
    let begin = Instant::now();
    eventually(BACK_WITHIN, "a client is served again", || is_served(address));
    assert!(begin.elapsed() <= BACK_WITHIN, "served after {:?}", begin.elapsed());
    eventually(BACK_WITHIN, "every descriptor is back", || open_descriptors(daemon.pid()) <= idle);
    assert!(daemon.is_running());
}

fn a_daemon_under_a_low_limit_serves_what_it_can(engine: Engine) {
    /// Room for the daemon itself and some sessions, and for by far not all of the clients.
    const LIMIT: u64 = 100;
    let server = Server::echo();
    let mut daemon = Setup::new(engine).workers(1).descriptors(LIMIT).start(&to(server.address()));
    let address = daemon.address("in");
    let mut clients: Vec<TcpStream> = (0..CLIENTS * 2).map(|_| connect(address)).collect();
    assert_quiet(&daemon);
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    }
    let served = clients.iter_mut().filter_map(|client| try_echo(client, b"served?").ok()).count();
    assert!(served >= 10, "only {served} of {} clients were served", clients.len());

    drop(clients);
    eventually(BACK_WITHIN, "a client is served again", || is_served(address));
    assert!(daemon.is_running());
}
