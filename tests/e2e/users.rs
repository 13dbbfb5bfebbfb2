//! Who may use a listener: users with passwords, and clients from some networks alone.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::harness::client::{
    assert_closed, assert_echo, connect, read_bytes, read_rest, read_socks_reply, socks_login,
    socks_request_to,
};
use crate::harness::daemon::{Daemon, Setup, ringweir};
use crate::harness::http::{exchange, read_head, status_of};
use crate::harness::pattern::End;
use crate::harness::server::Server;
use crate::harness::status::{named, number};
use crate::harness::{Engine, observe_for, scenarios};

scenarios!(Welcome:
    a_right_password_passes,
    a_wrong_password_is_refused,
    a_client_without_passwords_is_refused,
    a_request_before_the_password_is_never_dialled,
    the_longest_user_and_password_work,
    users_may_come_from_a_file,
    http_asks_for_a_password,
    clients_from_denied_networks_are_reset_counted_and_told_once_a_second,
    explain_knows_who_may_come,
);

fn proxy(protocol: &str, users: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"{protocol}\"\ntarget = \"direct\"\n\
         {users}\n"
    )
}

const ANN: &str = "users = { ann = \"secret\", bob = \"other\" }";

fn a_right_password_passes(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("socks5", ANN));
    for (user, password) in [(b"ann", &b"secret"[..]), (b"bob", b"other")] {
        let mut client = connect(daemon.address("in"));
        client.write_all(&[5, 2, 0, 2]).unwrap();
        assert_eq!(read_bytes(&mut client, 2), [5, 2]);
        client.write_all(&socks_login(user, password)).unwrap();
        assert_eq!(read_bytes(&mut client, 2), [1, 0]);
        client.write_all(&socks_request_to(server.address())).unwrap();
        assert_eq!(read_socks_reply(&mut client).code, 0);
        assert_echo(&mut client, b"payload");
    }
}

fn a_wrong_password_is_refused(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("socks5", ANN));
    let pairs =
        [("ann", "wrong"), ("ann", "other"), ("eve", "secret"), ("", ""), ("ann", ""), ("ann", "secretx")];
    for (user, password) in pairs {
        let mut client = connect(daemon.address("in"));
        let login = socks_login(user.as_bytes(), password.as_bytes());
        // All at once: nothing behind the password may have an effect.
        client.write_all(&[&[5, 1, 2], &login[..], &socks_request_to(server.address())].concat()).unwrap();
        assert_eq!(read_bytes(&mut client, 2), [5, 2]);
        let verdict = read_bytes(&mut client, 2);
        assert_eq!(verdict[0], 1);
        assert_ne!(verdict[1], 0, "{user:?} {password:?}");
        assert_closed(&mut client);
    }
    assert_eq!(server.accepted(), 0);
}

fn a_client_without_passwords_is_refused(engine: Engine) {
    let daemon = Daemon::start(engine, &proxy("socks5", ANN));
    let mut client = connect(daemon.address("in"));
    client.write_all(&[5, 1, 0]).unwrap();
    assert_eq!(read_rest(&mut client), (vec![5, 0xff], End::Fin));
}

fn a_request_before_the_password_is_never_dialled(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("socks5", ANN));
    let mut client = connect(daemon.address("in"));
    client.write_all(&[5, 1, 2]).unwrap();
    assert_eq!(read_bytes(&mut client, 2), [5, 2]);
    client.write_all(&socks_request_to(server.address())).unwrap();
    assert_closed(&mut client);
    assert_eq!(server.accepted(), 0);
}

fn the_longest_user_and_password_work(engine: Engine) {
    let server = Server::echo();
    let (user, password) = ("u".repeat(255), "p".repeat(255));
    let daemon = Daemon::start(engine, &proxy("socks5", &format!("users = {{ {user} = \"{password}\" }}")));
    let mut client = connect(daemon.address("in"));
    client.write_all(&[5, 1, 2]).unwrap();
    assert_eq!(read_bytes(&mut client, 2), [5, 2]);
    client.write_all(&socks_login(user.as_bytes(), password.as_bytes())).unwrap();
    assert_eq!(read_bytes(&mut client, 2), [1, 0]);
    client.write_all(&socks_request_to(server.address())).unwrap();
    assert_eq!(read_socks_reply(&mut client).code, 0);
    assert_echo(&mut client, b"payload");
}

fn users_may_come_from_a_file(engine: Engine) {
    let server = Server::echo();
    let setup = Setup::new(engine);
    std::fs::write(setup.folder().join("users"), "ann:secret\nbob:pass:with:colons\n").unwrap();
    let daemon = setup.start(&proxy("socks5", "users_file = \"@dir@/users\""));
    let mut client = connect(daemon.address("in"));
    let joined =
        [&[5, 1, 2], &socks_login(b"bob", b"pass:with:colons")[..], &socks_request_to(server.address())];
    client.write_all(&joined.concat()).unwrap();
    assert_eq!(read_bytes(&mut client, 4), [5, 2, 1, 0]);
    assert_eq!(read_socks_reply(&mut client).code, 0);
    assert_echo(&mut client, b"payload");
}

fn http_asks_for_a_password(engine: Engine) {
    /// ann:secret and ann:wrong in base 64.
    const RIGHT: &str = "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n";
    const WRONG: &str = "Proxy-Authorization: Basic YW5uOndyb25n\r\n";
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("http", ANN));
    let request = |field: &str| {
        format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n{field}\r\n", server.address()).into_bytes()
    };
    for field in ["", WRONG] {
        let response = exchange(&mut connect(daemon.address("in")), &request(field));
        assert_eq!(response.status, 407);
        assert!(response.field("Proxy-Authenticate").is_some_and(|value| value.starts_with("Basic")));
    }
    assert_eq!(server.accepted(), 0);
    let mut client = connect(daemon.address("in"));
    client.write_all(&request(RIGHT)).unwrap();
    assert_eq!(status_of(&read_head(&mut client)), 200);
    assert_echo(&mut client, b"payload");
}

/// Clients that a trusted proxy names: 198.51.100.0/24 may come, but for 198.51.100.128/25.
fn networks(to: &Server) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"out\"\n\
         allow = \"198.51.100.0/24\"\ndeny = [\"203.0.113.0/24\", \"198.51.100.128/25\"]\n\
         proxy_protocol = {{ trusted = [\"127.0.0.1\"] }}\n[upstream.out]\naddress = \"{}\"\n",
        to.address()
    )
}

fn clients_from_denied_networks_are_reset_counted_and_told_once_a_second(engine: Engine) {
    const REFUSED: &str = "clients may not come from there";
    let server = Server::echo();
    let daemon = Daemon::start(engine, &networks(&server));
    let from = |client: &str| {
        let mut stream = connect(daemon.address("in"));
        stream.write_all(format!("PROXY TCP4 {client} 192.0.2.1 5000 443\r\n").as_bytes()).unwrap();
        stream
    };
    let begin = Instant::now();
    for client in (128..=146).map(|last| format!("198.51.100.{last}")) {
        assert_eq!(read_rest(&mut from(&client)), (Vec::new(), End::Reset), "{client}");
    }
    let told = daemon.text().matches(REFUSED).count();
    assert!((1..=1 + begin.elapsed().as_secs() as usize).contains(&told), "{told} lines");
    observe_for(Duration::from_millis(1_100));
    assert_eq!(read_rest(&mut from("192.0.2.7")), (Vec::new(), End::Reset));
    let line = daemon.wait_line("the next line", |line| line.contains("192.0.2.7"));
    assert!(line.contains(REFUSED) && line.contains("others=") && !line.contains("others=0"), "{line}");
    assert_echo(&mut from("198.51.100.127"), b"payload");
    assert_eq!(number(named(&daemon.status(), "listeners", "in"), &["closed", "client-not-allowed"]), 20);
    assert_eq!(server.accepted(), 1);
}

fn explain_knows_who_may_come(engine: Engine) {
    let daemon = Daemon::start(engine, &networks(&Server::echo()));
    let explain = |from: &str| {
        let asked = ringweir(&["explain", "--listener", "in", "--from", from, "--admin", &daemon.admin()]);
        assert_eq!(asked.code, 0, "{}", asked.stderr);
        asked.stdout
    };
    assert!(explain("198.51.100.1").contains("out (upstream"));
    for refused in ["198.51.100.200", "192.0.2.1"] {
        assert!(explain(refused).contains("serves no clients from there"), "{refused}");
    }
}
