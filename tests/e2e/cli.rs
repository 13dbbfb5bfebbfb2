//! The command line: what people type, and what they are told.

use crate::harness::client::{ask_name, assert_echo, connect_unix, is_served};
use crate::harness::daemon::{Daemon, Setup, check, ringweir};
use crate::harness::server::{Server, unix_echo};
use crate::harness::{Engine, scenarios};
use crate::relay::to;
use crate::reload::{assert_path, chain};

scenarios!(Welcome:
    forward_needs_no_file,
    forward_takes_several_listeners_and_a_policy,
    status_is_a_table_for_people_and_json_for_programs,
);

fn forward_needs_no_file(engine: Engine) {
    let server = Server::echo();
    let setup = Setup::new(engine);
    let daemon = setup.forward(&["--listen", "127.0.0.1:0", "--to", &server.address().to_string()]);
    let line = daemon.wait_line("the bind", |line| line.contains("listening"));
    let name = line.split_whitespace().find_map(|word| word.strip_prefix("name=")).unwrap();
    assert!(line.contains("protocol=tcp"), "{line}");
    assert!(is_served(daemon.address(name)));
}

fn forward_takes_several_listeners_and_a_policy(engine: Engine) {
    let (a, b) = (Server::named(b'a'), Server::named(b'b'));
    let setup = Setup::new(engine).workers(1);
    let daemon = setup.forward(&[
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "unix:@dir@/in.sock",
        "--to",
        &a.address().to_string(),
        "--to",
        &b.address().to_string(),
        "--policy",
        "failover",
    ]);
    let line = daemon.wait_line("the TCP bind", |line| line.contains("address=127.0.0.1:"));
    let name = line.split_whitespace().find_map(|word| word.strip_prefix("name=")).unwrap();
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("address=")).unwrap();
    for _ in 0..3 {
        let served = ask_name(address.parse().unwrap()).map(|(name, _)| name);
        assert_eq!(served, Some(b'a'), "listener {name}");
    }
    daemon.wait_line("the Unix bind", |line| line.contains("in.sock"));
    let mut client = connect_unix(&daemon.path("in.sock"));
    assert_eq!(crate::harness::client::read_bytes(&mut client, 1), b"a");
    assert_echo(&mut client, b"over a Unix socket");

    let setup = Setup::new(engine);
    unix_echo(&setup.folder().join("app.sock"));
    let daemon = setup.forward(&["--listen", "unix:@dir@/in.sock", "--to", "unix:@dir@/app.sock"]);
    assert_echo(&mut connect_unix(&daemon.path("in.sock")), b"from socket to socket");
}

fn status_is_a_table_for_people_and_json_for_programs(engine: Engine) {
    let server = Server::echo();
    let daemon = Daemon::start(engine, &to(server.address()));
    assert!(is_served(daemon.address("in")));
    let table = ringweir(&["status", "--admin", &daemon.admin()]);
    assert_eq!(table.code, 0, "{table:?}");
    for word in ["in", "up", "tcp", engine.as_arg()] {
        assert!(table.stdout.contains(word), "no {word} in:\n{}", table.stdout);
    }
    assert!(!table.stdout.trim_start().starts_with('{'), "{}", table.stdout);
    let json = ringweir(&["status", "--json", "--admin", &daemon.admin()]);
    assert_eq!(json.code, 0, "{json:?}");
    let status: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(crate::harness::status::number(&status["listeners"][0], &["accepted"]), 1, "{status:#}");
}

#[test]
fn without_a_daemon_commands_say_so() {
    for arguments in [&["status"][..], &["histogram"], &["reload"], &["drain", "x"], &["undrain", "x"]] {
        let done = ringweir(&[arguments, &["--admin", "unix:/nowhere/admin.sock"]].concat());
        assert_eq!(done.code, 1, "{arguments:?}: {done:?}");
        assert!(done.stderr.contains("/nowhere/admin.sock"), "{arguments:?}: {done:?}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [
        &["no-such-command"][..],
        &["run", "--engine", "steam"],
        &["run", "--workers", "none"],
        &["forward", "--to", "127.0.0.1:1"],
        &["forward", "--listen", "127.0.0.1:0"],
        &["check"],
        &["drain"],
    ] {
        let done = ringweir(arguments);
        assert_eq!(done.code, 2, "{arguments:?}: {done:?}");
    }
}

#[test]
fn help_teaches() {
    let help = ringweir(&["--help"]);
    assert_eq!(help.code, 0);
    for word in [
        "run",
        "forward",
        "check",
        "status",
        "histogram",
        "reload",
        "drain",
        "undrain",
        "disable",
        "enable",
        "completions",
    ] {
        assert!(help.stdout.contains(word), "no {word} in:\n{}", help.stdout);
    }
    let forward = ringweir(&["forward", "--help"]);
    assert!(forward.stdout.contains("--listen") && forward.stdout.contains("--policy"), "{}", forward.stdout);
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let done = ringweir(&["completions", shell]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stdout.contains("ringweir") && done.stdout.contains("undrain"), "{shell}");
    }
}

#[test]
fn check_accepts_a_good_file() {
    let done = check(&to("127.0.0.1:80".parse().unwrap()));
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stdout.lines().count() + done.stderr.lines().count(), 1, "one line: {done:?}");
}

#[test]
fn check_shows_every_error_with_its_place() {
    let config = "[[listener]]\n\
                  name = \"in\"\n\
                  bind = \"127.0.0.1:0\"\n\
                  protocol = \"tcp\"\n\
                  target = \"poool\"\n\
                  portocol = \"tcp\"\n\
                  [upstream.up]\n\
                  address = \"127.0.0.1:80\"\n\
                  weight = 0\n\
                  [group.pool]\n\
                  policy = \"round-robbin\"\n\
                  members = [\"up\", \"gone\"]\n";
    let done = check(config);
    assert_eq!(done.code, 1, "{done:?}");
    for (line, culprit, hint) in [
        (5, "poool", "pool"),
        (6, "portocol", "protocol"),
        (9, "weight", "1"),
        (11, "round-robbin", "round-robin"),
        (12, "gone", ""),
    ] {
        let place = format!("ringweir.toml:{line}:");
        let found = done.stderr.lines().find(|text| text.contains(&place)).unwrap_or_else(|| {
            panic!("nothing at line {line}:\n{}", done.stderr);
        });
        let (_, column) = found.split_once(&place).unwrap();
        assert!(column.starts_with(|first: char| first.is_ascii_digit()), "no column in {found}");
        assert!(done.stderr.contains(culprit) && done.stderr.contains(hint), "{culprit}:\n{}", done.stderr);
    }
    assert!(done.stderr.contains("did you mean"), "{}", done.stderr);
}

#[test]
fn check_names_the_path_of_a_cycle_and_of_too_deep_a_nest() {
    let good = to("127.0.0.1:80".parse().unwrap());
    let cycle = check(&(good.clone() + &chain(&["alpha".to_owned(), "beta".to_owned()], "alpha")));
    assert_eq!(cycle.code, 1);
    assert_path(&cycle.stderr, &["alpha", "beta", "alpha"]);
    let names: Vec<String> = (1..=9).map(|level| format!("level{level}")).collect();
    let deep = check(&(good + &chain(&names, "up")));
    assert_eq!(deep.code, 1);
    assert_path(&deep.stderr, &names.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn check_refuses_open_relays_with_both_remedies() {
    for protocol in ["socks5", "http", "mixed"] {
        for bind in ["0.0.0.0:1080", "[::]:1080", ":1080", "192.0.2.1:1080"] {
            let listener = |more: &str| {
                format!(
                    "[[listener]]\nname = \"in\"\nbind = \"{bind}\"\nprotocol = \"{protocol}\"\n\
                     target = \"direct\"\n{more}\n"
                )
            };
            let done = check(&listener(""));
            assert_eq!(done.code, 1, "{protocol} on {bind}");
            assert!(done.stderr.contains("users") && done.stderr.contains("allow"), "{}", done.stderr);
            for remedy in ["users = { ann = \"secret\" }", "allow = [\"10.0.0.0/8\"]"] {
                let done = check(&listener(remedy));
                assert_eq!(done.code, 0, "{protocol} on {bind} with {remedy}: {done:?}");
            }
        }
    }
}

#[test]
fn check_refuses_what_cannot_work() {
    let good = to("127.0.0.1:80".parse().unwrap());
    let listener = "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\n";
    for (config, culprit) in [
        (format!("{listener}protocol = \"tcp\"\ntarget = \"direct\"\n"), "direct"),
        (format!("{good}{listener}protocol = \"tcp\"\ntarget = \"up\"\n"), "in"),
        (format!("{good}[group.up]\nmembers = [\"up\"]\n"), "up"),
        (good.replace("127.0.0.1:80", "127.0.0.1:99999"), "99999"),
        (good.replace("127.0.0.1:80", "127.0.0.1"), "127.0.0.1"),
        (format!("{good}[timeouts]\nidle = \"soon\"\n"), "soon"),
        (format!("{good}[group.empty]\nmembers = []\n"), "members"),
        (good.replacen("target", "users = { ann = \"x\" }\ntarget", 1), "users"),
    ] {
        let done = check(&config);
        assert_eq!(done.code, 1, "{config}");
        assert!(done.stderr.contains(culprit), "{culprit} is not named:\n{}", done.stderr);
    }
    let missing = ringweir(&["check", "/nowhere/ringweir.toml"]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("/nowhere/ringweir.toml"), "{missing:?}");
}
