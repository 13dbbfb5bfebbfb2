//! The PROXY protocol at listeners and towards upstreams, byte by byte and with haproxy and nginx on the other side.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use crate::harness::client::{
    assert_closed, assert_echo, connect, connect_unix, read_bytes, socks_ip, socks_request, socks_tunnel,
};
use crate::harness::daemon::{Daemon, free_port};
use crate::harness::http::origin;
use crate::harness::server::Server;
use crate::harness::status::{health, named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};
use crate::proxies::Program;

scenarios!(Welcome:
    a_header_in_any_split_names_the_client,
    what_is_no_sound_header_is_closed_and_nothing_is_dialled,
    strangers_are_refused_and_unix_sockets_trusted,
    the_allow_list_is_for_the_client_that_the_header_names,
    senders_that_speak_for_themselves_are_served,
    a_socks_request_may_follow_the_header,
    silence_before_the_header_ends_at_the_handshake_timeout,
    version_2_bears_a_unique_id_and_passes_a_given_one_on,
    every_attempt_that_waits_for_the_first_byte_is_told_first,
    the_destination_is_told_through_a_proxy,
    clients_on_unix_sockets_have_no_address_to_tell,
    checks_speak_for_themselves,
    haproxy_on_either_side,
    nginx_on_either_side,
);

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.9 5000 443\r\n";

/// Sends the first line back, then echoes.
fn mirror() -> Server {
    Server::new(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line).is_ok() && stream.write_all(&line).is_ok() {
            let _ = std::io::copy(&mut reader, &mut stream);
        }
    })
}

fn listener(rest: &str) -> String {
    format!("[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"out\"\n{rest}\n")
}

fn upstream(name: &str, address: SocketAddr, rest: &str) -> String {
    format!("[upstream.{name}]\naddress = \"{address}\"\n{rest}\n")
}

const TRUSTED: &str = "proxy_protocol = { trusted = [\"127.0.0.1\"] }";
const SEND_V1: &str = "send_proxy = \"v1\"";
const SEND_V2: &str = "send_proxy = \"v2\"";

/// A version 2 header for the ends of [`V1`].
fn v2(fields: &[u8]) -> Vec<u8> {
    let ends = [192, 0, 2, 7, 198, 51, 100, 9, 19, 136, 1, 187];
    let length = u16::try_from(ends.len() + fields.len()).unwrap().to_be_bytes();
    [V2, &[0x21, 0x11], &length, &ends, fields].concat()
}

fn read_line(stream: &mut impl Read) -> Vec<u8> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.extend(read_bytes(stream, 1));
    }
    line
}

/// What an upstream is sent in version 2: the kind, the addresses and the fields.
fn read_v2(stream: &mut impl Read) -> (u8, Vec<u8>) {
    let head = read_bytes(stream, 16);
    assert_eq!((&head[..12], head[12]), (V2, 0x21));
    (head[13], read_bytes(stream, usize::from(u16::from_be_bytes([head[14], head[15]]))))
}

fn a_header_in_any_split_names_the_client(engine: Engine) {
    let server = mirror();
    let config = listener(TRUSTED) + &upstream("out", server.address(), SEND_V1);
    let daemon = Daemon::start(engine, &config);
    for header in [V1.to_vec(), v2(&[]), v2(&[4, 0, 3, 0, 0, 0])] {
        let mut client = connect(daemon.address("in"));
        for byte in &header {
            client.write_all(&[*byte]).unwrap();
        }
        assert_eq!(read_line(&mut client), V1);
        assert_echo(&mut client, b"payload");
        let mut client = connect(daemon.address("in"));
        client.write_all(&[&header[..], b"payload"].concat()).unwrap();
        assert_eq!(read_bytes(&mut client, V1.len() + 7), [V1, b"payload"].concat());
    }
}

fn what_is_no_sound_header_is_closed_and_nothing_is_dialled(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &(listener(TRUSTED) + &upstream("out", server.address(), "")));
    let long = [b"PROXY UNKNOWN ", &[b'x'; 100][..]].concat();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PROXY TCP4 192.0.2.7 198.51.100.9 5000\r\n",
        &long,
        // Fields that reach into the payload.
        &[&v2(&[5, 0, 4, 1])[..], b"payload"].concat(),
        &v2(&[3, 0, 4, 1, 2, 3, 4]),
        &[V2, &[0x21, 0x11, 0xff, 0xff]].concat(),
    ] {
        let mut client = connect(daemon.address("in"));
        client.write_all(bytes).unwrap();
        assert_closed(&mut client);
    }
    assert_eq!(server.accepted(), 0);
    let status = daemon.status();
    assert_eq!(number(named(&status, "listeners", "in"), &["closed", "client-protocol"]), 6);
}

fn strangers_are_refused_and_unix_sockets_trusted(engine: Engine) {
    let server = mirror();
    let trusted = "proxy_protocol = { trusted = [\"10.0.0.0/8\"] }\n[[listener]]\nname = \"local\"\n\
        bind = \"unix:@dir@/in.sock\"\ntarget = \"out\"\nproxy_protocol = {}";
    let config = listener(trusted) + &upstream("out", server.address(), SEND_V1);
    let daemon = Daemon::start(engine, &config);
    for bytes in [V1, b"payload"] {
        let mut client = connect(daemon.address("in"));
        // It may be gone before it is written to.
        let _ = client.write_all(bytes);
        assert_closed(&mut client);
    }
    assert_eq!(server.accepted(), 0);
    let mut client = connect_unix(&daemon.path("in.sock"));
    client.write_all(V1).unwrap();
    assert_eq!(read_line(&mut client), V1);
}

fn the_allow_list_is_for_the_client_that_the_header_names(engine: Engine) {
    let server = mirror();
    let rest = format!("allow = [\"192.0.2.0/24\"]\n{TRUSTED}");
    let config = listener(&rest) + &upstream("out", server.address(), SEND_V1);
    let daemon = Daemon::start(engine, &config);
    let mut client = connect(daemon.address("in"));
    client.write_all(V1).unwrap();
    assert_eq!(read_line(&mut client), V1);
    let mut client = connect(daemon.address("in"));
    client.write_all(b"PROXY TCP4 203.0.113.1 198.51.100.9 5000 443\r\n").unwrap();
    assert_closed(&mut client);
    assert_eq!(server.accepted(), 1);
}

fn senders_that_speak_for_themselves_are_served(engine: Engine) {
    let server = mirror();
    let config = listener(TRUSTED) + &upstream("out", server.address(), SEND_V1);
    let daemon = Daemon::start(engine, &config);
    for header in [&b"PROXY UNKNOWN\r\n"[..], &[V2, &[0x20, 0, 0, 0]].concat()] {
        let mut client = connect(daemon.address("in"));
        client.write_all(header).unwrap();
        assert_eq!(read_line(&mut client), own_line(&client));
    }
}

/// The header of a connection as it is.
fn own_line(client: &TcpStream) -> Vec<u8> {
    let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", from.port(), to.port()).into_bytes()
}

fn a_socks_request_may_follow_the_header(engine: Engine) {
    let server = Server::echo();
    let config =
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"direct\"\n";
    let daemon = Daemon::start(engine, &format!("{config}{TRUSTED}\n"));
    let request = socks_request(&socks_ip(server.address().ip()), server.port());
    let mut client = connect(daemon.address("in"));
    client.write_all(&[V1, &[5, 1, 0], &request, b"joined"].concat()).unwrap();
    assert_eq!(read_bytes(&mut client, 2 + 10 + 6)[12..], *b"joined");
}

fn silence_before_the_header_ends_at_the_handshake_timeout(engine: Engine) {
    let rest = format!("{TRUSTED}\ntimeouts = {{ handshake = \"200ms\" }}");
    let config = listener(&rest) + &upstream("out", Server::echo().address(), "");
    let daemon = Daemon::start(engine, &config);
    let mut client = connect(daemon.address("in"));
    client.write_all(&V1[..20]).unwrap();
    assert_closed(&mut client);
    let status = daemon.status();
    assert_eq!(number(named(&status, "listeners", "in"), &["closed", "handshake-timeout"]), 1);
}

fn version_2_bears_a_unique_id_and_passes_a_given_one_on(engine: Engine) {
    let server = Server::echo();
    let config = listener(TRUSTED) + &upstream("out", server.address(), SEND_V2);
    let daemon = Daemon::start(engine, &config);
    let mut client = connect(daemon.address("in"));
    let header = v2(&[5, 0, 3, b'a', b'b', b'c']);
    client.write_all(&header).unwrap();
    assert_eq!(read_bytes(&mut client, header.len()), header);
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut client = connect(daemon.address("in"));
        client.write_all(V1).unwrap();
        let (kind, block) = read_v2(&mut client);
        assert_eq!((kind, &block[..12], &block[12..15]), (0x11, &header[16..28], &[5, 0, 32][..]));
        names.push(block[15..].to_vec());
    }
    assert_ne!(names[0], names[1]);
}

fn every_attempt_that_waits_for_the_first_byte_is_told_first(engine: Engine) {
    let silent = Server::new(|mut stream| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
    });
    let server = mirror();
    for policy in ["race", "failover"] {
        let group = format!(
            "[group.out]\npolicy = \"{policy}\"\nmembers = [\"silent\", \"mirror\"]\ncommit = \"first-byte\"\n\
             attempt_timeout = \"300ms\"\n"
        );
        let config = listener("") + &group;
        let config = config + &upstream("silent", silent.address(), SEND_V1);
        let daemon = Daemon::start(engine, &(config + &upstream("mirror", server.address(), SEND_V1)));
        let mut client = connect(daemon.address("in"));
        client.write_all(b"early").unwrap();
        let line = own_line(&client);
        assert_eq!(read_bytes(&mut client, line.len() + 5), [&line[..], b"early"].concat());
        assert_echo(&mut client, b"late");
    }
}

fn the_destination_is_told_through_a_proxy(engine: Engine) {
    let server = mirror();
    let proxy =
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"socks5\"\ntarget = \"direct\"\n";
    let proxy = Daemon::start(engine, proxy);
    let socks = format!("kind = \"socks5\"\n{SEND_V1}");
    let config = listener("protocol = \"socks5\"") + &upstream("out", proxy.address("in"), &socks);
    let daemon = Daemon::start(engine, &config);
    let mut client = socks_tunnel(daemon.address("in"), server.address());
    assert_eq!(read_line(&mut client), own_line(&client));
    assert_echo(&mut client, b"payload");
    let socks = upstream("way", proxy.address("in"), "kind = \"socks5\"");
    let via = format!("via = \"way\"\n{SEND_V1}");
    let daemon = Daemon::start(engine, &(listener("") + &socks + &upstream("out", server.address(), &via)));
    let mut client = connect(daemon.address("in"));
    assert_eq!(read_line(&mut client), own_line(&client));
}

fn clients_on_unix_sockets_have_no_address_to_tell(engine: Engine) {
    let server = Server::echo();
    let config = listener("").replace("127.0.0.1:0", "unix:@dir@/in.sock");
    for (send, expected) in [(SEND_V1, &b"PROXY UNKNOWN\r\n"[..]), (SEND_V2, V2)] {
        let daemon = Daemon::start(engine, &(config.clone() + &upstream("out", server.address(), send)));
        let mut client = connect_unix(&daemon.path("in.sock"));
        assert_eq!(read_bytes(&mut client, expected.len()), expected);
    }
}

fn checks_speak_for_themselves(engine: Engine) {
    let server = origin();
    let config = listener(TRUSTED) + &upstream("out", server.address(), "");
    let behind = Daemon::start(engine, &config);
    for send in [SEND_V1, SEND_V2] {
        let check =
            "[check.alive]\nkind = \"http\"\nurl = \"http://origin.test/bytes/1\"\nschedule = [\"100ms\"]\n";
        let out = upstream("out", behind.address("in"), &format!("{send}\ncheck = \"alive\""));
        let daemon = Daemon::start(engine, &(listener("") + &out + check));
        eventually(PATIENCE, "the check succeeds", || health(&daemon.status(), "out") == "up");
    }
}

/// A daemon before a mirror, which says to that one in version 1 what it has been told.
fn receiver(engine: Engine, mirror: &Server) -> Daemon {
    Daemon::start(engine, &(listener(TRUSTED) + &upstream("out", mirror.address(), SEND_V1)))
}

/// A daemon that tells whoever listens there.
fn sender(engine: Engine, send: &str, to: u16) -> Daemon {
    let to = SocketAddr::from(([127, 0, 0, 1], to));
    Daemon::start(engine, &(listener("") + &upstream("out", to, send)))
}

/// The client's end of what a mirror was told, through `first`.
#[track_caller]
fn assert_named(first: SocketAddr) {
    let mut client = connect(first);
    client.write_all(b"payload").unwrap();
    let line = String::from_utf8(read_line(&mut client)).unwrap();
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} ", client.local_addr().unwrap().port());
    assert!(line.starts_with(&expected), "{line:?}, and not {expected:?}");
    assert_eq!(read_bytes(&mut client, 7), b"payload");
    assert_echo(&mut client, b"more");
}

/// Starts a program with its configuration in a file; `None` when it is not installed.
fn start(daemon: &Daemon, config: &str, command: &mut Command, port: u16) -> Option<Program> {
    let file = daemon.path("other.conf");
    std::fs::write(&file, config).unwrap();
    let started = command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(child) = started else {
        eprintln!("SKIPPED: {} is not installed", command.get_program().display());
        return None;
    };
    let program = Program(child);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    eventually(PATIENCE, "the other program listens", || TcpStream::connect(address).is_ok());
    Some(program)
}

fn haproxy_on_either_side(engine: Engine) {
    let server = mirror();
    let daemon = receiver(engine, &server);
    let (to_us, to_mirror) = (daemon.address("in"), server.address());
    let [v1, v2, plain_v2, accepting] = [(); 4].map(|()| free_port());
    let mut config = "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n \
        unique-id-format %ci:%cp\n"
        .to_owned();
    let full = "send-proxy-v2 proxy-v2-options crc32c,unique-id,ssl";
    for (port, to, rest, send) in [
        (v1, to_us, "", "send-proxy"),
        (v2, to_us, "", full),
        (plain_v2, to_us, "", "send-proxy-v2"),
        (accepting, to_mirror, "accept-proxy", "send-proxy"),
    ] {
        let _ = write!(config, "listen p{port}\n bind 127.0.0.1:{port} {rest}\n server s {to} {send}\n");
    }
    let Some(_haproxy) =
        start(&daemon, &config, Command::new("haproxy").args(["-q", "-db", "-f"]), accepting)
    else {
        return;
    };
    for port in [v1, v2, plain_v2] {
        assert_named(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    for send in [SEND_V1, SEND_V2] {
        assert_named(sender(engine, send, accepting).address("in"));
    }
}

fn nginx_on_either_side(engine: Engine) {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let server = mirror();
    let daemon = receiver(engine, &server);
    if !std::path::Path::new(MODULE).exists() {
        eprintln!("SKIPPED: nginx's stream module is not installed");
        return;
    }
    let [sending, accepting] = [(); 2].map(|()| free_port());
    let folder = daemon.path("");
    let config = format!(
        "load_module {MODULE};\ndaemon off;\nmaster_process off;\npid {folder}/nginx.pid;\n\
         error_log {folder}/nginx.log;\nevents {{}}\nstream {{\nset_real_ip_from 127.0.0.1;\nproxy_protocol on;\n\
         server {{ listen 127.0.0.1:{sending}; proxy_pass {to_us}; }}\n\
         server {{ listen 127.0.0.1:{accepting} proxy_protocol; proxy_pass {to_mirror}; }}\n}}\n",
        folder = folder.display(),
        to_us = daemon.address("in"),
        to_mirror = server.address(),
    );
    let Some(_nginx) = start(&daemon, &config, Command::new("nginx").arg("-c"), accepting) else { return };
    assert_named(SocketAddr::from(([127, 0, 0, 1], sending)));
    for send in [SEND_V1, SEND_V2] {
        assert_named(sender(engine, send, accepting).address("in"));
    }
}
