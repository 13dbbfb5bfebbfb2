//! Passive health: what real sessions meet ejects a member, without any check, and one session brings it back.

use std::io::{Read, Write};
use std::net::SocketAddr;

use crate::harness::client::{ask_name, connect, read_rest};
use crate::harness::daemon::Daemon;
use crate::harness::pattern::End;
use crate::harness::server::{self, Refuser, Server};
use crate::harness::status::{health, metric, named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    a_member_that_refuses_is_ejected_and_returns_by_one_session,
    a_member_that_resets_before_the_first_byte_is_ejected,
    an_ill_member_is_replaced_by_a_spare_that_was_probed,
);

fn config(first: SocketAddr, second: SocketAddr, passive: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"pool\"\n\
         [upstream.a]\naddress = \"{first}\"\n[upstream.b]\naddress = \"{second}\"\n\
         [group.pool]\npolicy = \"failover\"\nmembers = [\"a\", \"b\"]\n\
         passive = {{ failures = 3, {passive} }}\n"
    )
}

fn attempts(daemon: &Daemon, target: &str) -> u64 {
    number(named(&daemon.status(), "targets", target), &["attempts"])
}

fn a_member_that_refuses_is_ejected_and_returns_by_one_session(engine: Engine) {
    let (dead, server) = (Refuser::new(), Server::named(b'b'));
    let address = dead.address();
    let daemon = Daemon::start(engine, &config(address, server.address(), "eject = \"300ms\""));
    let asked = || ask_name(daemon.address("in")).map(|(name, _)| name);
    for _ in 0..3 {
        assert_eq!(asked(), Some(b'b'), "no client feels it");
    }
    eventually(PATIENCE, "a is ejected", || health(&daemon.status(), "a") == "ejected");
    assert_eq!(named(&daemon.status(), "targets", "pool")["out"]["a"]["health"], "ejected");
    drop(dead);
    let _back = Server::at(address, |mut stream| {
        let _ = stream.write_all(b"a").and_then(|()| stream.read(&mut [0]));
    });
    eventually(PATIENCE, "a serves again", || asked() == Some(b'a'));
    eventually(PATIENCE, "a has returned", || health(&daemon.status(), "a") == "unknown");
    let text = daemon.metrics();
    assert!(
        metric(&text, &["ringweir_target_events_total", "target=\"a\"", "event=\"ejected\""]) >= 1.0,
        "{text}"
    );
    let events = String::from_utf8(daemon.ask("GET", "/events").body).unwrap();
    for event in ["ejected", "trial", "returned"] {
        assert!(events.contains(&format!("\"event\":\"{event}\"")), "{events}");
    }
}

fn a_member_that_resets_before_the_first_byte_is_ejected(engine: Engine) {
    // Resets those who have said something: a reset at once may overtake the news that the connection is open.
    let bad = Server::new(|mut stream| {
        let _ = stream.read(&mut [0]);
        server::reset(stream);
    });
    let server = Server::named(b'b');
    let daemon = Daemon::start(engine, &config(bad.address(), server.address(), "eject = \"60s\""));
    for _ in 0..3 {
        let mut client = connect(daemon.address("in"));
        client.write_all(b"?").unwrap();
        assert_eq!(read_rest(&mut client), (Vec::new(), End::Reset), "a commit is a commit");
    }
    eventually(PATIENCE, "a is ejected", || health(&daemon.status(), "a") == "ejected");
    let before = attempts(&daemon, "a");
    for _ in 0..5 {
        assert_eq!(ask_name(daemon.address("in")).map(|(name, _)| name), Some(b'b'));
    }
    assert_eq!(attempts(&daemon, "a"), before);
    assert_eq!(number(named(&daemon.status(), "targets", "a"), &["early_resets"]), 3);
}

fn an_ill_member_is_replaced_by_a_spare_that_was_probed(engine: Engine) {
    let (ill, dead, server) = (Refuser::new(), Refuser::new(), Server::named(b'c'));
    let daemon = Daemon::start(
        engine,
        &format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"pool\"\n\
             [upstream.a]\naddress = \"{}\"\ncheck = \"alive\"\n[upstream.b]\naddress = \"{}\"\n\
             [upstream.c]\naddress = \"{}\"\n[upstream.d]\naddress = \"{}\"\n\
             [group.pool]\nmembers = [\"a\", \"b\", \"c\", \"d\"]\nactive = 1\n\
             [check.alive]\nschedule = [\"100ms\"]\nfall = 1\n",
            ill.address(),
            dead.address(),
            server.address(),
            dead.address(),
        ),
    );
    eventually(PATIENCE, "c has taken the place of a", || {
        let status = daemon.status();
        let pool = named(&status, "targets", "pool");
        pool["reserve"] == serde_json::json!(["a", "b", "d"]) && pool["events"]["replaced"] == 1
    });
    assert_eq!(ask_name(daemon.address("in")).map(|(name, _)| name), Some(b'c'));
    assert_eq!(attempts(&daemon, "b") + attempts(&daemon, "d"), 0, "no session met an unprobed spare");
}
