//! SOCKS5 listeners, and what shares a port with them: fragments, joined messages, refusals, honest replies.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::harness::client::{
    SOCKS_GREETING, SOCKS_WELCOME, assert_closed, assert_echo, connect, read_bytes, read_rest,
    read_socks_reply, socks_connect, socks_greet, socks_name, socks_request, socks_request_to, socks_tunnel,
};
use crate::harness::daemon::Daemon;
use crate::harness::http::http_tunnel;
use crate::harness::pattern::{End, UP};
use crate::harness::server::{Refuser, Server};
use crate::harness::status::{metric, named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    a_handshake_byte_by_byte_succeeds,
    greeting_request_and_payload_in_one_segment_succeed,
    a_big_payload_behind_the_request_arrives,
    the_reply_names_the_address_dialled_from,
    names_are_resolved_here,
    a_refused_destination_is_told_as_refused,
    a_bad_version_ends_the_connection,
    no_acceptable_method_is_told,
    unsupported_commands_are_told,
    a_bad_address_type_is_told,
    bad_names_are_refused,
    garbage_never_hurts,
    mixed_speaks_both_on_one_port,
    a_rejecting_target_refuses_by_its_rules,
    socks4_and_4a_are_spoken_where_socks_or_mixed_listens,
    socks4_is_told_the_truth,
);

/// A listener called `in` without users, dialling directly.
pub(crate) fn proxy(protocol: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"{protocol}\"\ntarget = \"direct\"\n"
    )
}

fn a_handshake_byte_by_byte_succeeds(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("socks5"));
    let mut client = connect(daemon.address("in"));
    // Every byte is a segment of its own: TCP_NODELAY is set.
    for byte in SOCKS_GREETING {
        client.write_all(&[*byte]).unwrap();
    }
    assert_eq!(read_bytes(&mut client, 2), SOCKS_WELCOME);
    for byte in socks_request_to(server.address()) {
        client.write_all(&[byte]).unwrap();
    }
    assert_eq!(read_socks_reply(&mut client).code, 0);
    for byte in b"payload" {
        client.write_all(&[*byte]).unwrap();
    }
    assert_eq!(read_bytes(&mut client, 7), b"payload");
}

fn greeting_request_and_payload_in_one_segment_succeed(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("socks5"));
    let mut client = connect(daemon.address("in"));
    let joined = [SOCKS_GREETING, &socks_request_to(server.address()), b"payload"].concat();
    client.write_all(&joined).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_bytes(&mut client, 2), SOCKS_WELCOME);
    assert_eq!(read_socks_reply(&mut client).code, 0);
    assert_eq!(read_rest(&mut client), (b"payload".to_vec(), End::Fin));
}

fn a_big_payload_behind_the_request_arrives(engine: Engine) {
    const BYTES: u64 = 2_000_000;
    let (server, receipts) = Server::sink();
    let daemon = Daemon::start(engine, &proxy("socks5"));
    let mut client = connect(daemon.address("in"));
    client.write_all(&[SOCKS_GREETING, &socks_request_to(server.address())].concat()).unwrap();
    // Much more than a daemon may hold while it dials, and nothing is awaited.
    UP.write(&mut client, BYTES).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    receipts.recv_timeout(PATIENCE).unwrap().assert(BYTES, End::Fin);
}

fn the_reply_names_the_address_dialled_from(engine: Engine) {
    let server = Server::new(|mut stream| {
        let peer = stream.peer_addr().unwrap().to_string();
        stream.write_all(peer.as_bytes()).unwrap();
    });
    let daemon = Daemon::start(engine, &proxy("socks5"));
    let mut client = socks_greet(daemon.address("in"));
    client.write_all(&socks_request_to(server.address())).unwrap();
    let reply = read_socks_reply(&mut client);
    assert_eq!(reply.code, 0);
    let (seen, end) = read_rest(&mut client);
    assert_eq!((String::from_utf8(seen).unwrap(), end), (reply.bound.to_string(), End::Fin));
}

fn names_are_resolved_here(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("socks5"));
    // `localhost` may give ::1 first, where nobody listens: the next address is tried.
    let (reply, mut client) = socks_connect(daemon.address("in"), &socks_name("localhost"), server.port());
    assert_eq!(reply.code, 0);
    assert_echo(&mut client, b"by name");
    // An address in the clothes of a name needs no resolving.
    let (reply, mut client) = socks_connect(daemon.address("in"), &socks_name("127.0.0.1"), server.port());
    assert_eq!(reply.code, 0);
    assert_echo(&mut client, b"by text");
}

fn a_refused_destination_is_told_as_refused(engine: Engine) {
    let refuser = Refuser::new();
    let daemon = Daemon::start(engine, &proxy("socks5"));
    for _ in 0..3 {
        let mut client = socks_greet(daemon.address("in"));
        client.write_all(&socks_request_to(refuser.address())).unwrap();
        assert_eq!(read_socks_reply(&mut client).code, 5);
        assert_closed(&mut client);
    }
    let failed = || number(named(&daemon.status(), "targets", "direct"), &["failed", "refused"]);
    eventually(PATIENCE, "the refusals are counted in the status", || failed() == 3);
    let text = daemon.metrics();
    assert!(metric(&text, &["ringweir_", "target=\"direct\"", "refused"]) >= 3.0, "{text}");
}

fn a_bad_version_ends_the_connection(engine: Engine) {
    let daemon = Daemon::start(engine, &proxy("socks5"));
    for version in [0, 4, 6, b'G', 0xff] {
        let mut client = connect(daemon.address("in"));
        client.write_all(&[version, 1, 0]).unwrap();
        assert_closed(&mut client);
    }
    // And in the request.
    let mut client = socks_greet(daemon.address("in"));
    client.write_all(&[4, 1, 0, 1, 127, 0, 0, 1, 0, 80]).unwrap();
    assert_closed(&mut client);
}

fn no_acceptable_method_is_told(engine: Engine) {
    let daemon = Daemon::start(engine, &proxy("socks5"));
    for greeting in [&[5, 0][..], &[5, 1, 2], &[5, 3, 1, 2, 0x80]] {
        let mut client = connect(daemon.address("in"));
        client.write_all(greeting).unwrap();
        assert_eq!(read_rest(&mut client), (vec![5, 0xff], End::Fin), "{greeting:?}");
    }
}

fn unsupported_commands_are_told(engine: Engine) {
    let daemon = Daemon::start(engine, &proxy("socks5"));
    for command in [0, 2, 3, 9, 0xff] {
        let mut client = socks_greet(daemon.address("in"));
        client.write_all(&[5, command, 0, 1, 127, 0, 0, 1, 0, 80]).unwrap();
        assert_eq!(read_socks_reply(&mut client).code, 7, "command {command}");
        assert_closed(&mut client);
    }
}

fn a_bad_address_type_is_told(engine: Engine) {
    let daemon = Daemon::start(engine, &proxy("socks5"));
    for kind in [0, 2, 5, 0xff] {
        let mut client = socks_greet(daemon.address("in"));
        client.write_all(&[5, 1, 0, kind, 127, 0, 0, 1, 0, 80]).unwrap();
        assert_eq!(read_socks_reply(&mut client).code, 8, "address type {kind}");
        assert_closed(&mut client);
    }
}

fn bad_names_are_refused(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("socks5"));
    for name in ["", "\0", "local\0host", "127.0.0.1\0.example", "a b", " localhost", "localhost\n"] {
        let (reply, mut client) = socks_connect(daemon.address("in"), &socks_name(name), server.port());
        assert_ne!(reply.code, 0, "{name:?}");
        assert_closed(&mut client);
    }
    assert_eq!(server.accepted(), 0);
    assert_echo(&mut socks_tunnel(daemon.address("in"), server.address()), b"alive");
}

fn garbage_never_hurts(engine: Engine) {
    let server = Server::echo();
    let config = proxy("socks5") + &proxy("mixed").replace("\"in\"", "\"mixed\"");
    let mut daemon = Daemon::start(engine, &config);
    for listener in ["in", "mixed"] {
        let address = daemon.address(listener);
        for start in 0..300 {
            let mut client = connect(address);
            let garbage = UP.at(start * 997, start % 200 + 1);
            // The daemon may end it while this is under way.
            let _ = client.write_all(garbage);
            let _ = client.shutdown(Shutdown::Write);
            let (_, end) = read_rest(&mut client);
            assert!(matches!(end, End::Fin | End::Reset), "{end:?} after {garbage:?}");
        }
        assert_echo(&mut socks_tunnel(address, server.address()), b"alive");
    }
    assert!(daemon.is_running());
}

fn mixed_speaks_both_on_one_port(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("mixed"));
    let address = daemon.address("in");
    assert_echo(&mut socks_tunnel(address, server.address()), b"socks");
    assert_echo(&mut http_tunnel(address, &server.address().to_string()).unwrap(), b"http");
    for byte in [0, 6, 0x16, 0xff] {
        let mut client = connect(address);
        client.write_all(&[byte]).unwrap();
        assert_closed(&mut client);
    }
}

fn a_rejecting_target_refuses_by_its_rules(engine: Engine) {
    let server = Server::echo();
    let config = proxy("mixed").replace("direct", "reject")
        + "[[listener]]\nname = \"tcp\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ntarget = \"reject\"\n";
    let daemon = Daemon::start(engine, &config);
    let address = daemon.address("in");
    assert_eq!(rejected(address, server.address()), 2);
    assert_eq!(http_tunnel(address, &server.address().to_string()).err(), Some(403));
    assert_closed(&mut connect(daemon.address("tcp")));
    assert_eq!(server.accepted(), 0);
}

/// The code of the reply that refuses a tunnel.
pub(crate) fn rejected(proxy: SocketAddr, to: SocketAddr) -> u8 {
    let mut client: TcpStream = socks_greet(proxy);
    client.write_all(&socks_request_to(to)).unwrap();
    let reply = read_socks_reply(&mut client);
    assert_closed(&mut client);
    reply.code
}

/// The same for a destination written by [`socks_name`] or [`socks_ip`](crate::harness::client::socks_ip).
pub(crate) fn code_for(proxy: SocketAddr, destination: &[u8], port: u16) -> u8 {
    let mut client = socks_greet(proxy);
    client.write_all(&socks_request(destination, port)).unwrap();
    read_socks_reply(&mut client).code
}

/// A SOCKS 4 request.
fn socks4(to: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(to) = to else { panic!("SOCKS 4 knows no {to}") };
    [&[4, 1][..], &to.port().to_be_bytes(), &to.ip().octets(), b"somebody\0"].concat()
}

fn socks4_and_4a_are_spoken_where_socks_or_mixed_listens(engine: Engine) {
    let server = Server::echo();
    let by_name = [&[4, 1][..], &server.port().to_be_bytes(), b"\0\0\0\x01\0localhost\0"].concat();
    for protocol in ["socks", "mixed"] {
        let daemon = Daemon::start(engine, &proxy(protocol));
        for request in [socks4(server.address()), by_name.clone()] {
            let mut client = connect(daemon.address("in"));
            for byte in &request {
                client.write_all(&[*byte]).unwrap();
            }
            let reply = read_bytes(&mut client, 8);
            assert_eq!((reply[0], reply[1], &reply[4..]), (0, 0x5a, &[127, 0, 0, 1][..]));
            assert_ne!(&reply[2..4], [0, 0], "the port we dialled from");
            assert_echo(&mut client, b"payload");
            let mut client = connect(daemon.address("in"));
            client.write_all(&[&request[..], b"joined"].concat()).unwrap();
            assert_eq!(read_bytes(&mut client, 14)[8..], *b"joined");
        }
    }
}

fn socks4_is_told_the_truth(engine: Engine) {
    let refuser = Refuser::new();
    let users = format!("{}users = {{ ann = \"secret\" }}\n", proxy("mixed"));
    for (config, request, reply) in [
        (proxy("socks"), socks4(refuser.address()), Some(0x5b)),
        (proxy("socks"), vec![4, 2], Some(0x5b)),
        (proxy("socks"), [&[4, 1, 0, 80, 1, 1, 1, 1][..], &[b'u'; 256]].concat(), Some(0x5b)),
        (users, socks4(refuser.address()), Some(0x5d)),
        (proxy("socks5"), socks4(refuser.address()), None),
    ] {
        let daemon = Daemon::start(engine, &config);
        let mut client = connect(daemon.address("in"));
        client.write_all(&request).unwrap();
        if let Some(code) = reply {
            assert_eq!(read_bytes(&mut client, 8), [0, code, 0, 0, 0, 0, 0, 0]);
        }
        assert_closed(&mut client);
    }
}
