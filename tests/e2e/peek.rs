//! The look at what clients of plain listeners say first: what sessions stick by, and that nothing of it is lost.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::client::{assert_echo, connect, read_bytes, read_rest};
use crate::harness::curl::{curl, is_installed};
use crate::harness::daemon::{Daemon, check, free_port};
use crate::harness::http::{exchange, read_head};
use crate::harness::pattern::{End, UP};
use crate::harness::server::Server;
use crate::harness::{Engine, PATIENCE, assert_took, eventually, scenarios};
use crate::proxies::Program;

scenarios!(Welcome:
    sessions_stick_by_a_cookie_whoever_brings_it,
    sessions_are_hashed_by_a_key_of_the_query,
    what_the_first_answer_gives_is_known_when_it_comes_back,
    every_byte_that_was_looked_at_arrives_in_any_split,
    what_is_not_to_be_understood_goes_on_at_once,
    a_head_without_an_end_is_forwarded_whole,
    a_client_that_ends_while_it_is_looked_at_is_served,
    a_silent_client_is_served_after_the_timeout,
    a_name_in_a_proxied_hello_is_seen,
    tls_passes_unchanged_and_its_name_is_logged,
    keys_that_nobody_looks_at_are_refused,
);

/// A listener before a group of three servers that say their names.
fn pool(engine: Engine, group: &str) -> (Vec<Server>, Daemon) {
    let servers: Vec<Server> = (b'a'..=b'c').map(Server::named).collect();
    let mut config = "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n".to_owned();
    for (name, server) in ('a'..).zip(&servers) {
        config += &format!("[upstream.{name}]\naddress = \"{}\"\n", server.address());
    }
    config += &format!("[group.pool]\nmembers = [\"a\", \"b\", \"c\"]\n{group}\n");
    let daemon = Daemon::start(engine, &config);
    (servers, daemon)
}

/// Who serves this request; it comes back whole.
fn serving(daemon: &Daemon, request: &str) -> u8 {
    let mut client = connect(daemon.address("in"));
    client.write_all(request.as_bytes()).unwrap();
    let name = read_bytes(&mut client, 1)[0];
    assert_eq!(read_bytes(&mut client, request.len()), request.as_bytes());
    name
}

fn by_cookie(value: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a.example\r\nCookie: other=1; id={value}\r\n\r\n")
}

fn sessions_stick_by_a_cookie_whoever_brings_it(engine: Engine) {
    let (_servers, daemon) = pool(engine, "sticky = { key = { cookie = \"id\" } }");
    let first: Vec<u8> = (0..9).map(|value| serving(&daemon, &by_cookie(&value.to_string()))).collect();
    for name in b"abc" {
        assert!(first.contains(name), "{first:?}");
    }
    for (value, name) in first.iter().enumerate().rev() {
        assert_eq!(serving(&daemon, &by_cookie(&value.to_string())), *name);
    }
    let without: Vec<u8> = (0..6).map(|_| serving(&daemon, "GET / HTTP/1.1\r\nHost: b\r\n\r\n")).collect();
    assert!(without.iter().any(|name| *name != without[0]), "nobody sticks without a cookie: {without:?}");
}

fn sessions_are_hashed_by_a_key_of_the_query(engine: Engine) {
    let (_servers, daemon) = pool(engine, "policy = \"hash\"\nkey = { query = \"sid\" }");
    let by_sid = |sid: usize| format!("GET /socket.io/?EIO=4&sid={sid}&t=1 HTTP/1.1\r\nHost: a\r\n\r\n");
    let first: Vec<u8> = (0..20).map(|sid| serving(&daemon, &by_sid(sid))).collect();
    for name in b"abc" {
        assert!(first.contains(name), "{first:?}");
    }
    for (sid, name) in first.iter().enumerate() {
        assert_eq!(serving(&daemon, &by_sid(sid)), *name);
    }
}

/// Gives each client a cookie and a session of Engine.IO that bear its name, and says the name in a header.
fn giver(name: char) -> Server {
    let given = AtomicUsize::new(0);
    Server::new(move |mut stream| {
        let _ = read_head(&mut stream);
        let value = format!("{name}{}", given.fetch_add(1, Ordering::Relaxed));
        let body = format!("0{{\"sid\":\"{value}\",\"upgrades\":[\"websocket\"],\"pingInterval\":25000}}");
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nX-Name: {name}\r\nSet-Cookie: id={value}; Path=/\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        // In one segment, as servers send what is short.
        let _ = stream.write_all(answer.as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        let _ = read_rest(&mut stream);
    })
}

fn what_the_first_answer_gives_is_known_when_it_comes_back(engine: Engine) {
    let servers: Vec<Server> = ('a'..='c').map(giver).collect();
    for (key, back) in
        [("cookie = \"id\"", "/ HTTP/1.1\r\nCookie: id="), ("query = \"sid\"", "/socket.io/?EIO=4&sid=")]
    {
        let mut config =
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n".to_owned();
        for (name, server) in ('a'..).zip(&servers) {
            config += &format!("[upstream.{name}]\naddress = \"{}\"\n", server.address());
        }
        config += &format!(
            "[group.pool]\nmembers = [\"a\", \"b\", \"c\"]\ncommit = \"first-byte\"\nsticky = {{ key = {{ {key} }} }}\n"
        );
        let daemon = Daemon::start(engine, &config);
        let ask = |request: &str| exchange(&mut connect(daemon.address("in")), request.as_bytes());
        for _ in 0..9 {
            let first = ask("GET /socket.io/?EIO=4 HTTP/1.1\r\nHost: a\r\n\r\n");
            let name = first.field("X-Name").unwrap();
            let value = first.field("Set-Cookie").unwrap().split([';', '=']).nth(1).unwrap();
            let end = if back.contains("HTTP") { "" } else { " HTTP/1.1" };
            for _ in 0..3 {
                let again = ask(&format!("GET {back}{value}{end}\r\nHost: a\r\n\r\n"));
                assert_eq!(again.field("X-Name"), Some(name), "{key}: {value}");
            }
        }
    }
}

/// A listener that looks, before an echo.
fn looking(engine: Engine, peek: &str, log: &str) -> (Server, Daemon) {
    let server = Server::echo();
    let daemon = Daemon::start(
        engine,
        &format!(
            "{log}[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"out\"\npeek = {peek}\n\
             [upstream.out]\naddress = \"{}\"\n",
            server.address()
        ),
    );
    (server, daemon)
}

/// So long that nobody may have waited for it.
const LONG: &str = "{ timeout = \"60s\" }";

/// A ClientHello for `a.example` over two records, one of them short.
fn hello() -> Vec<u8> {
    let sni = [&[0, 0, 0, 14, 0, 12, 0, 0, 9][..], b"a.example"].concat();
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0, 0, 18], &sni].concat();
    let message = [&[1, 0, 0, u8::try_from(body.len()).unwrap()], &body[..]].concat();
    let (head, rest) = message.split_at(3);
    let record = |part: &[u8]| [&[22, 3, 1, 0, u8::try_from(part.len()).unwrap()], part].concat();
    [record(head), record(rest)].concat()
}

fn every_byte_that_was_looked_at_arrives_in_any_split(engine: Engine) {
    let (_server, daemon) = looking(engine, LONG, "");
    for head in [hello(), by_cookie("1").into_bytes()] {
        for payload in [&b""[..], b"payload"] {
            let all = [&head[..], payload].concat();
            let mut client = connect(daemon.address("in"));
            assert_echo(&mut client, &all);
            assert_echo(&mut client, b"more");
            let mut client = connect(daemon.address("in"));
            for byte in &all {
                client.write_all(&[*byte]).unwrap();
            }
            assert_eq!(read_bytes(&mut client, all.len()), all);
        }
    }
}

fn what_is_not_to_be_understood_goes_on_at_once(engine: Engine) {
    let (_server, daemon) = looking(engine, LONG, "");
    for bytes in
        [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"EHLO a.example\r\n", b"\0\0\0\x08\x04\xd2\x16\x2f", b"\x16\x02"]
    {
        assert_echo(&mut connect(daemon.address("in")), bytes);
    }
}

fn a_head_without_an_end_is_forwarded_whole(engine: Engine) {
    const BYTES: usize = 200_000;
    let (_server, daemon) = looking(engine, LONG, "");
    for begin in [&b"GET /"[..], b"GET / HTTP/1.1\r\nA: ", b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc"] {
        let all = [begin, &UP.head(BYTES).iter().map(|byte| byte | 0x40).collect::<Vec<u8>>()].concat();
        let client = connect(daemon.address("in"));
        let mut writing = client.try_clone().unwrap();
        let sent = all.clone();
        let writer = std::thread::spawn(move || {
            writing.write_all(&sent).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let (received, end) = read_rest(&mut &client);
        writer.join().unwrap();
        assert!(received == all && end == End::Fin, "{} bytes, {end:?}", received.len());
    }
}

fn a_client_that_ends_while_it_is_looked_at_is_served(engine: Engine) {
    let (_server, daemon) = looking(engine, LONG, "");
    for bytes in [&b"GET / HT"[..], b"\x16\x03", b""] {
        let mut client = connect(daemon.address("in"));
        client.write_all(bytes).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_rest(&mut client), (bytes.to_vec(), End::Fin));
    }
}

fn a_silent_client_is_served_after_the_timeout(engine: Engine) {
    let server = Server::named(b'n');
    let config = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"out\"\npeek = {{ timeout = \"300ms\" }}\n\
         [upstream.out]\naddress = \"{}\"\n",
        server.address()
    );
    let daemon = Daemon::start(engine, &config);
    for said in [&b""[..], b"GET / HT"] {
        let mut client = connect(daemon.address("in"));
        let begin = Instant::now();
        client.write_all(said).unwrap();
        assert_eq!(read_bytes(&mut client, 1), b"n");
        assert_took(begin.elapsed(), Duration::from_millis(400), Duration::from_millis(200));
        assert_eq!(read_bytes(&mut client, said.len()), said);
        assert_echo(&mut client, b"payload");
    }
}

const LOGGED: &str = "[log]\nsessions = true\n";

fn a_name_in_a_proxied_hello_is_seen(engine: Engine) {
    let (_server, daemon) = looking(engine, "true\nproxy_protocol = { trusted = [\"127.0.0.1\"] }", LOGGED);
    let mut client = connect(daemon.address("in"));
    client.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.8 5 6\r\n").unwrap();
    assert_echo(&mut client, &hello());
    drop(client);
    daemon.wait_line("the session", |line| line.contains("client=192.0.2.7:5"));
    daemon.wait_line("the session", |line| line.contains("asked_name=a.example"));
}

fn tls_passes_unchanged_and_its_name_is_logged(engine: Engine) {
    if !is_installed() {
        return;
    }
    let port = free_port();
    let (_echo, spare) = looking(engine, LONG, "");
    let (key, certificate) = (spare.path("key.pem"), spare.path("cert.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=a.example", "-addext", "subjectAltName=DNS:a.example", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: openssl is not installed");
        return;
    }
    let server = Command::new("openssl")
        .args(["s_server", "-quiet", "-www", "-accept", &format!("127.0.0.1:{port}"), "-key"])
        .arg(&key)
        .arg("-cert")
        .arg(&certificate)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _server = Program(server.unwrap());
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    eventually(PATIENCE, "openssl listens", || TcpStream::connect(address).is_ok());
    let config = format!(
        "{LOGGED}[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"out\"\npeek = true\n\
         [upstream.out]\naddress = \"{address}\"\n"
    );
    let daemon = Daemon::start(engine, &config);
    let ours = daemon.address("in").port();
    let resolve = format!("a.example:{ours}:127.0.0.1");
    let certificate = certificate.display().to_string();
    let url = format!("https://a.example:{ours}/");
    for version in ["--tls-max 1.2", "--tlsv1.3"] {
        let mut arguments: Vec<&str> = version.split(' ').collect();
        arguments.extend(["--resolve", &resolve, "--cacert", &certificate, &url]);
        let output = curl(&arguments);
        assert!(String::from_utf8_lossy(&output.stdout).contains("s_server"), "{output:?}");
    }
    daemon.wait_line("the session", |line| line.contains("asked_name=a.example"));
}

fn keys_that_nobody_looks_at_are_refused(engine: Engine) {
    // The same on both: `check` runs no engine.
    let _ = engine;
    let config = |listener: &str| {
        format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n{listener}\n\
             [upstream.a]\naddress = \"127.0.0.1:1\"\n\
             [group.pool]\nmembers = [\"a\"]\nsticky = {{ key = {{ cookie = \"id\" }} }}\n"
        )
    };
    assert_eq!(check(&config("")).code, 0);
    for listener in ["protocol = \"http\"", "peek = false", "protocol = \"mixed\"\npeek = true"] {
        let refused = check(&config(listener));
        assert!(refused.code != 0 && refused.stderr.contains("what clients say first"), "{}", refused.stderr);
    }
}
