use std::fs;
use std::path::Path;
use std::time::Duration;

use ringweir_flow::reach::Reach;
use ringweir_flow::snapshot::{Policy, Protocol};
use ringweir_flow::way::Splicing;

use super::*;
use crate::model::{BindAddress, Endpoint, EngineKind, TargetKind, Workers};

fn read(text: &str) -> Result<Config, ConfigErrors> {
    parse(text, "test.toml", Path::new(""))
}

/// The only mistake in a text.
fn mistake(text: &str) -> Diagnostic {
    let ConfigErrors(mut found) = read(text).expect_err("a mistake is in the text");
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn check_of<'c>(config: &'c Config, name: &str) -> Option<&'c str> {
    let target = config.targets.iter().find(|target| &*target.name == name).unwrap();
    match &target.kind {
        TargetKind::Upstream(upstream) => upstream.check.as_ref().map(|check| &*check.name),
        TargetKind::Group(_) => panic!("{name} is a group"),
    }
}

const WEB: &str = "[[listener]]\nname = \"web\"\nbind = \"127.0.0.1:80\"\ntarget = \"pool\"\n";

#[test]
fn a_whole_configuration_is_understood() {
    let config = read(
        r#"
        [engine]
        kind = "tokio"
        workers = 3
        splice = 65536
        pipes = 7
        [admin]
        listen = "none"
        metrics = "127.0.0.1:9180"
        [log]
        sessions = true
        [timeouts]
        idle = "30m"
        drain = "5s"
        [resolver]
        servers = ["10.0.0.53"]
        [[listener]]
        name = "web"
        bind = ["0.0.0.0:443", "[::]:443"]
        target = "pool"
        timeouts = { idle = "5m" }
        [[listener]]
        name = "proxy"
        bind = ":1080"
        protocol = "mixed"
        target = "direct"
        users = { ann = "secret" }
        allow = ["10.0.0.0/8", "192.0.2.1"]
        deny = "10.9.0.0/16"
        allow_local = ["127.0.0.0/8"]
        timeouts.handshake = "3s"
        [upstream.tokyo]
        address = "10.0.0.2:8443"
        weight = 3
        [upstream.named]
        address = "app.example:80"
        [group.pool]
        policy = "least-connections"
        members = ["tokyo", "named", "spares"]
        check = "alive"
        [group.spares]
        members = ["reject"]
        weight = 2
        [check.alive]
        schedule = ["10s", "1m"]
        "#,
    )
    .unwrap();
    assert_eq!((config.engine.splicing, config.engine.pipes), (Splicing::From(65_536), Some(7)));
    assert_eq!((config.engine.kind, config.engine.workers), (EngineKind::Tokio, Workers::Count(3)));
    assert_eq!((config.admin.listen, config.drain), (None, Duration::from_secs(5)));
    assert_eq!(config.resolver.servers, ["10.0.0.53:53".parse().unwrap()]);
    let [web, proxy] = &config.listeners[..] else { panic!() };
    assert_eq!((web.binds.len(), web.protocol), (2, Protocol::Tcp));
    assert_eq!(web.timeouts.idle, Duration::from_secs(300));
    assert_eq!(proxy.binds, [BindAddress::DualStack(1080)]);
    assert_eq!(proxy.timeouts.idle, Duration::from_secs(1800));
    assert_eq!(proxy.timeouts.handshake, Duration::from_secs(3));
    assert_eq!(proxy.users.as_ref().unwrap().verify(b"ann", b"secret"), Ok(true));
    let access = proxy.access.as_ref().unwrap();
    assert_eq!((access.allow.as_ref().unwrap().len(), access.deny.len()), (2, 1));
    let TargetKind::Group(pool) = &config.targets[web.target.0 as usize].kind else { panic!() };
    assert_eq!((pool.policy, pool.attempts), (Policy::LeastConnections, 3));
    assert_eq!(pool.members.iter().map(|member| member.weight).collect::<Vec<_>>(), [3, 1, 2]);
    let last: Vec<&str> = config.targets.iter().rev().take(2).map(|target| &*target.name).collect();
    assert_eq!(last, ["reject", "direct"], "what is built in stands behind what is declared");
}

#[test]
fn many_mistakes_are_reported_at_once_with_their_places_and_hints() {
    let text = r#"
colour = 1
[engine]
kind = "io_uring"
workers = 0
[timeouts]
idle = 10
handshake = "soon"
[[listener]]
name = "web"
bind = "localhost:80"
protocol = "sock5"
target = "poool"
[group.pool]
members = ["a", "b"]
weight = 70000
check = "alife"
[check.alive]
fall = 0
[upstream.a]
addres = "10.0.0.1:80"
"#;
    let errors = read(text).unwrap_err();
    let lines: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    let expected = [
        "test.toml:2:1: colour: there is no such key\n    hint: known here: engine",
        "test.toml:4:8: engine.kind: \"io_uring\" is not known here\n    hint: did you mean \"io-uring\"?",
        "test.toml:5:11: engine.workers: 0 is not from 1 to 1024",
        "test.toml:7:8: timeouts.idle: wants a time as a string, not an integer\n    hint: write \"10s\"",
        "test.toml:8:13: timeouts.handshake: \"soon\" is not a time",
        "test.toml:11:8: listener[0].bind: \"localhost:80\" is a name",
        "test.toml:12:12: listener[0].protocol: \"sock5\" is not known here\n    hint: did you mean \"socks5\"?",
        "test.toml:13:10: listener[0].target: there is no upstream or group \"poool\"\n    hint: did you mean \"pool\"?",
        "test.toml:15:17: group.pool.members[1]: there is no upstream or group \"b\"\n    hint: declare it",
        "test.toml:16:10: group.pool.weight: 70000 is not from 1 to 65535",
        "test.toml:17:9: group.pool.check: there is no check \"alife\"\n    hint: did you mean \"alive\"?",
        "test.toml:19:8: check.alive.fall: 0 is not from 1 to 100",
        "test.toml:20:11: upstream.a: \"address\" is missing",
        "test.toml:21:1: upstream.a.addres: there is no such key\n    hint: did you mean \"address\"?",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
}

#[test]
fn several_syntax_errors_are_reported_at_once() {
    let errors = read("a = \nb = 1\nc = = 2\n").unwrap_err();
    let lines: Vec<usize> = errors.0.iter().map(|error| error.place.line).collect();
    assert!(lines.contains(&1) && lines.contains(&3), "{errors}");
}

#[test]
fn a_cycle_is_refused_and_its_path_named() {
    let text = format!(
        "{WEB}[group.pool]\nmembers = [\"spares\"]\n[group.spares]\nmembers = [\"last\"]\n\
         [group.last]\nmembers = [\"direct\", \"pool\"]\n"
    );
    let errors = read(&text).unwrap_err();
    let cycle = errors.0.iter().find(|error| error.key == "group.last.members[1]").unwrap();
    assert_eq!(cycle.message, "is a cycle: pool -> spares -> last -> pool");
    assert_eq!((cycle.place.line, cycle.place.column), (10, 22));
    let own = mistake(&format!("{WEB}[group.pool]\nmembers = [\"pool\"]\n"));
    assert_eq!(own.message, "is a cycle: pool -> pool");
}

#[test]
fn groups_nest_eight_deep_and_no_deeper() {
    let nested = |depth: usize| {
        let mut text = format!("{WEB}[upstream.g{depth}]\naddress = \"10.0.0.1:80\"\n");
        text.push_str("[group.pool]\nmembers = [\"g1\"]\n");
        for level in 1..depth {
            text.push_str(&format!("[group.g{level}]\nmembers = [\"g{}\"]\n", level + 1));
        }
        text
    };
    read(&nested(8)).unwrap();
    let error = mistake(&nested(9));
    assert_eq!(error.key, "group.pool");
    assert_eq!(
        error.message,
        "nests deeper than 8 groups: pool -> g1 -> g2 -> g3 -> g4 -> g5 -> g6 -> g7 -> g8"
    );
}

#[test]
fn open_relays_are_refused_with_both_remedies() {
    for protocol in ["socks5", "http", "mixed"] {
        let listener = |bind: &str, rest: &str| {
            format!(
                "[[listener]]\nname = \"p\"\nbind = [\"127.0.0.1:80\", {bind:?}]\nprotocol = {protocol:?}\n\
                 target = \"direct\"\n{rest}\n"
            )
        };
        for bind in [":1080", "0.0.0.0:1080", "[::]:1080", "192.0.2.1:1080"] {
            let error = mistake(&listener(bind, ""));
            assert_eq!((error.key.as_str(), error.place.line), ("listener[0].bind[1]", 3));
            assert!(error.message.contains("open relay"), "{error}");
            let hint = error.hint.unwrap();
            assert!(hint.contains("users") && hint.contains("allow"), "{hint}");
            read(&listener(bind, "users = { ann = \"secret\" }")).unwrap();
            read(&listener(bind, "allow = [\"10.0.0.0/8\"]")).unwrap();
            assert!(mistake(&listener(bind, "allow = []")).message.contains("nobody"));
        }
        read(&listener("127.0.0.2:1080", "")).unwrap();
    }
}

#[test]
fn reach_follows_from_the_binds() {
    let reach = |bind: &str| {
        let text = format!(
            "[[listener]]\nname = \"p\"\nbind = {bind}\nprotocol = \"mixed\"\ntarget = \"direct\"\n\
             allow = [\"10.0.0.0/8\"]\nallow_local = [\"127.0.0.0/8\"]\n"
        );
        read(&text).unwrap().listeners[0].reach.clone()
    };
    assert_eq!(reach("[\"127.0.0.1:1\", \"[::1]:1\"]"), Reach::Anywhere);
    let outside = Reach::NotLocal { allowed: ["127.0.0.0/8".parse().unwrap()].into() };
    assert_eq!(reach("[\"127.0.0.1:1\", \":2\"]"), outside);
    #[cfg(unix)]
    assert_eq!(reach("\"unix:/run/p.sock\""), Reach::Anywhere);
}

#[test]
fn a_tcp_listener_cannot_lead_to_direct() {
    let text = format!("{WEB}[group.pool]\nmembers = [\"inner\"]\n[group.inner]\nmembers = [\"direct\"]\n");
    let error = mistake(&text);
    assert_eq!(error.key, "listener[0].target");
    assert!(error.message.contains("pool -> inner -> direct"), "{error}");
}

#[test]
fn a_protocol_that_is_misspelt_is_not_taken_for_tcp() {
    let text = WEB.replace("target = \"pool\"", "protocol = \"redirct\"\ntarget = \"direct\"");
    assert!(mistake(&text).to_string().contains("did you mean \"redirect\"?"));
}

#[test]
fn names_and_addresses_are_taken_once() {
    let text = format!(
        "{WEB}{WEB}[upstream.pool]\naddress = \"10.0.0.1:80\"\n[group.pool]\nmembers = [\"direct\"]\n\
         [upstream.direct]\nkind = \"reject\"\n"
    );
    let messages: Vec<String> = read(&text).unwrap_err().0.into_iter().map(|error| error.message).collect();
    for expected in [
        "the name \"web\" is taken by another listener",
        "127.0.0.1:80 is taken: listener \"web\" is bound to 127.0.0.1:80",
        "the name \"pool\" is taken",
        "the name \"direct\" stands for what is built in",
    ] {
        assert!(messages.iter().any(|message| message == expected), "{expected}: {messages:#?}");
    }
}

#[test]
fn a_check_is_handed_down_to_members_that_name_none() {
    let text = format!(
        "{WEB}[upstream.own]\naddress = \"10.0.0.1:80\"\ncheck = \"slow\"\n\
         [upstream.plain]\naddress = \"10.0.0.2:80\"\n[upstream.deep]\naddress = \"10.0.0.3:80\"\n\
         [group.pool]\nmembers = [\"own\", \"plain\", \"inner\", \"reject\"]\ncheck = \"fast\"\n\
         [group.inner]\nmembers = [\"deep\"]\n[check.fast]\n[check.slow]\n"
    );
    let config = read(&text).unwrap();
    assert_eq!(check_of(&config, "own"), Some("slow"));
    assert_eq!(check_of(&config, "plain"), Some("fast"));
    assert_eq!(check_of(&config, "deep"), Some("fast"));
    assert_eq!(check_of(&config, "reject"), None);
    let torn = format!("{text}[group.other]\nmembers = [\"deep\"]\ncheck = \"slow\"\n");
    let error = mistake(&torn);
    assert_eq!(error.key, "upstream.deep");
    assert!(error.message.contains("different checks"), "{error}");
}

#[test]
fn an_admin_endpoint_for_strangers_needs_a_token() {
    let upstream = "[upstream.pool]\naddress = \"10.0.0.1:80\"\n";
    let error = mistake(&format!("[admin]\nmetrics = \"0.0.0.0:9180\"\n{WEB}{upstream}"));
    assert_eq!(error.key, "admin.metrics");
    let token = "[admin]\nmetrics = \"0.0.0.0:9180\"\ntoken = \"long-enough\"\n";
    assert!(read(&format!("{token}{WEB}{upstream}")).unwrap().admin.token.unwrap().verify(b"long-enough"));
    assert!(mistake(&format!("[admin]\ntoken = \"short\"\n{WEB}{upstream}")).message.contains("guessed"));
}

#[test]
fn users_come_from_a_file_beside_the_configuration_and_its_mistakes_are_placed_there() {
    let folder = std::env::temp_dir().join(format!("ringweir-users-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let config = folder.join("ringweir.toml");
    let text = "[[listener]]\nname = \"p\"\nbind = \":0\"\nprotocol = \"http\"\ntarget = \"direct\"\n\
                users_file = \"users\"\n";
    fs::write(&config, text).unwrap();
    fs::write(folder.join("users"), "# people\nann:se:cret\n\nbob:x\n").unwrap();
    let users = load(&config).unwrap().listeners[0].users.clone().unwrap();
    assert_eq!([users.verify(b"ann", b"se:cret"), users.verify(b"bob", b"x")], [Ok(true), Ok(true)]);
    fs::write(folder.join("users"), "ann:secret\nbob\n").unwrap();
    let errors = load(&config).unwrap_err();
    assert!(errors.0[0].place.file.ends_with("users") && errors.0[0].place.line == 2, "{errors}");
    fs::write(
        folder.join("users"),
        "bob:x\nann:$argon2id$v=19$m=99999999,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA\n",
    )
    .unwrap();
    let errors = load(&config).unwrap_err();
    assert!(errors.0[0].place.file.ends_with("users") && errors.0[0].place.line == 2, "{errors}");
    assert!(errors.0[0].key.ends_with("users_file") && errors.0[0].message.contains("MiB"), "{errors}");
    fs::remove_file(folder.join("users")).unwrap();
    assert!(load(&config).unwrap_err().to_string().contains("cannot be read"));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn protocol_and_upstream_kinds_allow_only_what_they_can_use() {
    let pool = "[upstream.pool]\naddress = \"10.0.0.1:80\"\n";
    let users = mistake(&format!("{WEB}users = {{ ann = \"secret\" }}\n{pool}"));
    assert!(users.message.contains("no meaning where the protocol is tcp"), "{users}");
    let address = mistake(&format!("{WEB}[upstream.pool]\nkind = \"reject\"\naddress = \"10.0.0.1:80\"\n"));
    assert_eq!(address.key, "upstream.pool.address");
    let check = mistake(&format!("{WEB}[upstream.pool]\nkind = \"reject\"\ncheck = \"c\"\n[check.c]\n"));
    assert!(check.message.contains("nothing to probe"));
    let empty = read("").unwrap_err();
    assert!(empty.to_string().contains("there is no listener"));
    let kind = read(&format!("{WEB}{pool}kind = \"tcp\"\n")).unwrap();
    let TargetKind::Upstream(upstream) = &kind.targets[0].kind else { panic!() };
    assert_eq!(upstream.endpoint, Endpoint::Address("10.0.0.1:80".parse().unwrap()));
}

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");

#[test]
fn every_key_is_documented() {
    for key in known_keys() {
        assert!(DOCUMENT.contains(&format!("| `{key}` |")), "{key} has no row in docs/configuration.md");
    }
}

#[test]
fn the_documented_example_is_a_configuration() {
    let (_, rest) = DOCUMENT.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let config = read(example).unwrap();
    assert_eq!(config.listeners.len(), 2);
    assert_eq!(check_of(&config, "osaka"), Some("alive"), "handed down through the inner group");
}

mod garbage {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            let _ = read(&text);
        }

        #[test]
        fn a_damaged_configuration_is_refused_with_a_place_or_sound(
            cuts in prop::collection::vec((any::<prop::sample::Index>(), "\\PC{0,8}"), 1..6),
        ) {
            let (_, rest) = DOCUMENT.split_once("```toml\n").unwrap();
            let mut text = rest.split_once("```").unwrap().0.to_owned();
            for (at, insert) in cuts {
                let mut at = at.index(text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                text.insert_str(at, &insert);
            }
            if let Err(ConfigErrors(errors)) = read(&text) {
                prop_assert!(!errors.is_empty());
                let lines = text.lines().count().max(1);
                prop_assert!(errors.iter().all(|error| (1..=lines + 1).contains(&error.place.line)));
            }
        }

        #[test]
        fn addresses_are_read_or_refused(text in "[0-9a-z.:\\[\\]/%-]{0,40}") {
            let _ = parse_bind(&text);
            let _ = parse_endpoint(&text);
        }
    }
}

#[test]
fn histograms_go_to_a_file_beside_the_configuration() {
    let with =
        |section: &str| format!("{WEB}[histograms]\n{section}\n[upstream.pool]\naddress = \"10.0.0.1:80\"\n");
    let folder = Path::new("/etc/ringweir");
    let config = parse(&with("file = \"x.hlog\"\ninterval = \"10s\""), "test.toml", folder).unwrap();
    let histograms = config.histograms.unwrap();
    assert_eq!(histograms.path, folder.join("x.hlog"));
    assert_eq!(histograms.interval, Some(Duration::from_secs(10)));
    for (section, wrong) in [
        ("interval = \"10s\"", "\"file\" is missing"),
        ("file = \"\"", "is empty"),
        ("file = \"x\"\ninterval = \"499ms\"", "is shorter than 500ms"),
    ] {
        assert_eq!(mistake(&with(section)).message, wrong);
    }
}

mod socket_options {
    use ringweir_flow::outgoing::{Keepalive, Outgoing, StreamProtocol};

    use super::*;

    fn with_upstream(keys: &str) -> String {
        format!("{WEB}[upstream.pool]\n{keys}")
    }

    fn upstream_mistake(keys: &str) -> Diagnostic {
        mistake(&with_upstream(keys))
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn of_upstreams_are_understood() {
        let keys = r#"
            address = "app.example:80"
            source = ["192.0.2.1", "2001:db8::1"]
            interface = "eth1"
            mark = 0x77
            keepalive = { idle = "1m", interval = "10s", count = 3 }
            mptcp = true"#;
        let config = read(&with_upstream(keys)).unwrap();
        let TargetKind::Upstream(upstream) = &config.targets[0].kind else { panic!("an upstream") };
        let idle = Duration::from_secs(60);
        let expected = Outgoing {
            transparent: false,
            sources: ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap()).to_vec(),
            interface: Some("eth1".into()),
            mark: Some(0x77),
            keepalive: Some(Keepalive { idle, interval: Some(Duration::from_secs(10)), count: Some(3) }),
            protocol: StreamProtocol::Mptcp,
        };
        assert_eq!(upstream.outgoing.as_deref(), Some(&expected));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn of_listeners_are_understood() {
        let keys = "interface = \"eth0\"\nkeepalive = \"1m\"\nmptcp = true\nfast_open = 256\n\
                    defer_accept = \"3s\"\nbacklog = 512\n[upstream.pool]\naddress = \"10.0.0.1:1\"\n";
        let socket = &read(&format!("{WEB}{keys}")).unwrap().listeners[0].socket;
        assert_eq!(socket.interface.as_deref(), Some("eth0"));
        let idle = Duration::from_secs(60);
        assert_eq!(socket.keepalive, Some(Keepalive { idle, interval: None, count: None }));
        assert_eq!((socket.protocol, socket.fast_open), (StreamProtocol::Mptcp, Some(256)));
        assert_eq!((socket.defer_accept, socket.backlog), (Some(Duration::from_secs(3)), Some(512)));
    }

    #[test]
    fn that_say_nothing_cost_nothing() {
        let config = read(&with_upstream("address = \"10.0.0.1:1\"\nmptcp = false\n")).unwrap();
        let TargetKind::Upstream(upstream) = &config.targets[0].kind else { panic!("an upstream") };
        assert_eq!(upstream.outgoing, None);
    }

    #[test]
    fn that_cannot_be_are_told_with_line_and_column() {
        let address = "address = \"10.0.0.1:1\"\n";
        for (key, column, told) in [
            ("source = \"10.0.0.1:80\"", 10, "without a port"),
            ("source = \"0.0.0.0\"", 10, "no address to come from"),
            ("source = []", 10, "has 1 to 64 addresses, not 0"),
            ("source = [\"10.0.0.3\", \"10.0.0.3\"]", 23, "in the list already"),
            ("source = \"::1\"", 10, "has no IPv4 address"),
            ("interface = \"a-name-that-is-too-long\"", 13, "no name of an interface"),
            ("interface = \"eth 1\"", 13, "no name of an interface"),
            ("mark = 0", 8, "0 is not from 1 to 4294967295"),
            ("keepalive = 60", 13, "wants a time as a string"),
            ("keepalive = \"1500ms\"", 13, "whole number of seconds"),
            ("keepalive = \"10h\"", 13, "is not from 1s to 9h"),
            ("keepalive = { interval = \"10s\" }", 1, "\"idle\" is missing"),
            ("keepalive = { idle = \"10s\", count = 128 }", 37, "128 is not from 1 to 127"),
            ("mptcp = 1", 9, "wants true or false"),
        ] {
            let found = upstream_mistake(&format!("{address}{key}\n"));
            assert_eq!((found.place.line, found.place.column), (7, column), "{key}: {found:?}");
            assert!(found.message.contains(told), "{key}: {found:?}");
        }
    }

    #[test]
    fn have_no_meaning_where_nothing_is_dialled_over_tcp() {
        #[cfg(unix)]
        {
            let found = upstream_mistake("address = \"unix:/a\"\nsource = \"10.0.0.1\"\n");
            assert_eq!(found.message, "has no meaning for a Unix socket");
            let unix = "[[listener]]\nname = \"l\"\nbind = \"unix:/l\"\ntarget = \"reject\"\ndefer_accept = \"1s\"\n";
            assert_eq!(mistake(unix).key, "listener[0].defer_accept");
        }
        let found = upstream_mistake("kind = \"reject\"\nkeepalive = \"1m\"\n");
        assert!(found.message.contains("nothing is dialled"), "{found:?}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn busy_polling_is_a_time_of_microseconds() {
        let listener = format!("{WEB}[upstream.pool]\naddress = \"10.0.0.1:1\"\n");
        let config = read(&format!("{listener}[engine]\nbusy_poll = \"50us\"\n")).unwrap();
        assert_eq!(config.engine.busy_poll, Some(Duration::from_micros(50)));
        let found = mistake(&format!("{listener}[engine]\nbusy_poll = \"1s\"\n"));
        assert!(found.message.contains("is not from 1us to 10ms"), "{found:?}");
    }

    #[test]
    #[cfg(not(target_os = "linux"))]
    fn of_linux_are_refused_elsewhere() {
        let found = upstream_mistake("address = \"10.0.0.1:1\"\nmark = 7\n");
        assert!(found.message.contains("is of Linux"), "{found:?}");
    }
}

#[test]
fn proxies_in_front_are_named_and_endpoints_told_where_there_are_any() {
    let text = r#"
[[listener]]
name = "in"
bind = "127.0.0.1:1"
target = "out"
proxy_protocol = {}
[[listener]]
name = "local"
bind = "unix:/run/in.sock"
target = "out"
proxy_protocol = {}
[upstream.out]
kind = "reject"
send_proxy = "v2"
"#;
    let errors = read(text).unwrap_err();
    let lines: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].starts_with("test.toml:6:1: listener[0].proxy_protocol: trusts nobody"), "{}", lines[0]);
    assert!(lines[1].starts_with("test.toml:14:14: upstream.out.send_proxy: has no meaning"), "{}", lines[1]);
}

#[test]
fn a_way_through_two_tunnels_of_shadowsocks_is_refused_and_through_one_is_not() {
    let text = |middle: &str, far: &str| {
        format!(
            "{WEB}[upstream.pool]\nkind = \"tcp\"\naddress = \"10.0.0.3:1\"\nvia = \"far\"\n\
             [upstream.far]\naddress = \"10.0.0.2:1\"\nvia = \"middle\"\n{far}\
             [upstream.middle]\naddress = \"10.0.0.1:1\"\nvia = \"near\"\n{middle}\
             [upstream.near]\naddress = \"10.0.0.1:2\"\n{SEALED}"
        )
    };
    const SEALED: &str = "kind = \"shadowsocks\"\nmethod = \"aes-256-gcm\"\npassword = \"x\"\n";
    const OPEN: &str = "kind = \"socks5\"\n";
    read(&text(OPEN, OPEN)).unwrap();
    for (middle, far) in [(OPEN, SEALED), (SEALED, OPEN)] {
        let ConfigErrors(found) = read(&text(middle, far)).unwrap_err();
        let told = |found: &Diagnostic| found.message == "leads through Shadowsocks twice: once is supported";
        assert!(!found.is_empty() && found.iter().all(told), "{found:#?}");
        assert!(found.iter().all(|found| found.key.ends_with(".via")), "{found:#?}");
    }
}
