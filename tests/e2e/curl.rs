//! A client that others wrote: curl through every kind of proxy.

use std::net::SocketAddr;

use crate::harness::curl::{curl, fetch, is_installed};
use crate::harness::daemon::Daemon;
use crate::harness::http::origin;
use crate::harness::pattern::{DOWN, UP};
use crate::harness::server::{Refuser, Server};
use crate::harness::{Engine, scenarios};

scenarios!(Welcome:
    curl_through_socks,
    curl_through_socks5,
    curl_through_an_http_proxy,
    curl_through_a_mixed_port,
    curl_with_a_user_and_password,
    curl_uploads_through_every_proxy,
    curl_is_told_why_it_failed,
);

/// Enough for many turns of any buffer.
const BYTES: usize = 1_000_000;

fn start(engine: Engine, protocol: &str, users: &str) -> Daemon {
    let listener = "name = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"direct\"";
    Daemon::start(engine, &format!("[[listener]]\n{listener}\nprotocol = \"{protocol}\"\n{users}\n"))
}

/// The arguments that make curl use a proxy.
fn ways(protocol: &str, proxy: SocketAddr) -> Vec<Vec<String>> {
    let with = |option: &str| vec![option.to_owned(), proxy.to_string()];
    let socks = ["--socks5", "--socks5-hostname"].map(with);
    let socks4 = ["--socks4", "--socks4a"].map(with);
    let http = vec!["-x".to_owned(), format!("http://{proxy}")];
    let tunnel = [http.clone(), vec!["-p".to_owned()]].concat();
    match protocol {
        "socks5" => socks.into(),
        "socks" => socks.into_iter().chain(socks4).collect(),
        "http" => vec![http, tunnel],
        _ => socks.into_iter().chain(socks4).chain([http, tunnel]).collect(),
    }
}

fn fetch_every_way(server: &Server, ways: &[Vec<String>], more: &[&str]) {
    for way in ways {
        for host in ["127.0.0.1", "localhost"] {
            let url = format!("http://{host}:{}/bytes/{BYTES}", server.port());
            let arguments: Vec<&str> =
                way.iter().map(String::as_str).chain(more.iter().copied()).chain([&*url]).collect();
            let body = fetch(&arguments);
            assert!(body == DOWN.head(BYTES), "{arguments:?}: {} bytes", body.len());
        }
    }
}

fn curl_through(engine: Engine, protocol: &str) {
    if !is_installed() {
        return;
    }
    let server = origin();
    let daemon = start(engine, protocol, "");
    fetch_every_way(&server, &ways(protocol, daemon.address("in")), &[]);
}

fn curl_through_socks(engine: Engine) {
    curl_through(engine, "socks");
}

fn curl_through_socks5(engine: Engine) {
    curl_through(engine, "socks5");
}

fn curl_through_an_http_proxy(engine: Engine) {
    curl_through(engine, "http");
}

fn curl_through_a_mixed_port(engine: Engine) {
    curl_through(engine, "mixed");
}

fn curl_with_a_user_and_password(engine: Engine) {
    if !is_installed() {
        return;
    }
    let server = origin();
    let daemon = start(engine, "mixed", "users = { ann = \"secret\" }");
    let (socks4, ways): (Vec<_>, Vec<_>) =
        ways("mixed", daemon.address("in")).into_iter().partition(|way| way[0].starts_with("--socks4"));
    fetch_every_way(&server, &ways, &["--proxy-user", "ann:secret"]);
    let served = server.accepted();
    for way in &socks4 {
        let url = format!("http://{}/bytes/1", server.address());
        let output = curl(&[&way[0], &way[1], "--proxy-user", "ann:secret", &url]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("93"), "{error}");
    }
    assert_eq!(server.accepted(), served, "a name without a password opens nothing");
    let served = server.accepted();
    let url = format!("http://{}/bytes/1", server.address());
    for way in &ways {
        for user in [&["--proxy-user", "ann:wrong"][..], &[]] {
            let arguments: Vec<&str> =
                way.iter().map(String::as_str).chain(user.iter().copied()).chain(["-f", &url]).collect();
            assert!(!curl(&arguments).status.success(), "{arguments:?}");
        }
    }
    assert_eq!(server.accepted(), served, "nobody was dialled for them");
}

fn curl_uploads_through_every_proxy(engine: Engine) {
    if !is_installed() {
        return;
    }
    let server = origin();
    let daemon = start(engine, "mixed", "");
    let file = daemon.path("upload");
    std::fs::write(&file, UP.head(BYTES)).unwrap();
    let data = format!("@{}", file.display());
    let url = format!("http://{}/", server.address());
    for way in ways("mixed", daemon.address("in")) {
        let arguments: Vec<&str> =
            way.iter().map(String::as_str).chain(["--data-binary", &data, &url]).collect();
        assert!(fetch(&arguments) == UP.head(BYTES), "{arguments:?}");
    }
}

fn curl_is_told_why_it_failed(engine: Engine) {
    if !is_installed() {
        return;
    }
    let refuser = Refuser::new();
    let daemon = start(engine, "mixed", "");
    let proxy = daemon.address("in").to_string();
    let url = format!("http://{}/", refuser.address());
    let output = curl(&["-x", &format!("http://{proxy}"), "-o", "/dev/null", "-w", "%{http_code}", &url]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "502");
    // 97 is CURLE_PROXY; its text names the reply of RFC 1928.
    let output = curl(&["--socks5", &proxy, &url]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(97), "{error}");
    assert!(error.contains("(5)") || error.contains("refused"), "{error}");
}
