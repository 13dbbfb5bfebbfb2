//! Active checks of every kind, the way that sessions go, and probes on demand.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::harness::daemon::{Daemon, check, ringweir};
use crate::harness::server::{BlackHole, Refuser, Server};
use crate::harness::status::health;
use crate::harness::{Engine, PATIENCE, eventually, scenarios};

scenarios!(Welcome:
    an_http_check_wants_one_of_its_statuses,
    a_redirect_is_an_answer,
    an_http_check_judges_a_proxy_by_what_is_behind_it,
    direct_is_judged_by_an_http_check,
    a_member_that_hangs_delays_nobody,
    what_is_said_is_to_be_answered,
    a_program_judges_its_target,
    a_probe_shows_each_stage,
);

/// Answers every request with this status line and some fields.
fn answering(status: &'static str) -> Server {
    Server::new(move |mut stream| {
        let mut request = Vec::new();
        let mut piece = [0; 1024];
        while !request.windows(4).any(|window| window == b"\r\n\r\n") {
            match stream.read(&mut piece) {
                Ok(bytes @ 1..) => request.extend_from_slice(&piece[..bytes]),
                Ok(_) | Err(_) => return,
            }
        }
        let request = String::from_utf8(request).expect("a head is text");
        let is_sound =
            request.starts_with("GET /alive?full=1 HTTP/1.1\r\n") && request.contains("host: app.example");
        let status = if is_sound { status } else { "400 Bad Request" };
        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    })
}

/// A listener before an upstream `out`, which is checked often.
fn checked(upstream: &str, check: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"out\"\n\
         [upstream.out]\n{upstream}\ncheck = \"alive\"\n\
         [check.alive]\nschedule = [\"50ms\"]\nfall = 1\n{check}\n"
    )
}

fn at(address: SocketAddr) -> String {
    format!("address = \"{address}\"")
}

const ASKING: &str = "kind = \"http\"\nmethod = \"GET\"\nurl = \"http://app.example/alive?full=1\"";

#[track_caller]
fn becomes(daemon: &Daemon, target: &str, expected: &str) {
    eventually(PATIENCE, &format!("{target} is {expected}"), || health(&daemon.status(), target) == expected);
}

fn an_http_check_wants_one_of_its_statuses(engine: Engine) {
    let (good, bad) = (answering("204 No Content"), answering("500 Internal Server Error"));
    let check = format!("{ASKING}\nstatus = [\"200\", \"204\"]");
    let daemon = Daemon::start(engine, &checked(&at(good.address()), &check));
    becomes(&daemon, "out", "up");
    let daemon = Daemon::start(engine, &checked(&at(bad.address()), &check));
    becomes(&daemon, "out", "down");
    let line = daemon.wait_line("why", |line| line.contains("down"));
    assert!(line.contains("HTTP status 500 is not among those expected"), "{line}");
}

fn a_redirect_is_an_answer(engine: Engine) {
    let moved = answering("302 Found");
    let daemon = Daemon::start(engine, &checked(&at(moved.address()), ASKING));
    becomes(&daemon, "out", "up");
}

fn proxy(engine: Engine) -> Daemon {
    Daemon::start(
        engine,
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"direct\"\n",
    )
}

fn asking(address: SocketAddr) -> String {
    format!("kind = \"http\"\nmethod = \"GET\"\nurl = \"http://{address}/\"\nstatus = \"4xx\"")
}

fn an_http_check_judges_a_proxy_by_what_is_behind_it(engine: Engine) {
    let (proxy, origin, refuser) = (proxy(engine), answering("200 OK"), Refuser::new());
    for kind in ["socks5", "http"] {
        let upstream = format!("kind = \"{kind}\"\n{}", at(proxy.address("in")));
        let daemon = Daemon::start(engine, &checked(&upstream, &asking(origin.address())));
        becomes(&daemon, "out", "up");
        let daemon = Daemon::start(engine, &checked(&upstream, &asking(refuser.address())));
        becomes(&daemon, "out", "down");
    }
}

fn direct_is_judged_by_an_http_check(engine: Engine) {
    let origin = answering("200 OK");
    let daemon = Daemon::start(engine, &checked("kind = \"direct\"", &asking(origin.address())));
    becomes(&daemon, "out", "up");
    let address = origin.address();
    drop(origin);
    becomes(&daemon, "out", "down");
    let finished = check(&checked("kind = \"direct\"", "kind = \"tcp\""));
    assert!(finished.stderr.contains("upstream.out.check: has nothing to probe"), "{}", finished.stderr);
    assert_ne!(address.port(), 0);
}

/// A fault of the seeds: one hanging node stalled the whole round.
fn a_member_that_hangs_delays_nobody(engine: Engine) {
    let (hole, good) = (BlackHole::new(), answering("200 OK"));
    let hanging = Server::new(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let config = format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"all\"\n\
         [group.all]\nmembers = [\"hole\", \"hanging\", \"good\"]\ncheck = \"alive\"\n\
         [upstream.hole]\n{}\n[upstream.hanging]\n{}\n[upstream.good]\n{}\n\
         [check.alive]\nschedule = [\"50ms\"]\ntimeout = \"1s\"\nfall = 1\n{ASKING}\n",
        at(hole.address()),
        at(hanging.address()),
        at(good.address())
    );
    let begin = Instant::now();
    let daemon = Daemon::start(engine, &config);
    becomes(&daemon, "good", "up");
    assert!(good.accepted() >= 1 && begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    becomes(&daemon, "hole", "down");
    becomes(&daemon, "hanging", "down");
    eventually(PATIENCE, "the good one is probed on and on", || good.accepted() >= 10);
    assert_eq!(health(&daemon.status(), "good"), "up");
}

fn what_is_said_is_to_be_answered(engine: Engine) {
    let redis = |answer: &'static [u8]| {
        Server::new(move |mut stream| {
            let mut question = [0; 6];
            if stream.read_exact(&mut question).is_ok() && &question == b"PING\r\n" {
                // In two pieces.
                let _ = stream.write_all(&answer[..3]);
                let _ = stream.flush();
                let _ = stream.write_all(&answer[3..]);
                let _ = stream.read(&mut [0; 1]);
            }
        })
    };
    let check = "kind = \"send-expect\"\nsend = \"PING\\r\\n\"\nexpect = \"+PONG\"";
    let (good, bad) = (redis(b"+PONG\r\n"), redis(b"-LOADING\r\n"));
    let daemon = Daemon::start(engine, &checked(&at(good.address()), check));
    becomes(&daemon, "out", "up");
    let daemon =
        Daemon::start(engine, &checked(&at(bad.address()), &format!("{check}\ntimeout = \"300ms\"")));
    becomes(&daemon, "out", "down");
}

fn a_program_judges_its_target(engine: Engine) {
    let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let by =
        |script: &str| format!("kind = \"exec\"\ncommand = [\"sh\", \"-c\", {script:?}]\ntimeout = \"5s\"");
    let script = "test \"$RINGWEIR_TARGET $RINGWEIR_ADDRESS\" = 'out 127.0.0.1:9'";
    let daemon = Daemon::start(engine, &checked(&at(address), &by(script)));
    becomes(&daemon, "out", "up");
    let daemon = Daemon::start(engine, &checked(&at(address), &by("echo no disk left >&2; exit 3")));
    becomes(&daemon, "out", "down");
    let line = daemon.wait_line("why", |line| line.contains("down"));
    assert!(line.contains("no disk left") && line.contains('3'), "{line}");
    // What outlives its time is killed, and what it has started too.
    let folder = std::env::temp_dir().join(format!("ringweir-exec-{}-{engine:?}", daemon.pid()));
    let script = format!("sleep 3600 & echo $! > {}; wait", folder.display());
    let daemon = Daemon::start(engine, &checked(&at(address), &by(&script).replace("5s", "400ms")));
    becomes(&daemon, "out", "down");
    let pid = std::fs::read_to_string(&folder).expect("the program ran");
    let _ = std::fs::remove_file(&folder);
    let is_gone = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim()));
        status.is_err() || status.is_ok_and(|text| text.contains("State:\tZ"))
    };
    if cfg!(target_os = "linux") {
        eventually(PATIENCE, "the child is killed", is_gone);
    }
}

fn a_probe_shows_each_stage(engine: Engine) {
    let (proxy, origin, refuser) = (proxy(engine), answering("200 OK"), Refuser::new());
    let upstream = format!("kind = \"socks5\"\n{}", at(proxy.address("in")));
    let config = checked(&upstream, &asking(origin.address()))
        + &format!("[upstream.plain]\n{}\n", at(refuser.address()));
    let daemon = Daemon::start(engine, &config);
    let admin = daemon.admin();
    let probe =
        |target: &str, more: &[&str]| ringweir(&[&["probe", target, "--admin", &admin], more].concat());
    let finished = probe("out", &[]);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    for stage in ["out by check alive", "connect", "proxy", "first-byte", "ok"] {
        assert!(finished.stdout.contains(stage), "{stage} in {}", finished.stdout);
    }
    let finished = probe("out", &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(report["stages"][0]["stage"], "connect");
    let finished = probe("plain", &[]);
    assert_eq!(finished.code, 1);
    assert!(finished.stdout.contains("plain by check connect"), "{}", finished.stdout);
    assert!(finished.stdout.contains("refused"), "{}", finished.stdout);
    let finished = probe("nobody", &[]);
    assert!(
        finished.code != 0 && finished.stderr.contains("there is no upstream \"nobody\""),
        "{}",
        finished.stderr
    );
}

#[test]
fn a_check_that_makes_no_sense_is_refused_with_its_place() {
    let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
    for (what, expected) in [
        ("kind = \"http\"", "\"url\" is missing"),
        ("kind = \"http\"\nurl = \"ftp://x/\"", "check.alive.url: \"ftp://x/\" is no URL"),
        ("kind = \"http\"\nurl = \"http://x/\"\nstatus = \"6xx\"", "is no status"),
        ("kind = \"http\"\nurl = \"http://x/\"\nmethod = \"get\"", "is no method"),
        ("kind = \"http\"\nurl = \"http://x/\"\nca_file = \"ca.pem\"", "has a meaning for https:// alone"),
        ("kind = \"http\"\nurl = \"https://x/\"\nca_file = \"none.pem\"", "none.pem cannot be read"),
        ("url = \"http://x/\"", "check.alive.url: has a meaning for kind = \"http\" alone"),
        ("kind = \"exec\"", "\"command\" is missing"),
        ("kind = \"exec\"\ncommand = []", "is empty: a program and its arguments"),
        ("send = \"x\"", "has a meaning for kind = \"send-expect\" alone"),
    ] {
        let finished = check(&checked(&at(address), what));
        assert!(
            finished.code != 0 && finished.stderr.contains(expected),
            "{expected} in {}",
            finished.stderr
        );
    }
}
