//! A driver on real sockets, with a snapshot made by hand.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringweir_flow::account::{ListenerCounters, TargetCounters};
use ringweir_flow::close::CloseReason;
use ringweir_flow::resolve::{ResolveError, Resolved, Resolver};
use ringweir_flow::snapshot::{
    Bind, BindId, Listener, ListenerIndex, Protocol, Snapshot, Target, TargetIndex, TargetKind, Timeouts,
    Upstream,
};
use ringweir_flow::verify::{Question, Verdict, Verifier};
use ringweir_flow::way::Splicing;
use ringweir_flow::wire::HostName;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{Handle, Opened, Options, start};

pub(super) const WORKERS: usize = 2;

/// How many sockets a bind has where nothing else is said: one for each worker where there is `SO_REUSEPORT`.
pub(super) const SOCKETS: usize = if cfg!(unix) { WORKERS } else { 1 };

/// Longer than anything here takes, so that what hangs fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// Knows the name `here.test`.
struct Names;

impl Resolver for Names {
    fn resolve(&self, name: HostName, answer: Box<dyn FnOnce(Resolved) + Send>) {
        let name = name.as_str().to_owned();
        std::thread::spawn(move || {
            answer(if name == "here.test" {
                Ok(vec![IpAddr::from([127, 0, 0, 1])])
            } else {
                Err(ResolveError::NotFound)
            });
        });
    }
}

/// Nobody here is known by a hash.
struct Passwords;

impl Verifier for Passwords {
    fn verify(&self, _question: Question, answer: Box<dyn FnOnce(Verdict) + Send>) {
        answer(Verdict::Overloaded);
    }
}

/// A driver with one listener, that has any number of binds, and one upstream.
pub(super) struct World {
    handle: Option<Handle>,
    binds: BTreeMap<BindId, SocketAddr>,
    generation: u64,
    protocol: Protocol,
    upstream: Upstream,
    pub(super) timeouts: Timeouts,
    pub(super) splicing: Splicing,
    pub(super) pipes: Option<usize>,
    pub(super) listener: Arc<ListenerCounters>,
    pub(super) target: Arc<TargetCounters>,
}

impl World {
    /// Not started yet.
    pub(super) fn new(protocol: Protocol, upstream: Upstream) -> World {
        World {
            handle: None,
            binds: BTreeMap::new(),
            generation: 0,
            protocol,
            upstream,
            timeouts: Timeouts::default(),
            splicing: Splicing::default(),
            pipes: None,
            listener: Arc::new(ListenerCounters::new(WORKERS)),
            target: Arc::new(TargetCounters::new(WORKERS)),
        }
    }

    /// Started with one bind.
    pub(super) fn with_bind(protocol: Protocol, upstream: Upstream) -> (World, SocketAddr) {
        let mut world = World::new(protocol, upstream);
        let address = world.add_bind(SOCKETS);
        (world, address)
    }

    /// Publishes the present settings with one bind more, on that many TCP sockets; starts the driver at first.
    pub(super) fn add_bind(&mut self, sockets: usize) -> SocketAddr {
        let first = listen("127.0.0.1:0".parse().unwrap(), sockets > 1);
        let address = first.local_addr().unwrap().as_socket().unwrap();
        let others = (1..sockets).map(|_| listen(address, true));
        let opened: Vec<Socket> = std::iter::once(first).chain(others).collect();
        let id = self.fresh_bind(address);
        self.publish(vec![(id, opened)]);
        address
    }

    /// The same for a socket of any kind.
    #[cfg(unix)]
    pub(super) fn add_socket(&mut self, socket: Socket) {
        let id = self.fresh_bind(SocketAddr::from(([0; 4], 0)));
        self.publish(vec![(id, vec![socket])]);
    }

    pub(super) fn remove_bind(&mut self, address: SocketAddr) {
        self.binds.retain(|_, bound| *bound != address);
        self.publish(Vec::new());
    }

    pub(super) fn handle(&self) -> &Handle {
        self.handle.as_ref().unwrap()
    }

    pub(super) fn stop(&mut self) {
        self.handle.take().unwrap().stop(CloseReason::Stopped);
    }

    fn fresh_bind(&mut self, address: SocketAddr) -> BindId {
        let id = BindId(self.binds.last_key_value().map_or(0, |(last, _)| last.0 + 1));
        self.binds.insert(id, address);
        id
    }

    fn publish(&mut self, opened: Vec<Opened>) {
        self.generation += 1;
        let snapshot = Arc::new(self.snapshot());
        match &self.handle {
            Some(handle) => handle.publish(&snapshot, opened),
            None => {
                let (resolver, verifier) = (Arc::new(Names), Arc::new(Passwords));
                let options = Options { workers: WORKERS, pipes: self.pipes, resolver, verifier };
                self.handle = Some(start(options, snapshot, opened).unwrap());
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let bind = |(id, address): (&BindId, &SocketAddr)| Bind {
            id: *id,
            listener: ListenerIndex(0),
            address: address.to_string().into(),
        };
        let listener = Listener {
            timeouts: self.timeouts,
            ..Listener::new("in", self.protocol, TargetIndex(0), Arc::clone(&self.listener))
        };
        let kind = TargetKind::Upstream(self.upstream.clone());
        let target = Target::new("out", kind, Arc::clone(&self.target));
        Snapshot {
            generation: self.generation,
            binds: self.binds.iter().map(bind).collect(),
            log_sessions: true,
            splicing: self.splicing,
            ..Snapshot::new(vec![listener], vec![target])
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.stop(CloseReason::Stopped);
        }
    }
}

/// An upstream and its address.
pub(super) fn upstream() -> (TcpListener, Upstream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = Upstream::Tcp([listener.local_addr().unwrap()].into());
    (listener, upstream)
}

pub(super) fn connect(address: SocketAddr) -> TcpStream {
    patient(TcpStream::connect(address).unwrap())
}

pub(super) fn accept(listener: &TcpListener) -> TcpStream {
    patient(listener.accept().unwrap().0)
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A client whose kernel takes little that it does not read.
pub(super) fn connect_with_small_window(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&SockAddr::from(address)).unwrap();
    patient(socket.into())
}

/// A listening socket that is shared out by the kernel where there are several.
pub(super) fn listen(address: SocketAddr, is_one_of_several: bool) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    #[cfg(unix)]
    socket.set_reuse_port(is_one_of_several).unwrap();
    #[cfg(not(unix))]
    assert!(!is_one_of_several, "no such option here");
    socket.bind(&SockAddr::from(address)).unwrap();
    socket.listen(128).unwrap();
    socket
}

/// Bytes that tell when one is missing or twice there.
pub(super) fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index * 31 + index / 251) as u8).collect()
}

/// Everything up to the end, which must be an orderly one.
pub(super) fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

pub(super) fn read_exactly(stream: &mut impl Read, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    stream.read_exact(&mut buffer).unwrap();
    buffer
}

/// Everything up to a reset.
pub(super) fn read_to_reset(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).expect_err("an orderly end is no reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    bytes
}

/// Makes the peer see a reset.
pub(super) fn reset(stream: TcpStream) {
    Socket::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Waits for a counter, of which nobody tells that it changed.
pub(super) fn wait_until(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "it does not come to that");
        std::thread::yield_now();
    }
}
