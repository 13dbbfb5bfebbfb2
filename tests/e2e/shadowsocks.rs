//! Shadowsocks on both sides, ringweir against itself; other programs are in tests/interop. And whoever has not the key.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::harness::client::{assert_echo, connect, read_bytes, socks_connect, socks_name, socks_tunnel};
use crate::harness::daemon::{Daemon, Setup, check};
use crate::harness::http::{http_tunnel, origin};
use crate::harness::pattern::{DOWN, End, UP};
use crate::harness::proc::own_memory_kib;
use crate::harness::server::Server;
use crate::harness::status::{health, named, number};
use crate::harness::{Engine, PATIENCE, assert_took, eventually, scenarios};

scenarios!(Welcome:
    every_method_carries_bytes_both_ways,
    long_streams_are_exact_and_ends_are_passed_on,
    a_server_that_speaks_first_is_heard,
    a_tcp_listener_leads_through_a_tunnel_by_way_of_a_proxy,
    a_proxy_is_reached_through_a_tunnel,
    users_have_keys_of_their_own_and_stand_in_the_log,
    the_wrong_key_leads_nowhere,
    checks_go_through_the_tunnel,
    races_for_the_first_byte_go_through_tunnels,
    probes_learn_nothing_at_any_length,
    a_stream_that_is_repeated_is_answered_by_nothing,
    what_is_cut_off_or_forged_is_not_taken_for_whole,
    a_stalled_reader_costs_no_more_than_a_session,
);

const METHODS: [(&str, usize); 6] = [
    ("aes-128-gcm", 0),
    ("aes-256-gcm", 0),
    ("chacha20-ietf-poly1305", 0),
    ("2022-blake3-aes-128-gcm", 16),
    ("2022-blake3-aes-256-gcm", 32),
    ("2022-blake3-chacha20-poly1305", 32),
];

/// A password, or a key, by number.
fn key(key_bytes: usize, number: u8) -> String {
    match key_bytes {
        0 => format!("password {number}"),
        bytes => BASE64_STANDARD.encode(vec![number; bytes]),
    }
}

/// A server that dials what it is asked for.
fn server(engine: Engine, method: &str, key: &str, rest: &str) -> Daemon {
    Daemon::start(
        engine,
        &format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"shadowsocks\"\nmethod = \"{method}\"\n\
             password = \"{key}\"\ntarget = \"direct\"\n{rest}"
        ),
    )
}

fn upstream(name: &str, method: &str, key: &str, server: SocketAddr) -> String {
    format!(
        "[upstream.{name}]\nkind = \"shadowsocks\"\naddress = \"{server}\"\nmethod = \"{method}\"\npassword = \"{key}\"\n"
    )
}

/// A `mixed` listener in front of a server.
fn client(engine: Engine, method: &str, key: &str, server: SocketAddr) -> Daemon {
    Daemon::start(engine, &before(method, key, server))
}

fn before(method: &str, key: &str, server: SocketAddr) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"out\"\n{}",
        upstream("out", method, key, server)
    )
}

fn every_method_carries_bytes_both_ways(engine: Engine) {
    let echo = Server::echo();
    for (method, key_bytes) in METHODS {
        let key = key(key_bytes, 1);
        let far = server(engine, method, &key, "");
        let near = client(engine, method, &key, far.address("in"));
        let mut stream = socks_tunnel(near.address("in"), echo.address());
        assert_echo(&mut stream, method.as_bytes());
        assert_echo(&mut stream, &vec![7; 100_000]);
        drop(stream);
        let authority = echo.address().to_string();
        assert_echo(&mut http_tunnel(near.address("in"), &authority).unwrap(), b"by CONNECT");
        let sent = (method.len() + 100_000 + 10) as u64;
        eventually(PATIENCE, "payload is counted on both sides", || {
            [(&near, "out"), (&far, "direct")].iter().all(|(daemon, target)| {
                let status = daemon.status();
                let target = named(&status, "targets", target);
                number(target, &["bytes_up"]) == sent && number(target, &["bytes_down"]) == sent
            })
        });
    }
}

fn long_streams_are_exact_and_ends_are_passed_on(engine: Engine) {
    const BYTES: u64 = 20_000_000;
    for (method, key_bytes) in [METHODS[1], METHODS[3]] {
        let (tell, told) = mpsc::channel();
        let sink = Server::new(move |mut stream| {
            tell.send(UP.read_to_end(&mut stream)).unwrap();
            // The other half of the connection still stands.
            DOWN.write(&mut stream, BYTES).unwrap();
        });
        let key = key(key_bytes, 1);
        let far = server(engine, method, &key, "");
        let near = client(engine, method, &key, far.address("in"));
        let mut stream = socks_tunnel(near.address("in"), sink.address());
        UP.write(&mut stream, BYTES).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        told.recv_timeout(PATIENCE).unwrap().assert(BYTES, End::Fin);
        DOWN.read_to_end(&mut stream).assert(BYTES, End::Fin);
    }
}

fn a_server_that_speaks_first_is_heard(engine: Engine) {
    let greeter = Server::new(|mut stream| {
        stream.write_all(b"220 hello").unwrap();
        let _ = stream.read(&mut [0; 1]);
    });
    for (method, key_bytes) in [METHODS[0], METHODS[4]] {
        let key = key(key_bytes, 1);
        let far = server(engine, method, &key, "");
        let near = client(engine, method, &key, far.address("in"));
        let mut stream = socks_tunnel(near.address("in"), greeter.address());
        assert_eq!(read_bytes(&mut stream, 9), b"220 hello");
    }
}

fn a_tcp_listener_leads_through_a_tunnel_by_way_of_a_proxy(engine: Engine) {
    let echo = Server::echo();
    let (method, key) = (METHODS[3].0, key(16, 1));
    let far = server(engine, method, &key, "");
    let proxy = Daemon::start(
        engine,
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"direct\"\n",
    );
    // To a fixed endpoint, through the tunnel, whose server is reached through a SOCKS5 proxy.
    let config = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"echo\"\n\
         [upstream.echo]\naddress = \"{}\"\nvia = \"tunnel\"\n\
         [upstream.proxy]\nkind = \"socks5\"\naddress = \"{}\"\n{}via = \"proxy\"\n",
        echo.address(),
        proxy.address("in"),
        upstream("tunnel", method, &key, far.address("in")),
    );
    let near = Daemon::start(engine, &config);
    assert_echo(&mut connect(near.address("in")), b"hello");
    assert_eq!(number(named(&far.status(), "targets", "direct"), &["committed"]), 1);
    assert_eq!(number(named(&proxy.status(), "targets", "direct"), &["committed"]), 1);
}

fn a_proxy_is_reached_through_a_tunnel(engine: Engine) {
    let echo = Server::echo();
    let (method, key) = (METHODS[2].0, key(0, 1));
    let far = server(engine, method, &key, "");
    for kind in ["socks5", "http"] {
        let proxy = Daemon::start(
            engine,
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"direct\"\n",
        );
        let config = format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"proxy\"\n\
             [upstream.proxy]\nkind = \"{kind}\"\naddress = \"{}\"\nvia = \"tunnel\"\n{}",
            proxy.address("in"),
            upstream("tunnel", method, &key, far.address("in")),
        );
        let near = Daemon::start(engine, &config);
        assert_echo(&mut socks_tunnel(near.address("in"), echo.address()), b"hello");
        assert_eq!(number(named(&proxy.status(), "targets", "direct"), &["committed"]), 1);
    }
    let twice = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"a\"\n{}via = \"b\"\n{}",
        upstream("a", method, &key, echo.address()),
        upstream("b", method, &key, echo.address()),
    );
    let finished = check(&twice);
    assert!(finished.stderr.contains("leads through Shadowsocks twice"), "{}", finished.stderr);
}

fn users_have_keys_of_their_own_and_stand_in_the_log(engine: Engine) {
    let echo = Server::echo();
    let (method, own) = (METHODS[4].0, key(32, 1));
    let users =
        format!("users = {{ ann = \"{}\", bob = \"{}\" }}\n[log]\nsessions = true\n", key(32, 2), key(32, 3));
    let far = server(engine, method, &own, &users);
    for (number, name) in [(2, "ann"), (3, "bob")] {
        let keys = format!("{own}:{}", key(32, number));
        let near = client(engine, method, &keys, far.address("in"));
        assert_echo(&mut socks_tunnel(near.address("in"), echo.address()), b"hello");
        far.wait_line("the user's session", |line| line.contains(&format!("user=\"{name}\"")));
    }
    for keys in [own.clone(), format!("{own}:{}", key(32, 4))] {
        let near = client(engine, method, &keys, far.address("in"));
        let to = echo.address();
        let (_, mut stream) = socks_connect(near.address("in"), &socks_name("localhost"), to.port());
        stream.write_all(b"hello").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(stream.read(&mut [0; 1]).is_err(), "nobody without a key of their own is served");
    }
}

fn the_wrong_key_leads_nowhere(engine: Engine) {
    let echo = Server::echo();
    let timeouts = "timeouts = { handshake = \"1s\" }\n";
    for (method, key_bytes) in METHODS {
        let far = server(engine, method, &key(key_bytes, 1), timeouts);
        let near = client(engine, method, &key(key_bytes, 2), far.address("in"));
        let mut stream = socks_tunnel(near.address("in"), echo.address());
        stream.write_all(b"hello").unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "{method}");
        let target = far.status();
        assert_eq!(
            number(named(&target, "targets", "direct"), &["attempts"]),
            0,
            "{method}: nothing is dialled"
        );
        let listener = named(&target, "listeners", "in");
        assert_eq!(number(listener, &["closed", "client-authentication"]), 1, "{method}: {listener}");
    }
}

fn checks_go_through_the_tunnel(engine: Engine) {
    let origin = origin();
    let (method, own) = (METHODS[5].0, key(32, 1));
    let far = server(engine, method, &own, "");
    let config = |key: &str| {
        format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"out\"\n{}\
             check = \"alive\"\n[check.alive]\nkind = \"http\"\nurl = \"http://{}/\"\nschedule = [\"200ms\"]\n\
             timeout = \"1s\"\nfall = 1\n",
            upstream("out", method, key, far.address("in")),
            origin.address(),
        )
    };
    let near = Daemon::start(engine, &config(&own));
    eventually(PATIENCE, "up, by what the origin says", || health(&near.status(), "out") == "up");
    near.reload(&config(&key(32, 2))).unwrap();
    eventually(PATIENCE, "down, for the server has another key", || health(&near.status(), "out") == "down");
}

fn races_for_the_first_byte_go_through_tunnels(engine: Engine) {
    let echo = Server::echo();
    let (method, own) = (METHODS[3].0, key(16, 1));
    let servers = [server(engine, method, &own, ""), server(engine, method, &own, "")];
    let silent = Server::new(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let config = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"all\"\n\
         [group.all]\npolicy = \"race\"\ncommit = \"first-byte\"\nmembers = [\"silent\", \"a\", \"b\"]\n{}{}{}",
        upstream("silent", method, &own, silent.address()),
        upstream("a", method, &own, servers[0].address("in")),
        upstream("b", method, &own, servers[1].address("in")),
    );
    let near = Daemon::start(engine, &config);
    for _ in 0..10 {
        let mut stream = socks_tunnel(near.address("in"), echo.address());
        assert_echo(&mut stream, b"hello");
        assert_echo(&mut stream, &[7; 50_000]);
    }
    assert_eq!(number(named(&near.status(), "targets", "silent"), &["committed"]), 0);
}

/// Row 24 of what ringweir survives.
fn probes_learn_nothing_at_any_length(engine: Engine) {
    let limit = Duration::from_secs(1);
    for (method, key_bytes) in [METHODS[1], METHODS[4]] {
        let far = server(engine, method, &key(key_bytes, 1), "timeouts = { handshake = \"1s\" }\n");
        let begin = Instant::now();
        let probes: Vec<_> = (1..=200)
            .map(|length| {
                let address = far.address("in");
                thread::spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(length);
                    let mut stream = connect(address);
                    let noise: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
                    // By the byte, as whoever counts what is read would do it, or at once.
                    let piece = if length % 2 == 0 { 1 } else { noise.len() };
                    for piece in noise.chunks(piece) {
                        stream.write_all(piece).unwrap();
                    }
                    let mut heard = Vec::new();
                    let end = stream.read_to_end(&mut heard).map_err(|error| error.kind());
                    (length, heard, end, begin.elapsed())
                })
            })
            .collect();
        for probe in probes {
            let (length, heard, end, took) = probe.join().unwrap();
            assert_eq!(
                (heard, end),
                (vec![], Ok(0)),
                "{method}, {length} bytes: silence, and then an ordinary end"
            );
            assert_took(took, limit, Duration::from_millis(900));
        }
        // Whoever ends its own stream is let go at once, whatever it has said.
        for length in [1, 49, 50, 51, 75, 76, 200] {
            let begin = Instant::now();
            let mut stream = connect(far.address("in"));
            stream.write_all(&vec![length; usize::from(length)]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
            assert!(begin.elapsed() < limit / 2, "{method}, {length} bytes: {:?}", begin.elapsed());
        }
        assert_eq!(number(named(&far.status(), "targets", "direct"), &["attempts"]), 0);
    }
}

/// Passes on what a client says, and tells it; passes back the answers.
fn recorder(to: SocketAddr) -> (Server, mpsc::Receiver<Vec<u8>>) {
    let (tell, told) = mpsc::channel();
    let server = Server::new(move |mut stream: TcpStream| {
        let mut far = connect(to);
        let mut back = (far.try_clone().unwrap(), stream.try_clone().unwrap());
        let down = thread::spawn(move || {
            let _ = std::io::copy(&mut back.0, &mut back.1);
            let _ = back.1.shutdown(Shutdown::Write);
        });
        let mut buffer = vec![0; 65_536];
        while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
            tell.send(buffer[..bytes].to_vec()).unwrap();
            far.write_all(&buffer[..bytes]).unwrap();
        }
        let _ = far.shutdown(Shutdown::Write);
        down.join().unwrap();
    });
    (server, told)
}

fn a_stream_that_is_repeated_is_answered_by_nothing(engine: Engine) {
    let echo = Server::echo();
    for (method, key_bytes) in METHODS {
        let key = key(key_bytes, 1);
        let config = format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"shadowsocks\"\nmethod = \"{method}\"\n\
             password = \"{key}\"\ntarget = \"direct\"\ntimeouts = {{ handshake = \"1s\" }}\n"
        );
        let far = Daemon::start(engine, &config);
        let (between, told) = recorder(far.address("in"));
        let near = client(engine, method, &key, between.address());
        assert_echo(&mut socks_tunnel(near.address("in"), echo.address()), b"hello");
        let said = told.recv_timeout(PATIENCE).unwrap();
        // A reload forgets nothing.
        far.reload(&format!("{config}\n# reloaded\n")).unwrap();
        for _ in 0..2 {
            let mut stream = connect(far.address("in"));
            stream.write_all(&said).unwrap();
            let begin = Instant::now();
            assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0, "{method}");
            assert_took(begin.elapsed(), Duration::from_secs(1), Duration::from_millis(500));
        }
        let status = far.status();
        assert_eq!(number(named(&status, "targets", "direct"), &["attempts"]), 1, "{method}: dialled once");
        assert_eq!(number(named(&status, "listeners", "in"), &["closed", "client-replayed"]), 2, "{method}");
    }
}

fn what_is_cut_off_or_forged_is_not_taken_for_whole(engine: Engine) {
    for (method, key_bytes) in [METHODS[0], METHODS[3]] {
        for forges in [false, true] {
            let (tell, told) = mpsc::channel();
            let sink = Server::new(move |mut stream| {
                tell.send(UP.read_to_end(&mut stream)).unwrap();
            });
            let key = key(key_bytes, 1);
            let far = server(engine, method, &key, "");
            let address = far.address("in");
            // The first 1,000 bytes pass, then one is wrong, or nothing more comes.
            let between = Server::new(move |mut stream: TcpStream| {
                let mut far = connect(address);
                let mut left = 1000;
                let mut buffer = [0; 4096];
                while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                    let passed = bytes.min(left);
                    left -= passed;
                    if left == 0 && forges && passed < bytes {
                        buffer[passed] ^= 1;
                        far.write_all(&buffer[..bytes]).unwrap();
                        break;
                    }
                    far.write_all(&buffer[..passed]).unwrap();
                    if left == 0 && !forges {
                        far.shutdown(Shutdown::Write).unwrap();
                        break;
                    }
                }
                let _ = far.read_to_end(&mut Vec::new());
            });
            let near = client(engine, method, &key, between.address());
            let mut stream = socks_tunnel(near.address("in"), sink.address());
            // Chunk by chunk, so that some come whole before.
            let committed = || number(named(&far.status(), "targets", "direct"), &["committed"]) == 1;
            for number in 0..40 {
                let _ = stream.write_all(UP.at(number * 100, 100));
                eventually(PATIENCE, "the upstream is open", committed);
            }
            let receipt = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(receipt.end, End::Reset, "{method}: what was cut off is no whole");
            assert!(
                (1..1000).contains(&receipt.bytes) && receipt.wrong_at.is_none(),
                "{method}: {} bytes",
                receipt.bytes
            );
        }
    }
}

fn a_stalled_reader_costs_no_more_than_a_session(engine: Engine) {
    let source = Server::new(|mut stream| {
        let _ = read_bytes(&mut stream, 2);
        let _ = DOWN.write(&mut stream, 64 << 20);
    });
    let (method, own) = (METHODS[1].0, key(0, 1));
    let far = server(engine, method, &own, "");
    let near = Setup::new(engine).workers(1).start(&before(method, &own, far.address("in")));
    // Whatever the worker keeps for all sessions, it has by then.
    let mut whole = socks_tunnel(near.address("in"), source.address());
    whole.write_all(b"go").unwrap();
    DOWN.read_to_end(&mut whole).assert(64 << 20, End::Fin);
    let idle = own_memory_kib(near.pid());
    let stalled: Vec<_> = (0..20).map(|_| socks_tunnel(near.address("in"), source.address())).collect();
    for mut stream in &stalled {
        stream.write_all(b"go").unwrap();
    }
    let mut last = 0;
    eventually(PATIENCE, "everything is full", || {
        let status = near.status();
        let bytes = number(named(&status, "targets", "out"), &["bytes_down"]);
        thread::sleep(Duration::from_millis(200));
        std::mem::replace(&mut last, bytes) == bytes && bytes > 0
    });
    let grown = own_memory_kib(near.pid()) - idle;
    assert!(grown < 20 * 256 + 4096, "{grown} KiB for 20 sessions");
}
