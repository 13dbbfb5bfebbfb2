//! Who may use a listener: users with passwords, and clients from some networks alone.

use std::io::Write;
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::harness::client::{
    assert_closed, assert_echo, connect, read_bytes, read_rest, read_socks_reply, socks_login,
    socks_request_to,
};
use crate::harness::daemon::{Daemon, Setup, check, ringweir};
use crate::harness::http::{exchange, read_head, status_of};
use crate::harness::pattern::End;
use crate::harness::server::Server;
use crate::harness::status::{metric, named, number};
use crate::harness::{Engine, PATIENCE, eventually, observe_for, scenarios};

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
    a_hashed_password_passes_and_the_second_session_costs_nothing,
    wrong_passwords_and_unknown_names_are_refused_alike_where_passwords_are_hashed,
    what_follows_a_hashed_password_is_not_lost,
    a_flood_of_passwords_is_bounded_and_leaves_sessions_alone,
    a_reload_forgets_the_passwords_of_users_that_have_changed,
    hashes_that_cannot_be_used_are_refused_where_they_stand,
    each_user_has_figures_that_outlive_a_reload,
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

/// `ringweir hash-password`, with this on its stdin.
fn hash_of(password: &str, arguments: &[&str]) -> Result<String, String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringweir"))
        .arg("hash-password")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that refuses its arguments is gone before it reads.
    let _ = child.stdin.take().unwrap().write_all(format!("{password}\nmore\n").as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Of `secret`, made once: dear enough that verifying it shows.
fn dear_hash() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| hash_of("secret", &["--memory", "64", "--passes", "4"]).unwrap())
}

/// Logs in, and returns how the server took it and how long it took for that.
fn log_in(daemon: &Daemon, user: &str, password: &str) -> (u8, Duration, std::net::TcpStream) {
    let mut client = connect(daemon.address("in"));
    client.write_all(&[5, 1, 2]).unwrap();
    assert_eq!(read_bytes(&mut client, 2), [5, 2]);
    let begin = Instant::now();
    client.write_all(&socks_login(user.as_bytes(), password.as_bytes())).unwrap();
    let status = read_bytes(&mut client, 2)[1];
    (status, begin.elapsed(), client)
}

/// The status of a CONNECT by HTTP with these credentials in base 64.
fn http_status(daemon: &Daemon, to: &Server, basic: &str) -> u16 {
    let to = to.address();
    let request =
        format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: Basic {basic}\r\n\r\n");
    let mut client = connect(daemon.address("in"));
    client.write_all(request.as_bytes()).unwrap();
    status_of(&read_head(&mut client))
}

fn closed(daemon: &Daemon, reason: &str) -> u64 {
    number(named(&daemon.status(), "listeners", "in"), &["closed", reason])
}

fn a_hashed_password_passes_and_the_second_session_costs_nothing(engine: Engine) {
    let server = Server::echo();
    let users = format!("users = {{ ann = \"{}\", bob = \"other\" }}", dear_hash());
    let daemon = Daemon::start(engine, &proxy("mixed", &users));
    let (status, first, mut client) = log_in(&daemon, "ann", "secret");
    assert_eq!(status, 0);
    client.write_all(&socks_request_to(server.address())).unwrap();
    assert_eq!(read_socks_reply(&mut client).code, 0);
    assert_echo(&mut client, b"payload");
    let later = (0..5).map(|_| log_in(&daemon, "ann", "secret"));
    let later = later.map(|(status, took, _)| (status == 0).then_some(took).unwrap()).min().unwrap();
    assert!(later * 4 < first, "first in {first:?}, then in {later:?}");
    assert_eq!(http_status(&daemon, &server, "YW5uOnNlY3JldA=="), 200);
    assert_eq!(log_in(&daemon, "bob", "other").0, 0, "who is not hashed");
}

fn wrong_passwords_and_unknown_names_are_refused_alike_where_passwords_are_hashed(engine: Engine) {
    let server = Server::echo();
    let users = format!("users = {{ ann = \"{}\", bob = \"other\" }}", dear_hash());
    let daemon = Daemon::start(engine, &proxy("mixed", &users));
    let (status, right, _) = log_in(&daemon, "ann", "secret");
    assert_eq!(status, 0);
    for (user, password) in [("ann", "wrong"), ("eve", "secret"), ("bob", "wrong"), ("bob", "secret")] {
        let (status, took, mut client) = log_in(&daemon, user, password);
        assert!(status != 0 && took * 4 > right, "{user} {password}: {status} after {took:?}, not {right:?}");
        assert_closed(&mut client);
    }
    let (status, took, _) = log_in(&daemon, "ann", "wrong");
    assert!(status != 0 && took * 4 < right, "the same again: {status} after {took:?}, not {right:?}");
    assert_eq!(http_status(&daemon, &server, "YW5uOndyb25nZXI="), 407);
    eventually(PATIENCE, "all are counted", || closed(&daemon, "client-authentication") == 6);
    assert_eq!(server.accepted(), 0);
}

fn what_follows_a_hashed_password_is_not_lost(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &proxy("socks5", &format!("users = {{ ann = \"{}\" }}", dear_hash())));
    let mut client = connect(daemon.address("in"));
    let login = socks_login(b"ann", b"secret");
    let all = [&[5, 1, 2], &login[..], &socks_request_to(server.address()), b"payload"].concat();
    client.write_all(&all).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_bytes(&mut client, 4), [5, 2, 1, 0]);
    assert_eq!(read_socks_reply(&mut client).code, 0);
    assert_eq!(read_rest(&mut client), (b"payload".to_vec(), End::Fin));
}

fn a_flood_of_passwords_is_bounded_and_leaves_sessions_alone(engine: Engine) {
    const FLOOD: usize = 100;
    let server = Server::echo();
    let users = format!("users = {{ ann = \"{}\", bob = \"other\" }}", dear_hash());
    let daemon = Daemon::start(engine, &proxy("socks5", &users));
    let (_, _, mut client) = log_in(&daemon, "bob", "other");
    client.write_all(&socks_request_to(server.address())).unwrap();
    assert_eq!(read_socks_reply(&mut client).code, 0);
    let guesses: Vec<_> = (0..FLOOD)
        .map(|guess| {
            let mut client = connect(daemon.address("in"));
            let login = socks_login(b"ann", format!("guess {guess}").as_bytes());
            client.write_all(&[&[5, 1, 2], &login[..]].concat()).unwrap();
            client
        })
        .collect();
    // The queue takes 32 of one source, beside those that are being verified and were by then.
    eventually(PATIENCE, "guesses are turned away", || closed(&daemon, "too-many-logins") > 40);
    for _ in 0..20 {
        assert_echo(&mut client, b"payload");
        assert_eq!(log_in(&daemon, "bob", "other").0, 0);
    }
    let looked_at = closed(&daemon, "client-authentication");
    assert!(looked_at < 20, "the others waited for {looked_at} guesses");
    assert!(daemon.text().contains("too many passwords wait"));
    drop(guesses);
}

fn a_reload_forgets_the_passwords_of_users_that_have_changed(engine: Engine) {
    let hash = |password| hash_of(password, &["--memory", "1", "--passes", "1"]).unwrap();
    let config = |hash: &str| proxy("socks5", &format!("users = {{ ann = \"{hash}\" }}"));
    let daemon = Daemon::start(engine, &config(&hash("secret")));
    assert_eq!(log_in(&daemon, "ann", "secret").0, 0);
    daemon.reload(&config(&hash("other"))).unwrap();
    assert_eq!(["secret", "other"].map(|password| log_in(&daemon, "ann", password).0), [1, 0]);
    daemon.reload(&config("plain")).unwrap();
    assert_eq!(["other", "plain"].map(|password| log_in(&daemon, "ann", password).0), [1, 0]);
}

fn hashes_that_cannot_be_used_are_refused_where_they_stand(_: Engine) {
    let made = hash_of("secret", &[]).unwrap();
    assert!(made.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{made}");
    assert_eq!(check(&proxy("socks5", &format!("users = {{ ann = \"{made}\" }}"))).code, 0);
    let wrong = [
        ("$2b$10$abcdefghijklmnopqrstuv".to_owned(), "only argon2id"),
        (made.replace("m=19456", "m=4000000"), "256 are the most"),
        (made[..made.len() - 23].to_owned(), "result"),
    ];
    for (hash, why) in wrong {
        let refused = check(&proxy("socks5", &format!("users = {{ ann = \"{hash}\" }}")));
        let place = ":6:";
        assert!(refused.code != 0 && refused.stderr.contains(why), "{hash}: {}", refused.stderr);
        assert!(
            refused.stderr.contains(place) && refused.stderr.contains("listener[0].users.ann"),
            "{}",
            refused.stderr
        );
        assert!(!refused.stderr.contains(&hash), "the hash is nobody's to read: {}", refused.stderr);
    }
    assert!(hash_of("", &[]).unwrap_err().contains("1 to 255"));
    assert!(hash_of("secret", &["--memory", "4096"]).unwrap_err().contains("256"));
}

fn each_user_has_figures_that_outlive_a_reload(engine: Engine) {
    let server = Server::echo();
    let config = proxy("socks5", ANN);
    let daemon = Daemon::start(engine, &config);
    let (_, _, mut client) = log_in(&daemon, "ann", "secret");
    client.write_all(&socks_request_to(server.address())).unwrap();
    assert_eq!(read_socks_reply(&mut client).code, 0);
    assert_echo(&mut client, b"payload");
    assert_eq!(log_in(&daemon, "bob", "wrong").0, 1);
    let figures = |user: &str| {
        let status = daemon.status();
        let user = &named(&status, "listeners", "in")["users"][user];
        ["active", "sessions", "bytes_up", "bytes_down"].map(|key| number(user, &[key]))
    };
    eventually(PATIENCE, "the echo is counted", || figures("ann") == [1, 1, 7, 7]);
    assert_eq!(figures("bob"), [0; 4]);
    daemon.reload(&config.replace("other", "another")).unwrap();
    assert_echo(&mut client, b"more");
    drop(client);
    eventually(PATIENCE, "the session has ended", || figures("ann") == [0, 1, 11, 11]);
    let metrics = daemon.metrics();
    let of_ann = |name: &str| metric(&metrics, &[name, "listener=\"in\"", "user=\"ann\""]);
    assert_eq!([of_ann("user_sessions_total"), of_ann("user_bytes_total")], [1.0, 22.0]);
    let table = ringweir(&["status", "--admin", &daemon.admin()]).stdout;
    assert!(table.lines().any(|line| line.starts_with("ann ") && line.contains("11 B")), "{table}");
}
