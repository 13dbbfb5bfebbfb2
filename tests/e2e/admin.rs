//! The admin endpoint: who may ask what, and what is answered.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use crate::harness::client::{assert_echo, connect, is_served};
use crate::harness::daemon::{Daemon, Setup, free_port};
use crate::harness::http::{Response, exchange};
use crate::harness::server::{Refuser, Server};
use crate::harness::status::{metric, named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};
use crate::relay::to;

scenarios!(Welcome:
    the_socket_is_its_owners_alone,
    wrong_methods_are_a_405_and_change_nothing,
    unknown_paths_are_a_404,
    requests_of_web_pages_are_refused,
    a_foreign_host_is_refused_over_tcp,
    a_token_is_asked_for,
    a_public_bind_without_a_token_refuses_to_start,
    the_tcp_bind_only_reads,
    metrics_count_what_happened,
    status_tells_of_listeners_and_targets,
);

fn the_socket_is_its_owners_alone(engine: Engine) {
    let server = Server::echo();
    let config = format!("[admin]\nlisten = \"unix:@dir@/made/for/it/admin.sock\"\n{}", to(server.address()));
    let daemon = Daemon::start(engine, &config);
    let mode = std::fs::metadata(daemon.path("made/for/it/admin.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
}

fn wrong_methods_are_a_405_and_change_nothing(engine: Engine) {
    let server = Server::echo();
    let good = to(server.address());
    let daemon = Daemon::start(engine, &good);
    daemon.write_config("nonsense = 1\n");
    for (method, path, allowed) in [
        ("GET", "/reload", "POST"),
        ("GET", "/drain?target=up", "POST"),
        ("GET", "/undrain?target=up", "POST"),
        ("GET", "/disable?target=up", "POST"),
        ("POST", "/status", "GET"),
        ("POST", "/metrics", "GET"),
        ("DELETE", "/health", "GET"),
        ("PUT", "/reload", "POST"),
    ] {
        let response = daemon.ask(method, path);
        assert_eq!(response.status, 405, "{method} {path}");
        let allow = response.field("Allow").unwrap_or_default();
        assert!(allow.contains(allowed), "{method} {path}: Allow: {allow}");
    }
    assert!(is_served(daemon.address("in")), "GET /drain drained");
    assert!(!daemon.text().contains("nonsense"), "GET /reload reloaded");
    assert_eq!(daemon.ask("GET", "/health").status, 200);
}

fn unknown_paths_are_a_404(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    assert_eq!(daemon.ask("GET", "/nowhere").status, 404);
    assert_eq!(daemon.ask("POST", "/drain?target=nobody").status, 404);
}

fn requests_of_web_pages_are_refused(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    for (method, path) in [("GET", "/status"), ("POST", "/reload"), ("POST", "/drain?target=up")] {
        let response = daemon.ask_with(method, path, "Origin: http://evil.example\r\n");
        assert_eq!(response.status, 403, "{method} {path}");
    }
    assert!(is_served(daemon.address("in")));
}

/// A daemon whose metrics have a TCP bind, and its address.
fn with_metrics(engine: Engine, bind: &str, more: &str) -> (Daemon, SocketAddr, Server) {
    let server = Server::echo();
    let port = free_port();
    let config = format!(
        "[admin]\nlisten = \"unix:@dir@/admin.sock\"\nmetrics = \"{bind}:{port}\"\n{more}\n{}",
        to(server.address())
    );
    let daemon = Daemon::start(engine, &config);
    (daemon, SocketAddr::from(([127, 0, 0, 1], port)), server)
}

#[track_caller]
fn get(address: SocketAddr, path: &str, fields: &str) -> Response {
    ask(address, "GET", path, fields)
}

#[track_caller]
fn ask(address: SocketAddr, method: &str, path: &str, fields: &str) -> Response {
    let host = if fields.contains("Host:") { String::new() } else { format!("Host: {address}\r\n") };
    let request =
        format!("{method} {path} HTTP/1.1\r\n{host}Content-Length: 0\r\n{fields}Connection: close\r\n\r\n");
    exchange(&mut connect(address), request.as_bytes())
}

fn a_foreign_host_is_refused_over_tcp(engine: Engine) {
    let (_daemon, address, _server) = with_metrics(engine, "127.0.0.1", "");
    assert_eq!(get(address, "/metrics", "").status, 200);
    assert_eq!(get(address, "/status", "").status, 200);
    let port = address.port();
    for host in ["localhost".to_owned(), format!("localhost:{port}"), "127.0.0.1".to_owned()] {
        assert_eq!(get(address, "/metrics", &format!("Host: {host}\r\n")).status, 200, "{host}");
    }
    // A name that an attacker lets point here (DNS rebinding).
    for host in
        ["evil.example".to_owned(), format!("evil.example:{port}"), "localhost.evil.example".to_owned()]
    {
        assert_eq!(get(address, "/metrics", &format!("Host: {host}\r\n")).status, 403, "{host}");
        assert_eq!(get(address, "/status", &format!("Host: {host}\r\n")).status, 403, "{host}");
    }
    assert_eq!(get(address, "/metrics", "Origin: http://evil.example\r\n").status, 403);
}

fn a_token_is_asked_for(engine: Engine) {
    let (_daemon, address, _server) = with_metrics(engine, "0.0.0.0", "token = \"open-sesame\"");
    for path in ["/metrics", "/status"] {
        assert_eq!(get(address, path, "").status, 401, "{path}");
        for wrong in ["Bearer wrong", "Bearer ", "Bearer open-sesame2", "Basic open-sesame", "open-sesame"] {
            let response = get(address, path, &format!("Authorization: {wrong}\r\n"));
            assert_eq!(response.status, 401, "{path} with {wrong}");
            assert!(!response.text().contains("ringweir_"), "{path} with {wrong}");
        }
        assert_eq!(get(address, path, "Authorization: Bearer open-sesame\r\n").status, 200, "{path}");
    }
    let setup = Setup::new(engine);
    std::fs::write(setup.folder().join("token"), "from-a-file\n").unwrap();
    let port = free_port();
    let server = Server::echo();
    let _daemon = setup.start(&format!(
        "[admin]\nlisten = \"unix:@dir@/admin.sock\"\nmetrics = \"127.0.0.1:{port}\"\ntoken_file = \"@dir@/token\"\n{}",
        to(server.address())
    ));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(get(address, "/metrics", "").status, 401);
    assert_eq!(get(address, "/metrics", "Authorization: Bearer from-a-file\r\n").status, 200);
}

fn a_public_bind_without_a_token_refuses_to_start(engine: Engine) {
    let server = Server::echo();
    for bind in ["0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:9180"] {
        let config = format!(
            "[admin]\nlisten = \"unix:@dir@/admin.sock\"\nmetrics = \"{bind}\"\n{}",
            to(server.address())
        );
        let (code, said) = Setup::new(engine).refused(&config);
        assert_eq!(code, 1, "{bind}: {said}");
        assert!(said.contains("token") && said.contains("ringweir.toml:"), "{bind}:\n{said}");
    }
}

fn the_tcp_bind_only_reads(engine: Engine) {
    let (daemon, address, _server) = with_metrics(engine, "127.0.0.1", "");
    daemon.write_config("nonsense = 1\n");
    for path in ["/reload", "/drain?target=up", "/undrain?target=up"] {
        let status = ask(address, "POST", path, "").status;
        assert!(matches!(status, 404 | 405), "{path}: {status}");
    }
    assert!(is_served(daemon.address("in")));
    assert!(!daemon.text().contains("nonsense"));
}

fn metrics_count_what_happened(engine: Engine) {
    let (server, dead) = (Server::echo(), Refuser::new());
    let config = to(server.address())
        + &to(dead.address())
            .replace("\"in\"", "\"broken\"")
            .replace("\"up\"", "\"dead\"")
            .replace(".up]", ".dead]");
    let daemon = Daemon::start(engine, &config);
    let mut client = connect(daemon.address("in"));
    assert_echo(&mut client, &[7; 1000]);
    assert!(!is_served(daemon.address("broken")));
    let value = |parts: &[&str]| metric(&daemon.metrics(), parts);
    assert_eq!(value(&["ringweir_", "active", "listener=\"in\""]), 1.0, "{}", daemon.metrics());
    assert_eq!(value(&["ringweir_", "target=\"dead\"", "refused"]), 1.0, "{}", daemon.metrics());
    // A client may have its bytes before they are counted.
    eventually(PATIENCE, "the bytes are counted", || {
        value(&["ringweir_", "bytes", "listener=\"in\""]) == 2000.0
    });
    drop(client);
    eventually(PATIENCE, "the end is counted", || {
        value(&["ringweir_", "active", "listener=\"in\""]) == 0.0
            && value(&["ringweir_", "listener=\"in\"", "reason=\"finished\""]) == 1.0
    });
    // Every family says what it is (the exposition format of Prometheus).
    let text = daemon.metrics();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("ringweir_"), "{line}");
    }
    assert!(text.contains("# HELP ringweir_") && text.contains("# TYPE ringweir_"), "{text}");
}

fn status_tells_of_listeners_and_targets(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    let mut client = connect(daemon.address("in"));
    assert_echo(&mut client, &[7; 500]);
    // A client may have its bytes before they are counted.
    let delivered = || number(named(&daemon.status(), "listeners", "in"), &["bytes_down"]);
    eventually(PATIENCE, "the bytes are counted", || delivered() == 500);
    let status = daemon.status();
    let (listener, target) = (named(&status, "listeners", "in"), named(&status, "targets", "up"));
    assert_eq!(status["engine"], engine.as_arg(), "{status:#}");
    for (key, value) in [("accepted", 1), ("active", 1), ("bytes_up", 500), ("bytes_down", 500)] {
        assert_eq!(number(listener, &[key]), value, "{key}");
    }
    for (key, value) in
        [("attempts", 1), ("committed", 1), ("active", 1), ("bytes_up", 500), ("bytes_down", 500)]
    {
        assert_eq!(number(target, &[key]), value, "{key}");
    }
}
