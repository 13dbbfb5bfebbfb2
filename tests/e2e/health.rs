//! Health checks: members go down and come back, and clients feel only what they must.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::harness::client::{ask_name, connect, is_served, read_rest, socks_connect, socks_ip};
use crate::harness::daemon::Daemon;
use crate::harness::http::http_tunnel;
use crate::harness::pattern::End;
use crate::harness::server::{Refuser, Server};
use crate::harness::status::{health, metric, named, number};
use crate::harness::{Engine, PATIENCE, eventually, observe_for, scenarios};

scenarios!(Welcome:
    a_member_that_is_down_is_not_tried,
    a_check_of_a_group_is_for_its_members_unless_they_name_their_own,
    running_sessions_outlive_their_targets_health,
);

mod alone {
    use super::*;
    scenarios!(Alone:
        all_members_down_refuse_at_once_and_come_back_within_an_interval,
        checks_carry_jitter,
    );
}

/// A group of two with checks every `every`.
fn pool(first: SocketAddr, second: SocketAddr, every: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"pool\"\n\
         [[listener]]\nname = \"proxy\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"pool\"\n\
         [upstream.a]\naddress = \"{first}\"\n[upstream.b]\naddress = \"{second}\"\n\
         [group.pool]\npolicy = \"failover\"\nmembers = [\"a\", \"b\"]\ncheck = \"alive\"\n\
         [check.alive]\nkind = \"tcp\"\nschedule = [\"{every}\"]\ntimeout = \"1s\"\nfall = 2\nrise = 1\n"
    )
}

fn becomes(daemon: &Daemon, target: &str, expected: &str) {
    eventually(PATIENCE, &format!("{target} is {expected}"), || health(&daemon.status(), target) == expected);
}

fn a_member_that_is_down_is_not_tried(engine: Engine) {
    let (dead, server) = (Refuser::new(), Server::named(b'b'));
    let daemon = Daemon::start(engine, &pool(dead.address(), server.address(), "100ms"));
    becomes(&daemon, "a", "down");
    becomes(&daemon, "b", "up");
    assert_eq!(health(&daemon.status(), "pool"), "up");
    let attempts = number(named(&daemon.status(), "targets", "a"), &["attempts"]);
    for _ in 0..10 {
        assert_eq!(ask_name(daemon.address("in")).map(|(name, _)| name), Some(b'b'));
    }
    assert_eq!(number(named(&daemon.status(), "targets", "a"), &["attempts"]), attempts);
    let text = daemon.metrics();
    assert_eq!(metric(&text, &["ringweir_target_up", "target=\"b\""]), 1.0, "{text}");
    assert_eq!(metric(&text, &["ringweir_target_up", "target=\"a\""]), 0.0, "{text}");
}

fn a_check_of_a_group_is_for_its_members_unless_they_name_their_own(engine: Engine) {
    let (dead, other) = (Refuser::new(), Refuser::new());
    // `b` names a check that will not speak for a minute; `a` gets the group's, through a nested group.
    let config = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"pool\"\n\
         [upstream.a]\naddress = \"{}\"\n[upstream.b]\naddress = \"{}\"\ncheck = \"slow\"\n\
         [group.inner]\nmembers = [\"a\"]\n\
         [group.pool]\nmembers = [\"inner\", \"b\"]\ncheck = \"quick\"\n\
         [check.quick]\nkind = \"tcp\"\nschedule = [\"100ms\"]\nfall = 1\n\
         [check.slow]\nkind = \"tcp\"\nschedule = [\"60s\"]\nfall = 5\n",
        dead.address(),
        other.address()
    );
    let daemon = Daemon::start(engine, &config);
    becomes(&daemon, "a", "down");
    assert_eq!(health(&daemon.status(), "inner"), "down", "a group follows its members");
    assert_ne!(health(&daemon.status(), "b"), "down");
}

fn running_sessions_outlive_their_targets_health(engine: Engine) {
    let first = Server::named(b'a');
    let spare = Refuser::new();
    let daemon = Daemon::start(engine, &pool(first.address(), spare.address(), "100ms"));
    becomes(&daemon, "a", "up");
    let (_, mut client) = ask_name(daemon.address("in")).expect("served");
    // Stops listening; its open connections live on.
    drop(first);
    becomes(&daemon, "a", "down");
    crate::harness::client::assert_echo(&mut client, b"still here");
}

fn all_members_down_refuse_at_once_and_come_back_within_an_interval(engine: Engine) {
    const INTERVAL: Duration = Duration::from_millis(500);
    let (first, second) = (Server::echo(), Server::echo());
    let (first_address, second_address) = (first.address(), second.address());
    let daemon = Daemon::start(engine, &pool(first_address, second_address, "500ms"));
    becomes(&daemon, "a", "up");
    becomes(&daemon, "b", "up");
    drop((first, second));
    becomes(&daemon, "a", "down");
    becomes(&daemon, "b", "down");
    assert_eq!(health(&daemon.status(), "pool"), "down");

    let begin = Instant::now();
    assert_eq!(read_rest(&mut connect(daemon.address("in"))), (Vec::new(), End::Reset));
    let (reply, _client) = socks_connect(daemon.address("proxy"), &socks_ip([192, 0, 2, 1].into()), 80);
    assert_eq!(reply.code, 1);
    assert_eq!(http_tunnel(daemon.address("proxy"), "192.0.2.1:80").err(), Some(503));
    assert!(begin.elapsed() < Duration::from_millis(200), "refused only after {:?}", begin.elapsed());
    let closed = number(named(&daemon.status(), "listeners", "in"), &["closed", "no-target"]);
    assert_eq!(closed, 1);

    let _back = Server::echo_at(second_address);
    // One interval with its jitter, and a moment for the probe and the new snapshot.
    let within = INTERVAL * 5 / 4 + Duration::from_millis(250);
    eventually(within, "clients are served again", || is_served(daemon.address("in")));
}

fn checks_carry_jitter(engine: Engine) {
    const PROBES: usize = 12;
    let (server, other) = (Server::echo(), Server::echo());
    let _daemon = Daemon::start(engine, &pool(server.address(), other.address(), "200ms"));
    eventually(PATIENCE, "some probes have come", || {
        observe_for(Duration::from_millis(50));
        server.accepted() >= PROBES && other.accepted() >= PROBES
    });
    let gaps = |server: &Server| -> Vec<Duration> {
        server.accepted_at().windows(2).map(|pair| pair[1] - pair[0]).collect()
    };
    for gaps in [gaps(&server), gaps(&other)] {
        let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
        assert!(*most < Duration::from_millis(400), "{gaps:?}");
        assert!(*most - *least > Duration::from_millis(4), "in lockstep: {gaps:?}");
    }
}
