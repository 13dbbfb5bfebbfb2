//! Clients and the upstream of a forwarder on loopback, all in one thread that allocates nothing while it runs.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Sessions at once.
const AT_ONCE: u32 = 16;

/// What a client sends and gets back.
const MESSAGE: [u8; 64] = [0x5a; 64];

/// Longer than anything here takes, so that what hangs fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client says before its bytes are forwarded.
pub(crate) struct Dialogue {
    /// What is sent, and how much is read back, in turns.
    turns: Vec<(Vec<u8>, usize)>,
}

impl Dialogue {
    /// Nothing.
    pub(crate) fn plain() -> Dialogue {
        Dialogue { turns: Vec::new() }
    }

    /// SOCKS5 without a user, to an IPv4 address (RFC 1928, sections 3 and 4).
    pub(crate) fn socks5(to: SocketAddr) -> Dialogue {
        let SocketAddr::V4(v4) = to else { panic!("{to}: loopback is IPv4 here") };
        let mut request = vec![5, 1, 0, 1];
        request.extend(v4.ip().octets());
        request.extend(v4.port().to_be_bytes());
        Dialogue { turns: vec![(vec![5, 1, 0], 2), (request, 10)] }
    }

    /// CONNECT (RFC 9110, section 9.3.6).
    pub(crate) fn http_connect(to: SocketAddr) -> Dialogue {
        let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
        let reply = "HTTP/1.1 200 Connection established\r\n\r\n";
        Dialogue { turns: vec![(request.into_bytes(), reply.len())] }
    }
}

/// Both ends of every session.
pub(crate) struct Load {
    forwarder: SocketAddr,
    upstream: TcpListener,
    dialogue: Dialogue,
    clients: Vec<TcpStream>,
    accepted: Vec<TcpStream>,
}

impl Load {
    pub(crate) fn new(forwarder: SocketAddr, upstream: TcpListener, dialogue: Dialogue) -> Load {
        let room = || Vec::with_capacity(AT_ONCE as usize);
        Load { forwarder, upstream, dialogue, clients: room(), accepted: room() }
    }

    /// Connects, echoes and closes `sessions` times, [`AT_ONCE`] at once; calls `rest` after each wave.
    pub(crate) fn run(&mut self, sessions: u32, rest: impl Fn()) {
        let mut left = sessions;
        while left > 0 {
            let wave = left.min(AT_ONCE);
            self.run_wave(wave);
            rest();
            left -= wave;
        }
    }

    fn run_wave(&mut self, sessions: u32) {
        let mut buffer = [0; 256];
        for _ in 0..sessions {
            self.clients.push(patient(TcpStream::connect(self.forwarder).unwrap()));
        }
        for (request, reply_bytes) in &self.dialogue.turns {
            for client in &mut self.clients {
                client.write_all(request).unwrap();
            }
            for client in &mut self.clients {
                client.read_exact(&mut buffer[..*reply_bytes]).unwrap();
            }
        }
        for client in &mut self.clients {
            client.write_all(&MESSAGE).unwrap();
        }
        for _ in 0..sessions {
            self.accepted.push(patient(self.upstream.accept().unwrap().0));
        }
        for upstream in &mut self.accepted {
            upstream.read_exact(&mut buffer[..MESSAGE.len()]).unwrap();
            upstream.write_all(&buffer[..MESSAGE.len()]).unwrap();
        }
        for client in &mut self.clients {
            client.read_exact(&mut buffer[..MESSAGE.len()]).unwrap();
            assert_eq!(buffer[..MESSAGE.len()], MESSAGE);
        }
        self.clients.clear();
        for upstream in &mut self.accepted {
            match upstream.read(&mut buffer) {
                Ok(0) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                other => panic!("the client's end is to be passed on, not {other:?}"),
            }
        }
        self.accepted.clear();
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}
