//! HTTP listeners: tunnels, plain requests, and heads that are cut, joined, too long or wrong.

use std::io::Write;
use std::net::Shutdown;

use crate::harness::client::{assert_closed, assert_echo, connect, read_bytes, read_rest};
use crate::harness::daemon::Daemon;
use crate::harness::http::{exchange, http_tunnel, origin, read_head, read_response, status_of};
use crate::harness::pattern::{DOWN, End, UP};
use crate::harness::server::{Refuser, Server};
use crate::harness::status::{metric, named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};
use crate::socks::proxy;

scenarios!(Welcome:
    a_tunnel_byte_by_byte_succeeds,
    payload_behind_the_head_in_one_segment_is_forwarded,
    a_plain_request_is_forwarded_in_origin_form,
    a_plain_request_byte_by_byte_succeeds,
    a_body_is_forwarded_and_what_is_behind_it_is_not,
    a_refused_destination_is_a_502,
    a_head_too_long_is_a_431,
    malformed_requests_are_a_400,
    a_request_for_an_origin_server_is_a_400,
    a_head_that_never_ends_is_closed_when_the_client_leaves,
);

fn a_tunnel_byte_by_byte_succeeds(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("http"));
    let mut client = connect(daemon.address("in"));
    let head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", server.address());
    for byte in head.bytes() {
        client.write_all(&[byte]).unwrap();
    }
    assert_eq!(status_of(&read_head(&mut client)), 200);
    assert_echo(&mut client, UP.head(100_000));
}

fn payload_behind_the_head_in_one_segment_is_forwarded(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("http"));
    let mut client = connect(daemon.address("in"));
    let head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", server.address());
    client.write_all(&[head.as_bytes(), UP.head(9000)].concat()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(status_of(&read_head(&mut client)), 200);
    UP.read_to_end(&mut client).assert(9000, End::Fin);
}

fn a_plain_request_is_forwarded_in_origin_form(engine: Engine) {
    let server = origin();
    let daemon = Daemon::start(engine, &proxy("http"));
    let request = format!(
        "GET http://{0}/path?query#fragment HTTP/1.1\r\nHost: elsewhere\r\nProxy-Connection: keep-alive\r\n\
         Proxy-Authorization: Basic c2VjcmV0\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n",
        server.address()
    );
    let response = exchange(&mut connect(daemon.address("in")), request.as_bytes());
    assert_eq!(response.status, 200);
    let seen = response.text();
    assert!(seen.starts_with("GET /path?query HTTP/1.1\r\n"), "{seen}");
    let lower = seen.to_ascii_lowercase();
    assert!(lower.contains(&format!("\r\nhost: {}\r\n", server.address())), "{seen}");
    assert!(lower.contains("\r\nconnection: close\r\n") && lower.contains("\r\nx-end: 2\r\n"), "{seen}");
    for hop in ["proxy-", "x-hop", "elsewhere", "fragment"] {
        assert!(!lower.contains(hop), "{hop} went to the upstream:\n{seen}");
    }
    let mut client = connect(daemon.address("in"));
    write!(client, "GET http://{}/bytes/1000000 HTTP/1.1\r\n\r\n", server.address()).unwrap();
    assert_eq!(status_of(&read_head(&mut client)), 200);
    DOWN.read_to_end(&mut client).assert(1_000_000, End::Fin);
}

fn a_plain_request_byte_by_byte_succeeds(engine: Engine) {
    let server = origin();
    let daemon = Daemon::start(engine, &proxy("http"));
    let mut client = connect(daemon.address("in"));
    let request =
        format!("POST http://{}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", server.address());
    for byte in request.bytes() {
        client.write_all(&[byte]).unwrap();
    }
    assert_eq!(read_response(&mut client).text(), "hello");
}

fn a_body_is_forwarded_and_what_is_behind_it_is_not(engine: Engine) {
    let (sender, bodies) = std::sync::mpsc::channel();
    let server = Server::new(move |mut stream| {
        let head = read_head(&mut stream);
        // The daemon ends its side neither early nor with a byte too many.
        let body = read_bytes(&mut stream, 5);
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let (rest, _) = read_rest(&mut stream);
        sender.send((head, body, rest)).unwrap();
    });
    let daemon = Daemon::start(engine, &proxy("http"));
    let mut client = connect(daemon.address("in"));
    let request = format!(
        "POST http://{0}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET http://{0}/secret HTTP/1.1\r\n\r\n",
        server.address()
    );
    client.write_all(request.as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_response(&mut client).status, 200);
    let (head, body, rest) = bodies.recv_timeout(PATIENCE).unwrap();
    assert!(head.starts_with("POST / HTTP/1.1"), "{head}");
    assert_eq!((&body[..], &rest[..]), (&b"hello"[..], &b""[..]));
}

fn a_refused_destination_is_a_502(engine: Engine) {
    let refuser = Refuser::new();
    let daemon = Daemon::start(engine, &proxy("http"));
    assert_eq!(http_tunnel(daemon.address("in"), &refuser.address().to_string()).err(), Some(502));
    let request = format!("GET http://{}/ HTTP/1.1\r\nHost: a\r\n\r\n", refuser.address());
    assert_eq!(exchange(&mut connect(daemon.address("in")), request.as_bytes()).status, 502);
    let failed = || number(named(&daemon.status(), "targets", "direct"), &["failed", "refused"]);
    eventually(PATIENCE, "the refusals are counted in the status", || failed() == 2);
    let text = daemon.metrics();
    assert!(metric(&text, &["ringweir_", "target=\"direct\"", "refused"]) >= 2.0, "{text}");
}

fn a_head_too_long_is_a_431(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("http"));
    let long = "x".repeat(17 * 1024);
    let request = format!("CONNECT {} HTTP/1.1\r\nX-Long: {long}\r\n\r\n", server.address());
    assert_eq!(exchange(&mut connect(daemon.address("in")), request.as_bytes()).status, 431);
    // A client that goes on and on gets to read it, too.
    let mut client = connect(daemon.address("in"));
    let request = format!("CONNECT {} HTTP/1.1\r\nX-Long: {}", server.address(), "x".repeat(150 * 1024));
    assert_eq!(exchange(&mut client, request.as_bytes()).status, 431);
    let fields: String = (0..200).map(|number| format!("X-{number}: 1\r\n")).collect();
    let request = format!("CONNECT {} HTTP/1.1\r\n{fields}\r\n", server.address());
    assert_eq!(exchange(&mut connect(daemon.address("in")), request.as_bytes()).status, 431);
    assert_eq!(server.accepted(), 0);
}

fn malformed_requests_are_a_400(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("http"));
    let address = server.address();
    for request in [
        "CONNECT nowhere HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT :80 HTTP/1.1\r\n\r\n".to_owned(),
        format!("CONNECT {address} HTTP/1.1\r\nBad Field: 1\r\n\r\n"),
        format!("CONNECT {address}\r\n\r\n"),
        format!("POST http://{address}/ HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        format!(
            "POST http://{address}/ HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello"
        ),
        format!("GET http://ann@{address}/ HTTP/1.1\r\n\r\n"),
        format!("GET https://{address}/ HTTP/1.1\r\n\r\n"),
        "\x01\x02\r\n\r\n".to_owned(),
    ] {
        let response = exchange(&mut connect(daemon.address("in")), request.as_bytes());
        assert_eq!(response.status, 400, "{request}");
    }
    assert_eq!(server.accepted(), 0);
    assert_echo(&mut http_tunnel(daemon.address("in"), &address.to_string()).unwrap(), b"alive");
}

fn a_request_for_an_origin_server_is_a_400(engine: Engine) {
    let daemon = Daemon::start(engine, &proxy("http"));
    let response = exchange(&mut connect(daemon.address("in")), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(response.status, 400);
    assert!(response.text().contains("proxy"), "the text helps: {}", response.text());
}

fn a_head_that_never_ends_is_closed_when_the_client_leaves(engine: Engine) {
    let daemon = Daemon::start(engine, &proxy("http"));
    let mut client = connect(daemon.address("in"));
    client.write_all(b"CONNECT 127.0.0.1:1 HT").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_closed(&mut client);
    let closed = || number(named(&daemon.status(), "listeners", "in"), &["closed", "client-left"]);
    eventually(PATIENCE, "it is counted", || closed() == 1);
}
