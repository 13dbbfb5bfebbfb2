//! Opens listening sockets, before a snapshot names them: a reload whose address is taken is refused whole.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;

use ringweir_flow::snapshot::BindId;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::model::BindAddress;

/// The kernel clamps it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// The sockets of one bind.
pub type Opened = (BindId, Vec<Socket>);

/// A bind that is open, for as long as the configuration names its address.
#[derive(Clone, Debug)]
pub(crate) struct OpenBind {
    pub(crate) id: BindId,
    /// As configured: the identity across reloads.
    pub(crate) configured: BindAddress,
    /// As bound, with the port that the kernel chose for port 0.
    pub(crate) bound: String,
}

/// Why an address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{address} cannot be bound: {error}")]
pub(crate) struct BindError {
    address: BindAddress,
    error: io::Error,
}

/// Binds and listens: a socket for each worker where `SO_REUSEPORT` spreads clients over them, else one.
///
/// # Errors
/// [`BindError`] names the address.
pub(crate) fn open(
    id: BindId,
    configured: &BindAddress,
    workers: usize,
) -> Result<(OpenBind, Opened), BindError> {
    let fail = |error| BindError { address: configured.clone(), error };
    let (bound, sockets) = match configured {
        BindAddress::Tcp(address) => open_tcp(*address, V6Only::Yes, workers),
        BindAddress::DualStack(port) => {
            open_tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port)), V6Only::No, workers)
        }
        BindAddress::Unix(path) => open_unix(path),
    }
    .map_err(fail)?;
    Ok((OpenBind { id, configured: configured.clone(), bound }, (id, sockets)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum V6Only {
    Yes,
    No,
}

fn open_tcp(address: SocketAddr, v6_only: V6Only, workers: usize) -> io::Result<(String, Vec<Socket>)> {
    // Elsewhere SO_REUSEPORT does not spread clients evenly, or does not exist.
    let count = if cfg!(target_os = "linux") { workers } else { 1 };
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(v6_only == V6Only::Yes)?;
        }
        share_address(&socket)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        if let Some(bound) = socket.local_addr()?.as_socket() {
            // The others follow the port that the kernel chose for the first.
            address = bound;
        }
        sockets.push(socket);
    }
    Ok((address.to_string(), sockets))
}

#[cfg(target_os = "linux")]
fn share_address(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)
}

#[cfg(all(unix, not(target_os = "linux")))]
fn share_address(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

/// On Windows SO_REUSEADDR would let others take the address over.
#[cfg(not(unix))]
fn share_address(_socket: &Socket) -> io::Result<()> {
    Ok(())
}

/// One socket, whose accept queue all workers share. A file that is left from before is removed when nobody answers
/// there; one that answers belongs to a running process.
fn open_unix(path: &Path) -> io::Result<(String, Vec<Socket>)> {
    let address = SockAddr::unix(path)?;
    if path.exists() {
        let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        match probe.connect(&address) {
            Ok(()) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        }
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&address)?;
    socket.listen(BACKLOG)?;
    Ok((format!("unix:{}", path.display()), vec![socket]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn every_worker_gets_a_socket_on_the_same_chosen_port() {
        let address = BindAddress::Tcp("127.0.0.1:0".parse().unwrap());
        let (bind, (_, sockets)) = open(BindId(1), &address, 3).unwrap();
        let addresses: Vec<_> =
            sockets.iter().map(|socket| socket.local_addr().unwrap().as_socket().unwrap()).collect();
        assert_eq!(addresses.len(), 3);
        assert!(addresses.iter().all(|address| address.to_string() == bind.bound && address.port() != 0));
    }

    #[cfg(unix)]
    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let folder = std::env::temp_dir().join(format!("ringweir-bind-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("l.sock");
        let address = BindAddress::Unix(path.clone());
        let (_, first) = open(BindId(1), &address, 2).unwrap();
        let error = open(BindId(2), &address, 2).unwrap_err();
        assert!(error.to_string().contains("l.sock"), "{error}");
        drop(first);
        open(BindId(3), &address, 2).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
