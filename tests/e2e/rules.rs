//! Rules: who may go where, and over which target.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::harness::client::{
    assert_closed, connect, read_bytes, read_rest, read_socks_reply, socks_connect, socks_greet, socks_ip,
    socks_login, socks_name, socks_request,
};
use crate::harness::daemon::{Daemon, Setup, check, ringweir};
use crate::harness::http::exchange;
use crate::harness::pattern::End;
use crate::harness::server::Server;
use crate::harness::status::named;
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    the_first_rule_that_matches_decides,
    each_protocol_is_told_in_its_own_way,
    a_drop_says_nothing,
    the_user_decides_and_stands_in_the_log,
    plain_listeners_route_by_what_clients_say_first,
    plain_listeners_route_by_the_protocols_that_clients_offer,
    hits_are_counted_and_live_on,
    explain_tells_what_would_happen_and_does_not_count,
    lists_come_from_files_and_follow_them,
    a_broken_list_changes_nothing_and_is_told,
    browsers_get_the_rules_as_a_proxy_auto_config,
    countries_come_from_a_file_and_follow_it,
);

/// Servers `a` and `b`, a `mixed` listener that leads to `a`, and these rules.
fn config(servers: &[&Server], rules: &str) -> String {
    let mut text = "[log]\nsessions = true\n\
         [[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"a\"\n"
        .to_owned();
    for (name, server) in ["a", "b"].iter().zip(servers) {
        text.push_str(&format!("[upstream.{name}]\naddress = \"{}\"\n", server.address()));
    }
    text + rules
}

/// The reply code to a request for a name, and who answered.
fn ask(daemon: &Daemon, destination: &[u8], port: u16) -> (u8, Option<char>) {
    let (reply, mut stream) = socks_connect(daemon.address("in"), destination, port);
    let name = (reply.code == 0).then(|| char::from(read_bytes(&mut stream, 1)[0]));
    (reply.code, name)
}

fn hits(daemon: &Daemon, rule: &str) -> u64 {
    let status = daemon.status();
    named(&status, "rules", rule)["hits"].as_u64().expect("hits")
}

fn the_first_rule_that_matches_decides(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let rules = r#"
        [[rule]]
        domain = ["never.example"]
        domain_keyword = "tracker"
        action = "reject"
        [[rule]]
        domain_suffix = [".b.example"]
        domain_regex = '^b\d+\.'
        port = [443, "8000-8999"]
        target = "b"
        [[rule]]
        destination = ["192.0.2.0/24", "2001:db8::/32"]
        target = "b"
        [[rule]]
        source = "127.0.0.0/8"
        domain_suffix = "here.example"
        target = "b"
    "#;
    let daemon = Daemon::start(engine, &config(&[&a, &b], rules));
    let name = |name: &str, port| ask(&daemon, &socks_name(name), port);
    assert_eq!(name("never.example", 443), (2, None));
    assert_eq!(name("x.never.example", 443), (0, Some('a')), "an exact name is not a suffix");
    assert_eq!(name("my-TRACKER.b.example", 443), (2, None), "the first rule decides");
    assert_eq!(name("b.example", 443), (0, Some('b')));
    assert_eq!(name("X.B.example", 8500), (0, Some('b')));
    assert_eq!(name("b7.example", 8000), (0, Some('b')));
    assert_eq!(name("x.b.example", 80), (0, Some('a')), "all conditions must hold");
    assert_eq!(name("xb.example", 443), (0, Some('a')), "a suffix begins at a label");
    assert_eq!(name("q.here.example", 1), (0, Some('b')));
    let address = |text: &str| ask(&daemon, &socks_ip(text.parse().unwrap()), 80);
    assert_eq!(address("192.0.2.77"), (0, Some('b')));
    assert_eq!(address("2001:db8::1"), (0, Some('b')));
    assert_eq!(address("198.51.100.1"), (0, Some('a')));
}

fn each_protocol_is_told_in_its_own_way(engine: Engine) {
    let a = Server::named(b'a');
    let plain = "[[listener]]\nname = \"plain\"\nbind = \"127.0.0.1:0\"\ntarget = \"a\"\n";
    let daemon = Daemon::start(
        engine,
        &config(&[&a], &format!("{plain}[[rule]]\nname = \"no\"\naction = \"reject\"\n")),
    );
    let (reply, mut socks5) = socks_connect(daemon.address("in"), &socks_name("a.example"), 80);
    assert_eq!(reply.code, 2);
    assert_closed(&mut socks5);
    let mut socks4 = connect(daemon.address("in"));
    socks4.write_all(b"\x04\x01\x00\x50\xc0\x00\x02\x01\x00").unwrap();
    assert_eq!(read_bytes(&mut socks4, 2), [0, 0x5b]);
    for request in ["CONNECT a.example:443 HTTP/1.1\r\n\r\n", "GET http://a.example/ HTTP/1.1\r\n\r\n"] {
        assert_eq!(exchange(&mut connect(daemon.address("in")), request.as_bytes()).status, 403);
    }
    let mut plain = connect(daemon.address("plain"));
    assert_eq!(read_rest(&mut plain), (vec![], End::Reset));
    assert_eq!(a.accepted(), 0);
    daemon.wait_line("the session", |line| line.contains("rule-rejected") && line.contains("rule=\"no\""));
}

fn a_drop_says_nothing(engine: Engine) {
    let a = Server::named(b'a');
    let daemon = Daemon::start(engine, &config(&[&a], "[[rule]]\nport = 25\naction = \"drop\"\n"));
    let mut client = socks_greet(daemon.address("in"));
    client.write_all(&socks_request(&socks_name("a.example"), 25)).unwrap();
    assert_closed(&mut client);
    let mut client = connect(daemon.address("in"));
    client.write_all(b"CONNECT a.example:25 HTTP/1.1\r\n\r\n").unwrap();
    assert_closed(&mut client);
    assert_eq!(ask(&daemon, &socks_name("a.example"), 26), (0, Some('a')));
    daemon.wait_line("the session", |line| line.contains("rule-dropped"));
}

fn the_user_decides_and_stands_in_the_log(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let users = "users = { ann = \"secret\", bob = \"other\" }";
    let text = config(&[&a, &b], "[[rule]]\nuser = [\"bob\", \"eve\"]\ntarget = \"b\"\n");
    let daemon =
        Daemon::start(engine, &text.replace("target = \"a\"\n", &format!("target = \"a\"\n{users}\n")));
    for (user, password, expected) in [("ann", "secret", b'a'), ("bob", "other", b'b')] {
        let mut client = connect(daemon.address("in"));
        let login = socks_login(user.as_bytes(), password.as_bytes());
        let request = socks_request(&socks_name("x.example"), 80);
        client.write_all(&[&[5, 1, 2], &login[..], &request].concat()).unwrap();
        assert_eq!(read_bytes(&mut client, 4), [5, 2, 1, 0]);
        assert_eq!(read_socks_reply(&mut client).code, 0);
        assert_eq!(read_bytes(&mut client, 1), [expected]);
        drop(client);
        let field = format!("user=\"{user}\"");
        daemon.wait_line("the session", |line| line.contains(&field));
    }
    // bob:other
    let mut client = connect(daemon.address("in"));
    let login = "Proxy-Authorization: Basic Ym9iOm90aGVy\r\n";
    client.write_all(format!("CONNECT x.example:80 HTTP/1.1\r\n{login}\r\n").as_bytes()).unwrap();
    let head = read_until_name(&mut client);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.ends_with('b'), "{head}");
}

/// Everything up to the name that a server says, which follows the empty line.
fn read_until_name(client: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.extend(read_bytes(client, 1));
    }
    text.extend(read_bytes(client, 1));
    String::from_utf8_lossy(&text).into_owned()
}

fn plain_listeners_route_by_what_clients_say_first(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let rules = "[[rule]]\nhost = \"*.b.example\"\npath = \"/api/\"\ntarget = \"b\"\n\
                 [[rule]]\nlistener = \"in\"\ndomain_suffix = \"c.example\"\naction = \"reject\"\n";
    let text = config(&[&a, &b], rules).replace("protocol = \"mixed\"\n", "");
    let daemon = Daemon::start(engine, &text);
    let ask = |host: &str, path: &str| {
        let mut client = connect(daemon.address("in"));
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
        first_byte(&mut client).map(char::from)
    };
    assert_eq!(ask("x.b.example", "/api/1?q"), Some('b'));
    assert_eq!(ask("x.b.example:80", "/api/"), Some('b'));
    assert_eq!(ask("b.example", "/api/1"), Some('a'));
    assert_eq!(ask("x.b.example", "/"), Some('a'));
    assert_eq!(ask("c.example", "/"), None);
}

/// A ClientHello that offers these protocols and names no server.
fn hello(protocols: &[&str]) -> Vec<u8> {
    let counted = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let names = protocols.iter().map(|name| [&[name.len() as u8], name.as_bytes()].concat());
    let alpn = [&[0, 16][..], &counted(&counted(&names.collect::<Vec<_>>().concat()))].concat();
    let extensions = if protocols.is_empty() { Vec::new() } else { counted(&alpn) };
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &extensions].concat();
    let message = [&[1, 0, 0, body.len() as u8], &body[..]].concat();
    [&[22, 3, 1][..], &counted(&message)].concat()
}

fn plain_listeners_route_by_the_protocols_that_clients_offer(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let rules = "[[rule]]\nname = \"acme\"\nalpn = [\"acme-tls/1\", \"h2\"]\ntarget = \"b\"\n";
    let text = config(&[&a, &b], rules).replace("protocol = \"mixed\"\n", "");
    let daemon = Daemon::start(engine, &text);
    for (offered, expected) in [
        (&["acme-tls/1"][..], b'b'),
        (&["http/1.1", "h2"], b'b'),
        (&["http/1.1"], b'a'),
        (&["H2", "h2c"], b'a'),
        (&[], b'a'),
    ] {
        let (mut client, hello) = (connect(daemon.address("in")), hello(offered));
        client.write_all(&hello).unwrap();
        assert_eq!(read_bytes(&mut client, 1), [expected], "{offered:?}");
        assert_eq!(read_bytes(&mut client, hello.len()), hello, "{offered:?}");
    }
    assert_eq!(hits(&daemon, "acme"), 2);
    let explain = |more: &[&str]| {
        let admin = daemon.admin();
        ringweir(&[&["explain", "--admin", &admin, "--listener", "in"], more].concat()).stdout
    };
    assert!(explain(&["--alpn", "http/1.1,h2"]).contains("acme matches: alpn holds"));
    let other = explain(&["--alpn", "http/1.1, h3"]);
    assert!(other.contains("acme does not match: alpn: http/1.1, h3 is not meant"), "{other}");
    assert!(explain(&[]).contains("alpn: there is no ClientHello that offers protocols (--alpn)"));
}

/// The first byte, or that there is none.
fn first_byte(client: &mut TcpStream) -> Option<u8> {
    let mut byte = [0];
    client.read_exact(&mut byte).ok().map(|()| byte[0])
}

fn hits_are_counted_and_live_on(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let rules = "[[rule]]\nname = \"to-b\"\ndomain_suffix = \"b.example\"\ntarget = \"b\"\n";
    let daemon = Daemon::start(engine, &config(&[&a, &b], rules));
    for _ in 0..3 {
        assert_eq!(ask(&daemon, &socks_name("b.example"), 80), (0, Some('b')));
        assert_eq!(ask(&daemon, &socks_name("a.example"), 80), (0, Some('a')));
    }
    assert_eq!(hits(&daemon, "to-b"), 3);
    assert!(daemon.metrics().contains("ringweir_rule_hits_total{rule=\"to-b\"} 3"));
    let changed = format!("[[rule]]\naction = \"reject\"\nport = 9\n{rules}");
    daemon.reload(&config(&[&a, &b], &changed)).unwrap();
    assert_eq!(ask(&daemon, &socks_name("b.example"), 80), (0, Some('b')));
    assert_eq!(hits(&daemon, "to-b"), 4);
    assert_eq!(ask(&daemon, &socks_name("b.example"), 9), (2, None));
    assert_eq!(hits(&daemon, "rule-1"), 1);
    let table = ringweir(&["status", "--admin", &daemon.admin()]);
    assert!(table.stdout.contains("to-b    b         4"), "{}", table.stdout);
}

fn explain_tells_what_would_happen_and_does_not_count(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let rules = "[[rule]]\nname = \"ann\"\nuser = \"ann\"\naction = \"drop\"\n\
                 [[rule]]\nname = \"to-pool\"\ndomain_suffix = \"b.example\"\ntarget = \"pool\"\n\
                 [group.pool]\npolicy = \"failover\"\nmembers = [\"b\", \"a\"]\n";
    let text = config(&[&a, &b], rules);
    let setup = Setup::new(engine);
    fs::write(setup.folder().join("other.toml"), &text).unwrap();
    let daemon = setup.start(&text);
    let admin = daemon.admin();
    let explain = |more: &[&str]| {
        let arguments = [&["explain", "--admin", &admin, "--listener", "in"], more].concat();
        ringweir(&arguments)
    };
    let told = explain(&["--to", "x.b.example:443"]);
    assert_eq!(told.code, 0, "{}", told.stderr);
    for line in [
        "ann does not match: user: the client is no user",
        "to-pool matches: domain holds",
        "to-pool decides",
        "  pool (group, unknown): failover picks b: b unknown, a unknown",
        "    b (upstream, unknown): it would be tried",
    ] {
        assert!(told.stdout.lines().any(|told| told == line), "{line:?} is not in\n{}", told.stdout);
    }
    assert!(explain(&["--user", "ann"]).stdout.contains("ann decides: drop"));
    assert!(explain(&["--to", "c.example:1"]).stdout.contains("no rule decides"));
    ringweir(&["drain", "b", "--admin", &admin]);
    let drained = explain(&["--json", "--to", "x.b.example:443"]);
    let drained: Value = serde_json::from_str(&drained.stdout).unwrap();
    assert_eq!(drained["way"][1]["target"], "a", "{drained}");
    assert_eq!(hits(&daemon, "to-pool"), 0);
    assert_ne!(explain(&["--to", "nonsense"]).code, 0);
    assert_ne!(ringweir(&["explain", "--admin", &admin, "--listener", "no"]).code, 0);
    let file = daemon.path("other.toml").display().to_string();
    let by_file = ringweir(&["explain", "--config", &file, "--listener", "in", "--to", "b.example:1"]);
    assert!(by_file.stdout.contains("to-pool decides"), "{}{}", by_file.stdout, by_file.stderr);
    // A listener that others can reach lets nobody into this machine.
    fs::write(
        daemon.path("open.toml"),
        format!(
            "{text}[[listener]]\nname = \"open\"\nbind = \"0.0.0.0:1\"\n\
        protocol = \"mixed\"\nallow = \"0.0.0.0/0\"\ntarget = \"direct\"\n"
        ),
    )
    .unwrap();
    let file = daemon.path("open.toml").display().to_string();
    let local = ringweir(&["explain", "--config", &file, "--listener", "open", "--to", "127.0.0.1:80"]);
    assert!(local.stdout.contains("it would refuse: 127.0.0.1 is local"), "{}{}", local.stdout, local.stderr);
    // The question was no session.
    eventually(PATIENCE, "no session is open", || daemon.status()["listeners"][0]["active"] == 0);
}

/// Puts another file in the place of one, as a download would.
fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

const BY_LIST: &str = "[[rule]]\nlist = [\"plain\", \"gfw\"]\ntarget = \"b\"\n\
     [list.plain]\nfile = \"@dir@/plain.txt\"\n[list.gfw]\nfile = \"gfw.txt\"\nformat = \"abp\"\n";

fn with_lists(engine: Engine, servers: &[&Server]) -> Daemon {
    let setup = Setup::new(engine);
    fs::write(setup.folder().join("plain.txt"), ".b.example\n192.0.2.0/24\n").unwrap();
    let filters = "[AutoProxy 0.2.9]\n||blocked.example\n@@||ok.blocked.example\n";
    fs::write(setup.folder().join("gfw.txt"), BASE64_STANDARD.encode(filters)).unwrap();
    setup.start(&config(servers, BY_LIST))
}

fn lists_come_from_files_and_follow_them(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let daemon = with_lists(engine, &[&a, &b]);
    let served_by = |name: &str| ask(&daemon, &socks_name(name), 80).1;
    assert_eq!(served_by("x.b.example"), Some('b'));
    assert_eq!(served_by("www.blocked.example"), Some('b'));
    assert_eq!(served_by("ok.blocked.example"), Some('a'));
    assert_eq!(ask(&daemon, &socks_ip("192.0.2.9".parse().unwrap()), 80), (0, Some('b')));
    put(&daemon.path("plain.txt"), "c.example\n");
    daemon.wait_line("the change", |line| line.contains("a list has changed") && line.contains("plain"));
    eventually(PATIENCE, "the new list is in force", || served_by("c.example") == Some('b'));
    assert_eq!(served_by("x.b.example"), Some('a'));
    assert_eq!(served_by("www.blocked.example"), Some('b'), "the other list stays");
    put(&daemon.path("gfw.txt"), "||d.example\n");
    eventually(PATIENCE, "the new list is in force", || served_by("d.example") == Some('b'));
    let told =
        ringweir(&["explain", "--admin", &daemon.admin(), "--listener", "in", "--to", "x.b.example:1"]);
    assert!(told.stdout.contains("list: x.b.example is not in plain, gfw"), "{}", told.stdout);
}

fn a_broken_list_changes_nothing_and_is_told(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let daemon = with_lists(engine, &[&a, &b]);
    let served_by = |name: &str| ask(&daemon, &socks_name(name), 80).1;
    put(&daemon.path("plain.txt"), "c.example\nthis is no name\n");
    let line = daemon.wait_line("the mistake", |line| line.contains("broken"));
    assert!(line.contains("line 2") && line.contains("plain.txt"), "{line}");
    assert_eq!(served_by("x.b.example"), Some('b'));
    assert_eq!(served_by("c.example"), Some('a'));
    let refused = daemon.reload(&config(&[&a, &b], BY_LIST)).unwrap_err();
    assert!(refused.contains("plain.txt:2:1: list.plain.file: \"this is no name\""), "{refused}");
    put(&daemon.path("plain.txt"), "c.example\n");
    daemon.reload(&config(&[&a, &b], BY_LIST)).unwrap();
    assert_eq!(served_by("c.example"), Some('b'));
}

fn browsers_get_the_rules_as_a_proxy_auto_config(engine: Engine) {
    let a = Server::named(b'a');
    let rules = r#"
        [[rule]]
        name = "no"
        domain_keyword = "tracker"
        action = "reject"
        [[rule]]
        name = "ann"
        user = "ann"
        domain = "secret.example"
        target = "direct"
        [[rule]]
        name = "near"
        domain_suffix = "near.example"
        domain_regex = '^ad\d+\.'
        port = [80, 443]
        target = "direct"
        [[rule]]
        name = "private"
        destination = ["10.0.0.0/8", "fd00::/8"]
        target = "direct"
        [[rule]]
        name = "elsewhere"
        sni = "a.example"
        target = "direct"
    "#;
    let daemon = Daemon::start(engine, &config(&[&a], rules));
    let response = daemon.ask("GET", "/proxy.pac?listener=in");
    assert_eq!(response.status, 200);
    assert_eq!(response.field("Content-Type"), Some("application/x-ns-proxy-autoconfig"));
    let text = response.text();
    assert!(text.contains("// \"ann\", without user (the user is not known): the proxy decides."), "{text}");
    assert!(text.contains("// \"elsewhere\" is left out"), "{text}");
    assert_eq!(daemon.ask("GET", "/proxy.pac?listener=nobody").status, 404);
    assert_eq!(daemon.ask("GET", "/proxy.pac?proxy=%22;evil()").status, 400);
    let cases = [
        ("http://tracker.near.example/", "tracker.near.example", "proxy"),
        ("https://secret.example/", "secret.example", "proxy"),
        ("https://www.near.example/x", "www.near.example", "DIRECT"),
        ("https://www.near.example:8443/x", "www.near.example", "proxy"),
        ("http://ad7.example/", "AD7.example.", "DIRECT"),
        ("http://10.1.2.3:9/", "10.1.2.3", "DIRECT"),
        ("http://11.1.2.3/", "11.1.2.3", "proxy"),
        ("http://[fd00::1]/", "fd00::1", "proxy"),
        ("https://a.example/", "a.example", "proxy"),
    ];
    let proxy = format!("PROXY {}", daemon.address("in"));
    let calls: Vec<String> = cases
        .iter()
        .map(|(url, host, _)| format!("console.log(FindProxyForURL({url:?}, {host:?}));"))
        .collect();
    let script = format!("{text}{}", calls.join("\n"));
    let Ok(told) = Command::new("node").arg("-e").arg(&script).output() else {
        eprintln!("SKIPPED: node is not installed");
        return;
    };
    assert!(told.status.success(), "{}\n{text}", String::from_utf8_lossy(&told.stderr));
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let expected = cases.map(|(.., way)| if way == "proxy" { proxy.as_str() } else { way });
    assert_eq!(told.lines().collect::<Vec<_>>(), expected, "{text}");
}

/// A file in MaxMind's format (version 2.0) that knows the country of one network of IPv4, given by its first bits.
fn country_file(bits: &[u8], code: &str) -> Vec<u8> {
    let text = |text: &str| [&[0x40 | text.len() as u8], text.as_bytes()].concat();
    let map = |entries: &[Vec<u8>]| [&[0xe0 | (entries.len() / 2) as u8][..], &entries.concat()].concat();
    let data = map(&[text("country"), map(&[text("iso_code"), text(code)])]);
    let nodes = bits.len() as u32;
    let mut tree = Vec::new();
    for (index, bit) in bits.iter().enumerate() {
        let next = if index + 1 == bits.len() { nodes + 16 } else { index as u32 + 1 };
        let records = if *bit == 0 { [next, nodes] } else { [nodes, next] };
        records.iter().for_each(|record| tree.extend(&record.to_be_bytes()[1..]));
    }
    let small = |number: u16| [&[0xa2][..], &number.to_be_bytes()].concat();
    let medium = |number: u32| [&[0xc4][..], &number.to_be_bytes()].concat();
    let metadata = map(&[
        text("node_count"),
        medium(nodes),
        text("record_size"),
        small(24),
        text("ip_version"),
        small(4),
        text("database_type"),
        text("Test-Country"),
        text("languages"),
        vec![0x00, 0x04],
        text("binary_format_major_version"),
        small(2),
        text("binary_format_minor_version"),
        small(0),
        text("build_epoch"),
        vec![0x04, 0x02, 0, 0, 0, 1],
        text("description"),
        map(&[]),
    ]);
    [&tree[..], &[0; 16], &data, b"\xab\xcd\xefMaxMind.com", &metadata].concat()
}

fn countries_come_from_a_file_and_follow_it(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let setup = Setup::new(engine);
    let file = setup.folder().join("countries.mmdb");
    // 10.0.0.0/8
    let ten = [0, 0, 0, 0, 1, 0, 1, 0];
    fs::write(&file, country_file(&ten, "DE")).unwrap();
    let rules =
        "[[rule]]\ncountry = [\"de\", \"FR\"]\ntarget = \"b\"\n[country]\nfile = \"countries.mmdb\"\n";
    let daemon = setup.start(&config(&[&a, &b], rules));
    let served_by = |text: &str| ask(&daemon, &socks_ip(text.parse().unwrap()), 80).1;
    assert_eq!(served_by("10.1.2.3"), Some('b'));
    assert_eq!(served_by("11.1.2.3"), Some('a'));
    assert_eq!(ask(&daemon, &socks_name("ten.example"), 80), (0, Some('a')), "names are not resolved");
    fs::write(file.with_extension("new"), country_file(&ten, "US")).unwrap();
    fs::rename(file.with_extension("new"), &file).unwrap();
    eventually(PATIENCE, "the new table is in force", || served_by("10.1.2.3") == Some('a'));
    fs::write(file.with_extension("new"), "no such file").unwrap();
    fs::rename(file.with_extension("new"), &file).unwrap();
    daemon.wait_line("the mistake", |line| line.contains("broken") && line.contains("MaxMind"));
    assert_eq!(served_by("10.1.2.3"), Some('a'));
}

#[test]
fn mistakes_in_rules_are_told_with_their_places() {
    let told = check(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"a\"\n\
         [upstream.a]\naddress = \"127.0.0.1:1\"\n\
         [[rule]]\nport = \"9-1\"\ntarget = \"a\"\n\
         [[rule]]\ndomain_regex = \"(\"\naction = \"reject\"\n\
         [[rule]]\ndomain = \"a b\"\ntarget = \"b\"\n\
         [[rule]]\nlistener = \"im\"\naction = \"refuse\"\n\
         [[rule]]\nsource = \"nowhere\"\n\
         [[rule]]\ntarget = \"direct\"\n\
         [[rule]]\nalpn = [\"h2\", \"\"]\naction = \"drop\"\n",
    );
    assert_eq!(told.code, 1);
    for line in [
        ":8:8: rule[0].port: \"9-1\" is no range of ports",
        ":11:16: rule[1].domain_regex: \"(\" is no regular expression",
        ":14:10: rule[2].domain: \"a b\" is no host name",
        ":15:10: rule[2].target: there is no upstream or group \"b\"",
        ":17:12: rule[3].listener: there is no listener \"im\"",
        ":18:10: rule[3].action: \"refuse\" is not known here",
        ":20:10: rule[4].source: \"nowhere\" is no network",
        "rule[4]: says nothing of what becomes of a session",
        ":22:10: rule[5].target: leads to direct",
        ":24:15: rule[6].alpn[1]: \"\" is no name of a protocol",
    ] {
        assert!(told.stderr.contains(line), "{line:?} is not in\n{}", told.stderr);
    }
}
