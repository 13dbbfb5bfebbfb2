//! Listeners that ask for a user and password.

use std::io::Write;

use crate::harness::client::{
    assert_closed, assert_echo, connect, read_bytes, read_rest, read_socks_reply, socks_login,
    socks_request_to,
};
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::http::{exchange, read_head, status_of};
use crate::harness::pattern::End;
use crate::harness::server::Server;
use crate::harness::{Engine, scenarios};

scenarios!(Welcome:
    a_right_password_passes,
    a_wrong_password_is_refused,
    a_client_without_passwords_is_refused,
    a_request_before_the_password_is_never_dialled,
    the_longest_user_and_password_work,
    users_may_come_from_a_file,
    http_asks_for_a_password,
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
