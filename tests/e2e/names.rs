//! Names that a name server of ours gives: every address is tried, and the one really dialled is judged.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::faults::outside;
use crate::harness::client::{assert_echo, socks_connect, socks_name};
use crate::harness::daemon::Daemon;
use crate::harness::http::http_tunnel;
use crate::harness::names::NameServer;
use crate::harness::server::{Server, spawn};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};
use crate::socks::{code_for, proxy};

scenarios!(Welcome:
    a_name_leads_to_its_address,
    every_address_of_a_name_is_tried,
    an_unknown_name_is_told,
    a_name_that_turns_local_is_refused,
    a_silent_name_server_holds_up_nobody_else,
);

fn resolver(names: &NameServer) -> String {
    format!("[resolver]\nservers = [\"{}\"]\ntimeout = \"2s\"\n", names.address())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn a_name_leads_to_its_address(engine: Engine) {
    let server = Server::echo();
    let names = NameServer::new();
    names.set("here.example", &[ip("127.0.0.1")]);
    let daemon = Daemon::start(engine, &(resolver(&names) + &proxy("mixed")));
    let (reply, mut client) = socks_connect(daemon.address("in"), &socks_name("here.example"), server.port());
    assert_eq!(reply.code, 0);
    assert_echo(&mut client, b"by name");
    let authority = format!("HERE.example:{}", server.port());
    assert_echo(&mut http_tunnel(daemon.address("in"), &authority).unwrap(), b"by name");
}

fn every_address_of_a_name_is_tried(engine: Engine) {
    let server = Server::echo();
    let names = NameServer::new();
    // Of these only the last has a server; the others refuse.
    let many = ["::1", "127.0.0.2", "127.0.0.3", "127.0.0.1"].map(ip);
    names.set("many.example", &many);
    let daemon = Daemon::start(engine, &(resolver(&names) + &proxy("socks5")));
    let (reply, mut client) = socks_connect(daemon.address("in"), &socks_name("many.example"), server.port());
    assert_eq!(reply.code, 0);
    assert_echo(&mut client, b"by the last");
}

fn an_unknown_name_is_told(engine: Engine) {
    let names = NameServer::new();
    names.set("empty.example", &[]);
    let daemon = Daemon::start(engine, &(resolver(&names) + &proxy("mixed")));
    let address = daemon.address("in");
    for name in ["unknown.example", "empty.example"] {
        assert_eq!(code_for(address, &socks_name(name), 80), 4, "{name}");
        assert_eq!(http_tunnel(address, &format!("{name}:80")).err(), Some(502), "{name}");
    }
}

fn a_name_that_turns_local_is_refused(engine: Engine) {
    const ALLOWED: &str = "127.0.0.5";
    let names = NameServer::new();
    let forbidden = Server::echo();
    let allowed = Server::echo_at(SocketAddr::new(ip(ALLOWED), forbidden.port()));
    let config = resolver(&names) + &outside(&format!("allow_local = [\"{ALLOWED}/32\"]"));
    let daemon = Daemon::start(engine, &config);
    let ask = |name: &str| code_for(daemon.address("in"), &socks_name(name), allowed.port());
    for (index, local) in ["127.0.0.1", "::ffff:127.0.0.1", "::1", "169.254.169.254"].iter().enumerate() {
        let name = format!("turncoat-{index}.example");
        names.set(&name, &[ip(ALLOWED)]);
        assert_eq!(ask(&name), 0, "{name} is harmless at first");
        names.set(&name, &[ip(local)]);
        // The answer had a time-to-live of zero; a resolver may keep it for a moment all the same.
        eventually(PATIENCE, &format!("{name} is refused at {local}"), || ask(&name) == 2);
        // Both at once: the harmless one is dialled, the other never.
        names.set(&format!("both-{index}.example"), &[ip(local), ip(ALLOWED)]);
        assert_eq!(ask(&format!("both-{index}.example")), 0);
    }
    assert_eq!(forbidden.accepted(), 0);
}

fn a_silent_name_server_holds_up_nobody_else(engine: Engine) {
    let server = Server::echo();
    // Bound and never read.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let resolver = format!(
        "[resolver]\nservers = [\"{}\"]\ntimeout = \"1s\"\n[timeouts]\nconnect = \"2s\"\n",
        silent.local_addr().unwrap()
    );
    let daemon = Daemon::start(engine, &(resolver + &proxy("socks5")));
    let (address, port) = (daemon.address("in"), server.port());
    let begin = Instant::now();
    let waiting = spawn(move || code_for(address, &socks_name("slow.example"), port));
    for _ in 0..20 {
        assert_echo(&mut crate::harness::client::socks_tunnel(address, server.address()), b"not held up");
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?} for 20 exchanges", begin.elapsed());
    assert_eq!(waiting.join().unwrap(), 4);
    assert!(begin.elapsed() < Duration::from_secs(4), "given up after {:?}", begin.elapsed());
}
