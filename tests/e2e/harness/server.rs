//! Servers to put behind the daemon, each on a port of its own and a thread for each connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::PATIENCE;
use super::pattern::{DOWN, Receipt, UP};
use super::proc::connecting;

/// Handlers need little stack, and there may be thousands.
const STACK_BYTES: usize = 256 * 1024;

/// A TCP server; stops listening when it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    accepted: Arc<Mutex<Vec<Instant>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Calls `handler` with each connection.
    pub(crate) fn new(handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Server {
        Server::at(SocketAddr::from(([127, 0, 0, 1], 0)), handler)
    }

    /// The same at a certain address.
    pub(crate) fn at(address: SocketAddr, handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Server {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.bind(&SockAddr::from(address)).unwrap_or_else(|error| panic!("bind {address}: {error}"));
        socket.listen(4096).expect("listen");
        let listener: Arc<TcpListener> = Arc::new(socket.into());
        let address = listener.local_addr().expect("an address");
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let acceptor = {
            let (listener, accepted) = (Arc::clone(&listener), Arc::clone(&accepted));
            let handler = Arc::new(handler);
            spawn(move || {
                // Fails once the socket is shut down.
                while let Ok((stream, _)) = listener.accept() {
                    accepted.lock().unwrap().push(Instant::now());
                    be_patient(&stream);
                    let handler = Arc::clone(&handler);
                    spawn(move || handler(stream));
                }
            })
        };
        Server { address, listener, accepted, acceptor: Some(acceptor) }
    }

    /// Sends back what it receives, and ends when the client does.
    pub(crate) fn echo() -> Server {
        Server::new(|stream| drop(echo(&stream, &stream)))
    }

    /// [`Server::echo`] at a certain address.
    pub(crate) fn echo_at(address: SocketAddr) -> Server {
        Server::at(address, |stream| drop(echo(&stream, &stream)))
    }

    /// Says its name, one byte, then echoes.
    pub(crate) fn named(name: u8) -> Server {
        Server::new(move |mut stream| {
            if stream.write_all(&[name]).is_ok() {
                let _ = echo(&stream, &stream);
            }
        })
    }

    /// Sends the first `bytes` bytes of [`DOWN`], ends its side, and waits for the other side's end.
    pub(crate) fn source(bytes: u64) -> Server {
        Server::new(move |mut stream| {
            if DOWN.write(&mut stream, bytes).is_ok() {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = UP.read_to_end(&mut stream);
            }
        })
    }

    /// Reads [`UP`] to its end and tells what it was.
    pub(crate) fn sink() -> (Server, Receiver<Receipt>) {
        let (sender, receiver) = mpsc::channel();
        let server = Server::new(move |mut stream| {
            let _ = sender.send(UP.read_to_end(&mut stream));
        });
        (server, receiver)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections have been accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    /// When connections were accepted.
    pub(crate) fn accepted_at(&self) -> Vec<Instant> {
        self.accepted.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes accept(2) with EINVAL.
        let _ = SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// An echo server on a Unix socket that counts; lives as long as the process.
pub(crate) fn unix_echo(path: &Path) -> Arc<AtomicUsize> {
    let listener = UnixListener::bind(path).expect("bind a Unix socket");
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            count.fetch_add(1, Ordering::SeqCst);
            set_patience_unix(&stream);
            spawn(move || drop(echo(&stream, &stream)));
        }
    });
    accepted
}

/// A port that refuses: bound, so that nobody else gets it, and not listening.
pub(crate) struct Refuser(Socket);

impl Refuser {
    pub(crate) fn new() -> Refuser {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("bind");
        Refuser(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().ok().and_then(|address| address.as_socket()).expect("an address")
    }
}

/// A port that answers no SYN: its accept queue is full and never emptied.
pub(crate) struct BlackHole {
    address: SocketAddr,
    _listener: Socket,
    fillers: Vec<Socket>,
}

impl BlackHole {
    pub(crate) fn new() -> BlackHole {
        const FILLERS: usize = 4;
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("bind");
        listener.listen(0).expect("listen");
        let address = listener.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
        let fillers = (0..FILLERS)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                socket.set_nonblocking(true).expect("O_NONBLOCK");
                let _ = socket.connect(&SockAddr::from(address));
                socket
            })
            .collect();
        let probe = TcpStream::connect_timeout(&address, Duration::from_millis(100));
        assert!(probe.is_err(), "the accept queue is not full");
        BlackHole { address, _listener: listener, fillers }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether others than its fillers, which found no place, try to connect.
    pub(crate) fn is_dialled(&self) -> bool {
        let local = |filler: &Socket| filler.local_addr().ok()?.as_socket().map(|address| address.port());
        let fillers = self.fillers.iter().filter_map(local).collect();
        !connecting(self.address.port()).is_subset(&fillers)
    }
}

/// Nothing in a scenario waits for ever.
pub(crate) fn be_patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    stream.set_write_timeout(Some(PATIENCE)).expect("SO_SNDTIMEO");
    stream.set_nodelay(true).expect("TCP_NODELAY");
}

pub(crate) fn set_patience_unix(stream: &UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    stream.set_write_timeout(Some(PATIENCE)).expect("SO_SNDTIMEO");
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
}

fn echo(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = [0; 32 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            bytes => to.write_all(&buffer[..bytes])?,
        }
    }
}

/// A thread with a small stack.
pub(crate) fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::Builder::new().stack_size(STACK_BYTES).spawn(body).expect("a thread")
}
