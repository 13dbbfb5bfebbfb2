//! Our own network goes down: nobody is blamed for it.

use std::net::SocketAddr;

use crate::harness::client::{ask_name, assert_echo};
use crate::harness::daemon::{Daemon, ringweir};
use crate::harness::netns::Namespace;
use crate::harness::server::Server;
use crate::harness::status::{health, metric, named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    an_outage_of_our_own_throws_nobody_out,
    members_that_fall_silent_one_after_another_are_down,
    status_tells_speed_and_latency,
);

const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// Two servers that are not on loopback, and a daemon that checks them.
fn world(engine: Engine, namespace: &Namespace, more: &str) -> (Daemon, Vec<Server>) {
    for address in ADDRESSES {
        namespace.ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
    }
    let servers: Vec<Server> = ADDRESSES
        .iter()
        .map(|address| {
            let address: SocketAddr = format!("{address}:7000").parse().expect("an address");
            Server::echo_at(address)
        })
        .collect();
    let config = format!(
        "{more}[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n\
         [upstream.a]\naddress = \"192.0.2.1:7000\"\n[upstream.b]\naddress = \"192.0.2.2:7000\"\n\
         [group.pool]\nmembers = [\"a\", \"b\"]\ncheck = \"alive\"\n\
         [check.alive]\nschedule = [\"50ms\"]\nfall = 2\n"
    );
    let daemon = Daemon::start(engine, &config);
    for target in ["a", "b"] {
        eventually(PATIENCE, "it is up", || health(&daemon.status(), target) == "up");
    }
    (daemon, servers)
}

fn an_outage_of_our_own_throws_nobody_out(engine: Engine) {
    let Some(namespace) = Namespace::new() else { return };
    namespace.enter(|| {
        let (daemon, _servers) = world(engine, &namespace, "");
        // Both are gone between two probes: connects fail for want of a route.
        for address in ADDRESSES {
            namespace.ip(&["addr", "del", &format!("{address}/32"), "dev", "lo"]);
        }
        // Sessions notice first: whom they have ejected is let back, long before its time.
        for _ in 0..6 {
            assert!(ask_name(daemon.address("in")).is_none());
        }
        eventually(PATIENCE, "the outage is noticed", || {
            daemon.status()["outage_for_seconds"].as_f64().is_some()
        });
        let table = ringweir(&["status", "--admin", &daemon.admin()]);
        assert!(table.stdout.contains("our own network"), "{}", table.stdout);
        assert_eq!(metric(&daemon.metrics(), &["ringweir_outage "]), 1.0);
        for target in ["a", "b"] {
            eventually(PATIENCE, "it keeps its health", || health(&daemon.status(), target) == "up");
        }
        for address in ADDRESSES {
            namespace.ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        eventually(PATIENCE, "it has ended", || daemon.status()["outage_for_seconds"].is_null());
        let mut stream = crate::harness::client::connect(daemon.address("in"));
        assert_echo(&mut stream, b"served at once");
        let events = ringweir(&["events", "--admin", &daemon.admin()]).stdout;
        assert!(events.contains("outage-began") && events.contains("outage-ended"), "{events}");
        assert_eq!(number(&daemon.status(), &["outages"]), 1);
    });
}

fn members_that_fall_silent_one_after_another_are_down(engine: Engine) {
    let Some(namespace) = Namespace::new() else { return };
    namespace.enter(|| {
        let (daemon, _servers) = world(engine, &namespace, "[health]\nexcuse_outages = false\n");
        for (target, address) in ["a", "b"].iter().zip(ADDRESSES) {
            namespace.ip(&["addr", "del", &format!("{address}/32"), "dev", "lo"]);
            eventually(PATIENCE, "it is down", || health(&daemon.status(), target) == "down");
        }
        assert!(daemon.status()["outage_for_seconds"].is_null());
        assert!(ask_name(daemon.address("in")).is_none());
    });
}

fn status_tells_speed_and_latency(engine: Engine) {
    let server = Server::source(1 << 30);
    let config = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"a\"\n\
         [upstream.a]\naddress = \"{}\"\n",
        server.address()
    );
    let daemon = Daemon::start(engine, &config);
    assert!(named(&daemon.status(), "targets", "a")["latency"].is_null(), "nobody has tried it");
    let mut stream = crate::harness::client::connect(daemon.address("in"));
    let sink = std::thread::spawn(move || {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    eventually(PATIENCE, "bytes move", || {
        number(named(&daemon.status(), "targets", "a"), &["down_per_second"]) > 1000
    });
    let status = daemon.status();
    let latency = &named(&status, "targets", "a")["latency"];
    for figure in ["average_ms", "p50_ms", "p90_ms", "p99_ms"] {
        assert!(latency[figure].as_f64().is_some_and(|millis| millis < 10_000.0), "{latency}");
    }
    let table = ringweir(&["status", "--admin", &daemon.admin()]).stdout;
    assert!(table.contains("DOWN/S") && table.contains(" ms"), "{table}");
    sink.join().expect("read to the end");
}
