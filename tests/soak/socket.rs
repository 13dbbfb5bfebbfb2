//! A connection of ours, TCP or Unix.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::script::Part;

/// Clients that connect at once wait here.
const BACKLOG: u32 = 4096;

/// What one read takes at most.
pub(crate) const MAX_READ_BYTES: usize = 256 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_READ_BYTES]);
}

pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Where to connect to.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

pub(crate) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    pub(crate) fn tcp() -> (Listening, SocketAddr) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let listener = socket.listen(BACKLOG).expect("listen");
        let address = listener.local_addr().expect("an address");
        (Listening::Tcp(listener), address)
    }

    pub(crate) fn unix(path: &Path) -> Listening {
        Listening::Unix(UnixListener::bind(path).expect("bind"))
    }

    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listening::Tcp(listener) => listener.accept().await.map(|(stream, _)| Socket::Tcp(stream)),
            Listening::Unix(listener) => listener.accept().await.map(|(stream, _)| Socket::Unix(stream)),
        }
    }
}

impl Socket {
    /// A small receive buffer counts from the handshake on only when it is set before.
    pub(crate) async fn connect(address: &Address, part: &Part) -> io::Result<Socket> {
        let socket = match address {
            Address::Tcp(address) => {
                let socket = TcpSocket::new_v4()?;
                if let Some(bytes) = part.receive_buffer_bytes {
                    socket.set_recv_buffer_size(bytes)?;
                }
                Socket::Tcp(socket.connect(*address).await?)
            }
            Address::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
        };
        socket.dress(part)?;
        Ok(socket)
    }

    /// Sets the buffers' sizes.
    pub(crate) fn dress(&self, part: &Part) -> io::Result<()> {
        if let Some(bytes) = part.send_buffer_bytes {
            self.options().set_send_buffer_size(bytes as usize)?;
        }
        if let Some(bytes) = part.receive_buffer_bytes {
            self.options().set_recv_buffer_size(bytes as usize)?;
        }
        if let Socket::Tcp(stream) = self {
            stream.set_nodelay(true)?;
        }
        Ok(())
    }

    /// Reads what is there, once something is.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Socket::Tcp(stream) => {
                    stream.readable().await?;
                    stream.try_read(buffer)
                }
                Socket::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_read(buffer)
                }
            };
            match result {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    /// Reads what is there, at most `most_bytes`, once something is, and shows it to `look`: no session keeps a buffer.
    pub(crate) async fn read_with<T>(
        &self,
        most_bytes: usize,
        look: impl Fn(&[u8]) -> T,
    ) -> io::Result<(usize, T)> {
        loop {
            match self {
                Socket::Tcp(stream) => stream.readable().await?,
                Socket::Unix(stream) => stream.readable().await?,
            }
            let result: io::Result<(usize, T)> = BUFFER.with_borrow_mut(|buffer| {
                let room = &mut buffer[..most_bytes.min(MAX_READ_BYTES)];
                let bytes = match self {
                    Socket::Tcp(stream) => stream.try_read(room),
                    Socket::Unix(stream) => stream.try_read(room),
                }?;
                Ok((bytes, look(&room[..bytes])))
            });
            match result {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    /// Writes what there is room for, once there is some.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Socket::Tcp(stream) => {
                    stream.writable().await?;
                    stream.try_write(bytes)
                }
                Socket::Unix(stream) => {
                    stream.writable().await?;
                    stream.try_write(bytes)
                }
            };
            match result {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    pub(crate) async fn read_exact(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..]).await? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                bytes => filled += bytes,
            }
        }
        Ok(())
    }

    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Ends our direction.
    pub(crate) fn shut_down(&self) -> io::Result<()> {
        self.options().shutdown(Shutdown::Write)
    }

    /// Makes the close that follows a reset.
    pub(crate) fn arm_reset(&self) {
        // On a connection that is gone it may fail, which changes nothing.
        let _ = self.options().set_linger(Some(Duration::ZERO));
    }

    /// The ports, ours and the other's, of a TCP connection.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        match self {
            Socket::Tcp(stream) => Some((stream.local_addr().ok()?.port(), stream.peer_addr().ok()?.port())),
            Socket::Unix(_) => None,
        }
    }

    fn options(&self) -> SockRef<'_> {
        match self {
            Socket::Tcp(stream) => SockRef::from(stream),
            Socket::Unix(stream) => SockRef::from(stream),
        }
    }
}
