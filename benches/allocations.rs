//! How many allocations a session costs once an engine is warm, and by which lines. Every allocation of the process
//! is counted, with its call stack, while sessions are accepted, connected, echo 64 bytes and close; the load of this
//! bench allocates nothing meanwhile.
//!
//!     cargo bench --bench allocations             # every engine, every protocol
//!     cargo bench --bench allocations -- socks    # those whose name has the word

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on is to stop")]
#![allow(clippy::print_stdout, reason = "a bench prints what it found")]

#[path = "support/call_sites.rs"]
mod call_sites;
#[path = "support/load.rs"]
mod load;
#[path = "support/world.rs"]
mod world;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use ringweir_flow::account::ListenerCounters;
use ringweir_flow::close::CloseReason;
use ringweir_flow::resolve::{ResolveError, Resolved, Resolver};
use ringweir_flow::snapshot::{BindId, Policy, Protocol, Snapshot, TargetIndex, TargetKind, Upstream};
use ringweir_flow::verify::{Question, Verdict, Verifier};
use ringweir_flow::wire::HostName;
use socket2::Socket;

use crate::call_sites::CallSites;
use crate::load::{Dialogue, Load};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Sessions before anything is counted: tables, pools and rings have their size by then.
const WARM_UP: u32 = 1_000;

/// Sessions that are counted.
const COUNTED: u32 = 2_000;

/// What a session on the io_uring engine may cost after warm-up: more is a step back, and fails the bench.
const ALLOWED: &[(Way, f64)] =
    &[(Way::Tcp, 0.1), (Way::TcpGroup, 0.1), (Way::Socks5, 0.1), (Way::HttpConnect, 0.1)];

/// How a client gets to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tcp,
    TcpGroup,
    Socks5,
    HttpConnect,
}

impl Way {
    const ALL: [Way; 4] = [Way::Tcp, Way::TcpGroup, Way::Socks5, Way::HttpConnect];

    const fn name(self) -> &'static str {
        match self {
            Way::Tcp => "tcp",
            Way::TcpGroup => "tcp-group",
            Way::Socks5 => "socks5",
            Way::HttpConnect => "http-connect",
        }
    }

    fn dialogue(self, upstream: SocketAddr) -> Dialogue {
        match self {
            Way::Tcp | Way::TcpGroup => Dialogue::plain(),
            Way::Socks5 => Dialogue::socks5(upstream),
            Way::HttpConnect => Dialogue::http_connect(upstream),
        }
    }

    fn snapshot(self, upstream: SocketAddr) -> Snapshot {
        let endpoint = || world::endpoint("out", upstream);
        match self {
            Way::Tcp => world::snapshot(world::listener(Protocol::Tcp, TargetIndex(0)), vec![endpoint()]),
            Way::TcpGroup => {
                let group = TargetKind::Group(world::group(Policy::LeastConnections, 2));
                let targets = vec![endpoint(), endpoint(), world::target("group", group)];
                world::snapshot(world::listener(Protocol::Tcp, TargetIndex(2)), targets)
            }
            Way::Socks5 | Way::HttpConnect => {
                let protocol = if self == Way::Socks5 { Protocol::Socks5 } else { Protocol::Http };
                let direct = world::target("direct", TargetKind::Upstream(Upstream::Direct));
                world::snapshot(world::listener(protocol, TargetIndex(0)), vec![direct])
            }
        }
    }
}

/// A driver with one worker.
enum Engine {
    #[cfg(target_os = "linux")]
    IoUring(ringweir_engine::Handle),
    Tokio(ringweir_fallback::Handle),
}

impl Engine {
    #[cfg(target_os = "linux")]
    const NAMES: &[&str] = &["io-uring", "tokio"];
    #[cfg(not(target_os = "linux"))]
    const NAMES: &[&str] = &["tokio"];

    /// `None`, with the reason told, where it cannot be had.
    fn start(name: &str, snapshot: Arc<Snapshot>, opened: Vec<(BindId, Vec<Socket>)>) -> Option<Engine> {
        let resolver: Arc<dyn Resolver> = Arc::new(NoNames);
        let verifier: Arc<dyn Verifier> = Arc::new(NoPasswords);
        #[cfg(target_os = "linux")]
        if name == "io-uring" {
            let options =
                ringweir_engine::Options { workers: 1, pipes: None, busy_poll: None, resolver, verifier };
            return match ringweir_engine::start(options, snapshot, opened) {
                Ok(handle) => Some(Engine::IoUring(handle)),
                Err(error) => {
                    println!("{name}: SKIPPED: {error}\n");
                    None
                }
            };
        }
        assert_eq!(name, "tokio");
        let options = ringweir_fallback::Options { workers: 1, pipes: None, resolver, verifier };
        Some(Engine::Tokio(ringweir_fallback::start(options, snapshot, opened).unwrap()))
    }

    fn stop(self) {
        match self {
            #[cfg(target_os = "linux")]
            Engine::IoUring(handle) => handle.stop(CloseReason::Stopped),
            Engine::Tokio(handle) => handle.stop(CloseReason::Stopped),
        }
    }
}

/// Addresses alone are asked for here.
struct NoNames;

impl Resolver for NoNames {
    fn resolve(&self, _: HostName, answer: Box<dyn FnOnce(Resolved) + Send>) {
        answer(Err(ResolveError::NotFound));
    }
}

/// Nobody asks for a user here.
struct NoPasswords;

impl Verifier for NoPasswords {
    fn verify(&self, _: Question, answer: Box<dyn FnOnce(Verdict) + Send>) {
        answer(Verdict::Overloaded);
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut result = ExitCode::SUCCESS;
    for engine in Engine::NAMES {
        for way in Way::ALL {
            let name = format!("{engine} {}", way.name());
            if !words.is_empty() && !words.iter().any(|word| name.contains(word)) {
                continue;
            }
            let Some(sites) = measure(engine, way) else { continue };
            println!("{name}: {}", sites.report(f64::from(COUNTED)));
            let per_session = sites.blocks_of_ours() as f64 / f64::from(COUNTED);
            let allowed = ALLOWED.iter().find(|(allowed, _)| *allowed == way).unwrap().1;
            if *engine == "io-uring" && per_session > allowed {
                println!("{name}: TOO MANY: {per_session:.2} a session, {allowed} are allowed\n");
                result = ExitCode::FAILURE;
            }
        }
    }
    result
}

/// Runs sessions through an engine of its own and counts.
fn measure(engine: &str, way: Way) -> Option<CallSites> {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream_address = upstream.local_addr().unwrap();
    let bound = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = bound.local_addr().unwrap();
    let snapshot = Arc::new(way.snapshot(upstream_address));
    let counters = Arc::clone(&snapshot.listeners[0].counters);
    let running = Engine::start(engine, snapshot, vec![(world::BIND, vec![Socket::from(bound)])])?;
    let mut load = Load::new(address, upstream, way.dialogue(upstream_address));
    load.run(WARM_UP, || wait_until_idle(&counters));
    let file = profile_path(engine, way);
    let profiler = dhat::Profiler::builder().trim_backtraces(Some(usize::MAX)).file_name(&file).build();
    load.run(COUNTED, || wait_until_idle(&counters));
    drop(profiler);
    let expected = u64::from(WARM_UP + COUNTED);
    assert_eq!(counters.sum(|cell| &cell.closed[CloseReason::Finished.index()]), expected);
    running.stop();
    Some(CallSites::read(&file))
}

/// Waits until every session has ended: nobody tells, so it is asked.
fn wait_until_idle(counters: &ListenerCounters) {
    while counters.sum(|cell| &cell.active) > 0 {
        std::thread::yield_now();
    }
}

/// Where the profile is kept, for dh_view.
fn profile_path(engine: &str, way: Way) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("allocations-{engine}-{}.json", way.name()))
}
