//! Socket options, as they are seen from outside.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::harness::client::{assert_echo, connect, read_rest};
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::netns::Namespace;
use crate::harness::pattern::End;
use crate::harness::server::{Server, be_patient};
use crate::harness::status::{named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    connections_come_from_the_configured_sources_in_turn,
    a_mark_chooses_the_route,
    an_interface_is_gone_through_or_not_at_all,
    clients_come_by_the_interface_of_the_listener,
    keepalive_runs_on_both_sides,
    a_client_that_says_nothing_is_not_accepted_while_accepts_are_deferred,
    the_backlog_is_as_long_as_configured,
    data_of_a_fast_open_is_served_with_the_first_packet,
    both_sides_speak_mptcp,
    busy_polling_is_of_the_io_uring_engine,
);

/// A listener before one upstream; both have more to say.
fn before(address: SocketAddr, listener: &str, upstream: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"up\"\n{listener}\n\
         [upstream.up]\naddress = \"{address}\"\n{upstream}\n"
    )
}

/// Says who came.
fn telling() -> Server {
    Server::new(|mut stream| {
        let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
        let _ = stream.write_all(peer.as_bytes());
    })
}

/// What a program says of this machine's sockets.
fn shown(program: &str, arguments: &[&str]) -> Option<String> {
    let done = match Command::new(program).args(arguments).output() {
        Ok(done) => done,
        Err(error) => {
            eprintln!("SKIPPED: {program} is not to be had: {error}");
            return None;
        }
    };
    Some(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn connections_come_from_the_configured_sources_in_turn(engine: Engine) {
    let server = telling();
    let sources = "source = [\"127.0.0.5\", \"127.0.0.6\"]";
    let daemon = Setup::new(engine).workers(1).start(&before(server.address(), "", sources));
    let ask = || String::from_utf8(read_rest(&mut connect(daemon.address("in"))).0).expect("an address");
    let mut seen: Vec<String> = (0..4).map(|_| ask()).collect();
    assert_ne!(seen[0], seen[1], "they take turns: {seen:?}");
    seen.sort();
    assert_eq!(seen, ["127.0.0.5", "127.0.0.5", "127.0.0.6", "127.0.0.6"]);
}

fn a_mark_chooses_the_route(engine: Engine) {
    let Some(namespace) = Namespace::new() else { return };
    // What bears no mark has no way to go; what does is this machine's own.
    namespace.ip(&["addr", "add", "192.0.2.1/32", "dev", "lo"]);
    namespace.ip(&["rule", "add", "pref", "5", "fwmark", "7", "lookup", "local"]);
    namespace.ip(&["rule", "add", "pref", "6", "to", "192.0.2.1", "iif", "lo", "unreachable"]);
    namespace.ip(&["rule", "add", "pref", "7", "lookup", "local"]);
    namespace.ip(&["rule", "del", "pref", "0"]);
    namespace.enter(|| {
        let server = Server::echo_at(SocketAddr::from(([192, 0, 2, 1], 7000)));
        let daemon = Daemon::start(engine, &before(server.address(), "", ""));
        assert_eq!(read_rest(&mut connect(daemon.address("in"))), (Vec::new(), End::Reset));
        let daemon = Daemon::start(engine, &before(server.address(), "", "mark = 7"));
        // The answers bear no mark: the way back is by the table of everybody.
        namespace.ip(&["rule", "del", "pref", "6"]);
        namespace.ip(&[
            "rule",
            "add",
            "pref",
            "6",
            "fwmark",
            "0",
            "to",
            "192.0.2.1",
            "iif",
            "lo",
            "lookup",
            "local",
        ]);
        assert_echo(&mut connect(daemon.address("in")), b"marked");
    });
}

fn an_interface_is_gone_through_or_not_at_all(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &before(server.address(), "", "interface = \"lo\""));
    assert_echo(&mut connect(daemon.address("in")), b"by lo");
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip(&["link", "add", "one", "type", "veth", "peer", "name", "other"]);
    namespace.ip(&["link", "set", "one", "up"]);
    namespace.ip(&["link", "set", "other", "up"]);
    namespace.enter(|| {
        let server = Server::echo();
        let daemon = Daemon::start(engine, &before(server.address(), "", "interface = \"one\""));
        let mut stream = connect(daemon.address("in"));
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        assert!(stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0; 1])).is_err());
        assert_eq!(server.accepted(), 0, "loopback is not by that interface");
    });
}

fn clients_come_by_the_interface_of_the_listener(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &before(server.address(), "interface = \"lo\"", ""));
    assert_echo(&mut connect(daemon.address("in")), b"by lo");
    let wrong = before(server.address(), "interface = \"nosuch0\"", "");
    let (code, said) = Setup::new(engine).refused(&wrong);
    assert!(code != 0 && said.contains("listener.in.interface"), "{said}");
}

fn keepalive_runs_on_both_sides(engine: Engine) {
    let server = Server::echo();
    let keepalive = "keepalive = { idle = \"90s\", interval = \"10s\", count = 3 }";
    let daemon = Daemon::start(engine, &before(server.address(), keepalive, keepalive));
    let mut stream = connect(daemon.address("in"));
    assert_echo(&mut stream, b"hello");
    let port = daemon.address("in").port();
    for filter in [format!("sport = :{port}"), format!("dport = :{}", server.port())] {
        let is_timed = || shown("ss", &["-Htno", &filter]).is_none_or(|all| all.contains("timer:(keepalive"));
        eventually(PATIENCE, "its keepalive timer runs", is_timed);
    }
}

fn a_client_that_says_nothing_is_not_accepted_while_accepts_are_deferred(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &before(server.address(), "defer_accept = \"60s\"", ""));
    let accepted = || number(named(&daemon.status(), "listeners", "in"), &["accepted"]);
    let mut silent = connect(daemon.address("in"));
    let mut speaking = connect(daemon.address("in"));
    assert_echo(&mut speaking, b"I do");
    assert_eq!(accepted(), 1, "the one that came before has said nothing");
    assert_echo(&mut silent, b"now as well");
    assert_eq!(accepted(), 2);
}

fn the_backlog_is_as_long_as_configured(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &before(server.address(), "backlog = 17", ""));
    let filter = format!("sport = :{}", daemon.address("in").port());
    let Some(all) = shown("ss", &["-Hltn", &filter]) else { return };
    assert!(!all.trim().is_empty());
    for line in all.lines() {
        // LISTEN, what waits, how much may.
        assert_eq!(line.split_whitespace().nth(2), Some("17"), "{line}");
    }
}

fn data_of_a_fast_open_is_served_with_the_first_packet(engine: Engine) {
    let Some(namespace) = Namespace::new() else { return };
    namespace.enter(|| {
        // 1 for clients, 2 for servers; the setting is the namespace's own.
        if let Err(error) = std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3") {
            eprintln!("SKIPPED: fast open cannot be switched on: {error}");
            return;
        }
        let server = Server::echo();
        let daemon = Setup::new(engine).workers(1).start(&before(server.address(), "fast_open = 64", ""));
        let address = SockAddr::from(daemon.address("in"));
        // The first brings the cookie home, the second goes with data.
        for _ in 0..3 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            let sent = socket.send_to_with_flags(b"early", &address, MSG_FASTOPEN);
            assert_eq!(sent.expect("sent"), 5);
            let mut stream: TcpStream = socket.into();
            be_patient(&stream);
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).expect("an answer");
            assert_eq!(&answer, b"early");
        }
        let counters = std::fs::read_to_string("/proc/self/net/netstat").expect("counters");
        let thread = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or(counters);
        assert!(counter(&thread, "TCPFastOpenPassive") >= 1, "none came with data:\n{thread}");
    });
}

/// `MSG_FASTOPEN` of linux/socket.h.
const MSG_FASTOPEN: i32 = 0x2000_0000;

/// One of the pairs of lines of /proc/net/netstat, the names over the numbers.
fn counter(text: &str, name: &str) -> u64 {
    let lines: Vec<&str> = text.lines().collect();
    let found = lines.chunks(2).find_map(|pair| {
        let at = pair[0].split_whitespace().position(|word| word == name)?;
        pair.get(1)?.split_whitespace().nth(at)?.parse().ok()
    });
    found.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

fn both_sides_speak_mptcp(engine: Engine) {
    const IPPROTO_MPTCP: i32 = 262;
    let Ok(listening) = Socket::new(Domain::IPV4, Type::STREAM, Some(IPPROTO_MPTCP.into())) else {
        eprintln!("SKIPPED: this machine has no MPTCP");
        return;
    };
    listening.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("bound");
    listening.listen(16).expect("listening");
    let address = listening.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    let (tell, told) = mpsc::channel();
    let acceptor = std::thread::spawn(move || {
        let (mut socket, _) = listening.accept().expect("accepted");
        let mut bytes = [0; 5];
        socket.read_exact(&mut bytes).expect("read");
        socket.write_all(&bytes).expect("written");
        let _ = tell.send(());
        let _ = socket.read(&mut bytes);
    });
    let daemon = Daemon::start(engine, &before(address, "mptcp = true", "mptcp = true"));
    let client = Socket::new(Domain::IPV4, Type::STREAM, Some(IPPROTO_MPTCP.into())).expect("a socket");
    client.connect(&SockAddr::from(daemon.address("in"))).expect("connected");
    let mut client: TcpStream = client.into();
    be_patient(&client);
    assert_echo(&mut client, b"paths");
    told.recv_timeout(PATIENCE).expect("served");
    for filter in
        [format!("sport = :{}", daemon.address("in").port()), format!("sport = :{}", address.port())]
    {
        // What fell back to TCP is no MPTCP socket there any more.
        let Some(all) = shown("ss", &["-HM", "state", "established", &filter]) else { break };
        assert!(!all.trim().is_empty(), "no MPTCP connection at {filter}");
    }
    drop(client);
    acceptor.join().expect("no panic");
}

fn busy_polling_is_of_the_io_uring_engine(engine: Engine) {
    let server = Server::echo();
    let config = before(server.address(), "", "") + "[engine]\nbusy_poll = \"50us\"\n";
    match engine {
        Engine::IoUring => {
            let daemon = Daemon::start(engine, &config);
            assert_echo(&mut connect(daemon.address("in")), b"polled");
        }
        Engine::Tokio => {
            let (code, said) = Setup::new(engine).refused(&config);
            assert!(code != 0 && said.contains("engine.busy_poll"), "{said}");
        }
    }
}
