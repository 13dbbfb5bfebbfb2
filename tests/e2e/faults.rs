//! What peers and networks do to a forwarder: silence, floods, refusals, black holes, clients that vanish.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::client::{
    SOCKS_WELCOME, assert_echo, connect, ends, is_served, read_bytes, read_rest, read_socks_reply,
    socks_connect, socks_greet, socks_ip, socks_name, socks_request_to, socks_tunnel, try_echo,
};
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::http::http_tunnel;
use crate::harness::pattern::{DOWN, End, UP};
use crate::harness::proc::{close_waits, open_descriptors, own_memory_kib};
use crate::harness::server::{self, BlackHole, Refuser, Server};
use crate::harness::status::{metric, named, number};
use crate::harness::{Engine, PATIENCE, assert_took, eventually, scenarios};
use crate::relay::to;
use crate::socks::{code_for, proxy};

scenarios!(Welcome:
    the_next_member_is_tried_when_one_refuses,
    a_tcp_client_is_reset_when_nobody_is_left,
    an_outside_client_cannot_reach_local_addresses,
    an_outside_client_reaches_what_is_allowed,
    a_client_outside_the_allowed_networks_is_not_served,
    a_client_that_leaves_during_the_dial_ends_it,
);

mod alone {
    use super::*;
    scenarios!(Alone:
        silent_clients_are_closed_at_the_handshake_timeout,
        a_flood_of_connects_leaves_nothing_behind,
        ended_sessions_cost_no_memory,
        a_black_hole_is_given_up_at_the_connect_timeout,
    );
}

fn silent_clients_are_closed_at_the_handshake_timeout(engine: Engine) {
    const SILENT: usize = 500;
    const TIMEOUT: Duration = Duration::from_secs(3);
    let server = Server::echo();
    let daemon = Daemon::start(engine, &format!("[timeouts]\nhandshake = \"3s\"\n{}", proxy("mixed")));
    let address = daemon.address("in");
    let begin = Instant::now();
    let halves: [&[u8]; 6] = [b"", &[5], &[5, 1], &[5, 1, 0], b"C", b"CONNECT a:1 HTTP/1.1\r\nHost: "];
    let clients: Vec<TcpStream> = (0..SILENT)
        .map(|index| {
            let mut client = connect(address);
            client.write_all(halves[index % halves.len()]).unwrap();
            if index % halves.len() == 3 {
                // A greeting that is complete is answered, and the rest awaited.
                assert_eq!(read_bytes(&mut client, 2), SOCKS_WELCOME);
            }
            client
        })
        .collect();
    assert!(begin.elapsed() < Duration::from_secs(1), "{SILENT} connects took {:?}", begin.elapsed());
    for _ in 0..5 {
        let valid = Instant::now();
        assert_echo(&mut socks_tunnel(address, server.address()), b"valid");
        assert!(valid.elapsed() < Duration::from_millis(100), "a valid client waited {:?}", valid.elapsed());
    }
    let slack = Duration::from_secs(1);
    for ended in ends(&clients, begin, TIMEOUT + slack * 3) {
        assert_took(ended.expect("a silent client is still open"), TIMEOUT, slack);
    }
    let closed = || number(named(&daemon.status(), "listeners", "in"), &["closed", "handshake-timeout"]);
    eventually(PATIENCE, "all are counted", || closed() == SILENT as u64);
}

/// One after the other, half of them reset, some in the middle of a write that nobody reads.
fn flood(listener: SocketAddr, connects: usize) {
    for index in 0..connects {
        let mut client = connect(listener);
        match index % 4 {
            0 => drop(client),
            1 => server::reset(client),
            2 => assert!(try_echo(&mut client, b"a whole exchange").is_ok()),
            _ => {
                client.set_nonblocking(true).unwrap();
                // As much as goes in at once.
                let _ = client.write(UP.head(256 * 1024));
                server::reset(client);
            }
        }
    }
}

fn a_flood_of_connects_leaves_nothing_behind(engine: Engine) {
    let server = Server::echo();
    let mut daemon = Setup::new(engine).workers(1).start(&to(server.address()));
    let (listener, pid) = (daemon.address("in"), daemon.pid());
    let active = || number(named(&daemon.status(), "listeners", "in"), &["active"]);
    // Until every buffer of the pool that such clients ever fill has been filled.
    flood(listener, 4000);
    eventually(PATIENCE, "the warm sessions have ended", || active() == 0);
    let descriptors = open_descriptors(pid);

    let within = Duration::from_secs(2);
    let growth_kib = || {
        let memory_kib = own_memory_kib(pid);
        flood(listener, 10_000);
        eventually(within, "no socket is left in CLOSE-WAIT", || {
            close_waits(listener.port(), server.port()) == 0
        });
        eventually(within, "descriptors are back", || open_descriptors(pid) <= descriptors);
        eventually(within, "no session is left", || active() == 0);
        own_memory_kib(pid).saturating_sub(memory_kib)
    };
    // On a busy machine a flood may have more sessions at once than any before, and the pools grow with that; what leaks
    // grows with every flood.
    let growths = [(); 3].map(|()| growth_kib());
    let least_kib = growths.into_iter().min().unwrap_or(0);
    assert!(least_kib <= 1024, "every flood costs memory: {growths:?} KiB");
    assert!(daemon.is_running() && is_served(listener));
}

fn ended_sessions_cost_no_memory(engine: Engine) {
    const SESSIONS: usize = 12_000;
    const GROWTH_KIB: u64 = 128;
    let server = Server::echo();
    let daemon = Setup::new(engine).workers(1).start(&to(server.address()));
    let address = daemon.address("in");
    let serve = |sessions: usize| (0..sessions).for_each(|_| assert!(is_served(address)));
    serve(SESSIONS / 4);
    let before_kib = own_memory_kib(daemon.pid());
    serve(SESSIONS);
    // Nothing may wait for the end of a timeout, an hour here, to be freed.
    let growth_kib = own_memory_kib(daemon.pid()).saturating_sub(before_kib);
    assert!(growth_kib <= GROWTH_KIB, "{growth_kib} KiB more after {SESSIONS} sessions, one after the other");
}

fn a_black_hole_is_given_up_at_the_connect_timeout(engine: Engine) {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let slack = TIMEOUT / 10;
    let hole = BlackHole::new();
    let config = format!("[timeouts]\nconnect = \"2s\"\n{}{}", proxy("mixed"), {
        to(hole.address()).replace("\"in\"", "\"tcp\"")
    });
    let daemon = Daemon::start(engine, &config);
    let begin = Instant::now();
    let (reply, _client) =
        socks_connect(daemon.address("in"), &socks_ip(hole.address().ip()), hole.address().port());
    assert_took(begin.elapsed(), TIMEOUT, slack);
    assert_eq!(reply.code, 4, "host unreachable, as RFC 1928 can say it");

    let begin = Instant::now();
    assert_eq!(http_tunnel(daemon.address("in"), &hole.address().to_string()).err(), Some(504));
    assert_took(begin.elapsed(), TIMEOUT, slack);

    let begin = Instant::now();
    assert_eq!(read_rest(&mut connect(daemon.address("tcp"))), (Vec::new(), End::Reset));
    assert_took(begin.elapsed(), TIMEOUT, slack);
    let failed = || number(named(&daemon.status(), "targets", "up"), &["failed", "timed-out"]);
    eventually(PATIENCE, "it is counted", || failed() == 1);
}

fn the_next_member_is_tried_when_one_refuses(engine: Engine) {
    const SESSIONS: usize = 20;
    let (dead, server) = (Refuser::new(), Server::echo());
    let config = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"pool\"\n\
         [upstream.dead]\naddress = \"{}\"\n[upstream.live]\naddress = \"{}\"\n\
         [group.pool]\npolicy = \"round-robin\"\nmembers = [\"dead\", \"live\"]\npassive = false\n",
        dead.address(),
        server.address()
    );
    let daemon = Setup::new(engine).workers(1).start(&config);
    for _ in 0..SESSIONS {
        assert_echo(&mut connect(daemon.address("in")), b"served all the same");
    }
    let status = daemon.status();
    // Every other session met the dead member first.
    let refused = number(named(&status, "targets", "dead"), &["failed", "refused"]);
    assert_eq!(refused, SESSIONS as u64 / 2);
    assert_eq!(number(named(&status, "targets", "live"), &["committed"]), SESSIONS as u64);
    let text = daemon.metrics();
    assert_eq!(metric(&text, &["ringweir_", "target=\"dead\"", "refused"]), SESSIONS as f64 / 2.0, "{text}");
}

fn a_tcp_client_is_reset_when_nobody_is_left(engine: Engine) {
    let (one, other) = (Refuser::new(), Refuser::new());
    let config = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"pool\"\n\
         [upstream.one]\naddress = \"{}\"\n[upstream.other]\naddress = \"{}\"\n\
         [group.pool]\nmembers = [\"one\", \"other\"]\n",
        one.address(),
        other.address()
    );
    let daemon = Daemon::start(engine, &config);
    assert_eq!(read_rest(&mut connect(daemon.address("in"))), (Vec::new(), End::Reset));
    let status = daemon.status();
    for member in ["one", "other"] {
        assert_eq!(number(named(&status, "targets", member), &["failed", "refused"]), 1, "{member}");
    }
    assert_eq!(number(named(&status, "listeners", "in"), &["closed", "connect-failed"]), 1);
}

/// A listener that is not on loopback alone; its clients count as outsiders, whatever their address.
pub(crate) fn outside(more: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"0.0.0.0:0\"\nprotocol = \"mixed\"\ntarget = \"direct\"\n\
         allow = [\"127.0.0.0/8\"]\n{more}\n"
    )
}

fn an_outside_client_cannot_reach_local_addresses(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &outside(""));
    let (address, port) = (daemon.address("in"), server.port());
    let literals =
        ["127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1"];
    for literal in literals {
        let ip: IpAddr = literal.parse().unwrap();
        assert_eq!(code_for(address, &socks_ip(ip), port), 2, "{literal}");
        assert_eq!(code_for(address, &socks_name(literal), port), 2, "{literal} as text");
        let authority = SocketAddr::new(ip, port).to_string();
        assert_eq!(http_tunnel(address, &authority).err(), Some(403), "{authority}");
    }
    assert_eq!(code_for(address, &socks_name("localhost"), port), 2);
    assert_eq!(http_tunnel(address, &format!("localhost:{port}")).err(), Some(403));
    assert_eq!(server.accepted(), 0, "nothing was dialled");
}

fn an_outside_client_reaches_what_is_allowed(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &outside("allow_local = [\"127.0.0.0/8\"]"));
    let address = daemon.address("in");
    assert_echo(&mut socks_tunnel(address, server.address()), b"allowed");
    assert_echo(&mut http_tunnel(address, &server.address().to_string()).unwrap(), b"allowed");
    assert_eq!(code_for(address, &socks_name("localhost"), server.port()), 0);
    let metadata: IpAddr = "169.254.169.254".parse().unwrap();
    assert_eq!(code_for(address, &socks_ip(metadata), 80), 2, "the rest stays closed");
}

fn a_client_outside_the_allowed_networks_is_not_served(engine: Engine) {
    let server = Server::echo();
    let networks =
        |allow: &str| to(server.address()).replacen("target", &format!("allow = [{allow}]\ntarget"), 1);
    let daemon = Daemon::start(engine, &networks("\"10.0.0.0/8\", \"::1/128\""));
    let mut client = connect(daemon.address("in"));
    let said = client.write_all(b"let me in");
    let (bytes, end) = read_rest(&mut client);
    // Whichever comes to it first is told of the reset, and the other is not.
    assert!(bytes.is_empty() && (end == End::Reset || said.is_err()), "{said:?} {bytes:?} {end:?}");
    assert_eq!(server.accepted(), 0);
    assert_eq!(number(named(&daemon.status(), "listeners", "in"), &["closed", "client-not-allowed"]), 1);
    let daemon = Daemon::start(engine, &networks("\"10.0.0.0/8\", \"127.0.0.0/8\""));
    assert!(is_served(daemon.address("in")));
}

fn a_client_that_leaves_during_the_dial_ends_it(engine: Engine) {
    let hole = BlackHole::new();
    let daemon = Daemon::start(engine, &format!("[timeouts]\nconnect = \"60s\"\n{}", proxy("socks5")));
    let mut client = socks_greet(daemon.address("in"));
    client.write_all(&socks_request_to(hole.address())).unwrap();
    eventually(PATIENCE, "the dial is under way", || hole.is_dialled());
    server::reset(client);
    eventually(Duration::from_secs(1), "the dial is given up", || !hole.is_dialled());
    let closed = || number(named(&daemon.status(), "listeners", "in"), &["closed", "client-reset"]);
    eventually(PATIENCE, "it is counted", || closed() == 1);
    assert_eq!(number(named(&daemon.status(), "targets", "direct"), &["abandoned"]), 1);

    // One that only ends its side still wants its answer.
    let source = Server::source(1000);
    let mut client = socks_greet(daemon.address("in"));
    client.write_all(&socks_request_to(source.address())).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_socks_reply(&mut client).code, 0);
    DOWN.read_to_end(&mut client).assert(1000, End::Fin);
}
