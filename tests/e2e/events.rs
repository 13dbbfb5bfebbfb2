//! What happens to groups is told: whom they lead to, in the history, the metrics, the log and the status.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::client::ask_name;
use crate::harness::daemon::{Daemon, ringweir};
use crate::harness::server::Server;
use crate::harness::status::{metric, named};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    a_failover_that_switches_tells_so,
    backups_that_stand_in_are_told_of,
    a_selection_is_told_as_a_switch,
);

fn pool(addresses: &[SocketAddr], group: &str) -> String {
    let upstreams = ["a", "b", "c"].iter().zip(addresses);
    let upstreams: String =
        upstreams.map(|(name, address)| format!("[upstream.{name}]\naddress = \"{address}\"\n")).collect();
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n{upstreams}\
         [group.pool]\n{group}\n"
    )
}

/// What has happened to the group, as `event why`.
fn told(daemon: &Daemon) -> Vec<String> {
    let shown = ringweir(&["events", "--json", "--admin", &daemon.admin()]).stdout;
    let entries: Vec<Value> = serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{error}: {shown}"));
    let own = entries.iter().filter(|entry| entry["target"] == "pool");
    own.map(|entry| format!("{} {}", entry["event"].as_str().unwrap(), entry["why"].as_str().unwrap_or("")))
        .collect()
}

fn say(daemon: &Daemon, arguments: &[&str]) {
    let done = ringweir(&[arguments, &["--admin", &daemon.admin()]].concat());
    assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
}

fn a_failover_that_switches_tells_so(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let address = a.address();
    let check = "policy = \"failover\"\nmembers = [\"a\", \"b\"]\ncheck = \"alive\"\n\
                 [check.alive]\nschedule = [\"50ms\"]\nfall = 1";
    let daemon = Daemon::start(engine, &pool(&[address, b.address()], check));
    let serving = || named(&daemon.status(), "targets", "pool")["serving"].clone();
    assert_eq!(serving(), json!(["a"]));
    drop(a);
    eventually(PATIENCE, "b serves", || serving() == json!(["b"]));
    let out = named(&daemon.status(), "targets", "pool")["out"]["a"].clone();
    assert_eq!(out["health"], "down");
    let why = out["why"].as_str().expect("it is known why").to_owned();
    assert!(why.contains("refused"), "{why}");
    let table = ringweir(&["status", "--admin", &daemon.admin()]).stdout;
    assert!(table.contains("serving: b") && table.contains(&format!("a is down ({why})")), "{table}");
    let _back = Server::echo_at(address);
    eventually(PATIENCE, "a serves", || serving() == json!(["a"]));
    let told = told(&daemon);
    assert!(
        told.ends_with(&["switched from a to b".to_owned(), "switched from b to a".to_owned()]),
        "{told:?}"
    );
    let parts = ["ringweir_target_events_total", "target=\"pool\"", "event=\"switched\""];
    assert_eq!(metric(&daemon.metrics(), &parts), 2.0);
    daemon.wait_line("the switch", |line| line.contains("switched") && line.contains("from a to b"));
}

fn backups_that_stand_in_are_told_of(engine: Engine) {
    let servers = [Server::named(b'a'), Server::named(b'b')];
    let addresses = servers.each_ref().map(Server::address);
    let group = "members = [\"a\", { target = \"b\", backup = true }]";
    let daemon = Daemon::start(engine, &pool(&addresses, group));
    say(&daemon, &["disable", "a"]);
    assert_eq!(ask_name(daemon.address("in")).map(|(name, _)| name), Some(b'b'));
    say(&daemon, &["enable", "a"]);
    assert_eq!(told(&daemon), ["switched to its backups", "switched back from its backups"]);
}

fn a_selection_is_told_as_a_switch(engine: Engine) {
    let servers = [Server::named(b'a'), Server::named(b'b')];
    let addresses = servers.each_ref().map(Server::address);
    let daemon = Daemon::start(engine, &pool(&addresses, "policy = \"select\"\nmembers = [\"a\", \"b\"]"));
    say(&daemon, &["select", "pool", "b"]);
    say(&daemon, &["select", "pool", "b"]);
    assert_eq!(told(&daemon), ["switched from a to b"]);
    assert_eq!(named(&daemon.status(), "targets", "pool")["serving"], json!(["b"]));
}
