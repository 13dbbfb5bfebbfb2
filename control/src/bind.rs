//! Opens listening sockets, before a snapshot names them: a reload whose address is taken is refused whole.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::snapshot::BindId;
use ringweir_socket::{Listening, OptionError, SocketOption};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::{Instant, sleep};

use crate::model::{BindAddress, Config, Listener, TargetKind, Upstream};

/// How long an address that is in use is waited for at a start, and how often it is tried: the kernel takes a moment to
/// close the listening sockets that a killed process had in its rings.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(1);
const ADDRESS_LOOK: Duration = Duration::from_millis(20);

/// The sockets of one bind.
pub type Opened = (BindId, Vec<Socket>);

/// A bind that is open, for as long as the configuration names its address.
#[derive(Clone, Debug)]
pub(crate) struct OpenBind {
    pub(crate) id: BindId,
    /// Whose it is.
    pub(crate) listener: Arc<str>,
    /// As configured.
    pub(crate) configured: BindAddress,
    /// As bound, with the port that the kernel chose for port 0.
    pub(crate) bound: String,
    /// What is special about its sockets.
    pub(crate) options: Listening,
}

impl OpenBind {
    /// Whether it serves what is configured as `address`, be it by the port that the kernel chose for it.
    pub(crate) fn is_at(&self, address: &BindAddress) -> bool {
        self.configured == *address || self.bound == address.to_string()
    }
}

/// Whether sockets towards the upstreams can have the options that are configured.
///
/// # Errors
/// All that are refused, and how.
pub(crate) fn try_upstreams(config: &Config) -> Result<(), String> {
    let refused = config.targets.iter().filter_map(|target| match &target.kind {
        TargetKind::Upstream(Upstream { outgoing: Some(outgoing), .. }) => {
            let error = ringweir_socket::try_out(outgoing).err()?;
            Some(format!("upstream.{}.{error}", target.name))
        }
        TargetKind::Upstream(_) | TargetKind::Group(_) => None,
    });
    let refused: Vec<String> = refused.collect();
    if refused.is_empty() { Ok(()) } else { Err(refused.join("\n")) }
}

/// Why an address could not be bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// The system refuses the address.
    #[error("{address} cannot be bound: {error}")]
    Address { address: BindAddress, error: io::Error },
    /// It refuses an option.
    #[error("listener.{listener}.{error}")]
    Option { listener: Arc<str>, error: OptionError },
}

impl BindError {
    /// Whether somebody else has the address.
    pub(crate) fn is_in_use(&self) -> bool {
        match self {
            BindError::Address { error, .. } => error.kind() == io::ErrorKind::AddrInUse,
            BindError::Option { .. } => false,
        }
    }
}

/// Opens everything, and waits a little for an address that is in use.
pub(crate) async fn open_at_start(
    config: &Config,
    workers: usize,
) -> Result<(Vec<OpenBind>, Vec<Opened>, u64), String> {
    let begun = Instant::now();
    loop {
        match open_all(config, &[], workers, 1) {
            Err(error) if error.is_in_use() && begun.elapsed() < ADDRESS_PATIENCE => {
                sleep(ADDRESS_LOOK).await;
            }
            opened => return opened.map_err(|error| error.to_string()),
        }
    }
}

/// Opens what the configuration names and is not open yet. On an error everything that was opened is closed again.
pub(crate) fn open_all(
    config: &Config,
    known: &[OpenBind],
    workers: usize,
    mut next: u64,
) -> Result<(Vec<OpenBind>, Vec<Opened>, u64), BindError> {
    let mut left: Vec<&OpenBind> = known.iter().collect();
    let wanted: Vec<_> = config
        .listeners
        .iter()
        .flat_map(|listener| listener.binds.iter().map(move |address| (listener, address)))
        .collect();
    // What a listener has is its own before others may take an address over from it.
    let mut kept: Vec<Option<OpenBind>> = wanted
        .iter()
        .map(|(listener, address)| {
            let at = left.iter().position(|bind| bind.listener == listener.name && bind.is_at(address))?;
            Some(left.remove(at).clone())
        })
        .collect();
    let (mut binds, mut opened) = (Vec::new(), Vec::new());
    for ((listener, address), kept) in wanted.into_iter().zip(&mut kept) {
        let taken_over = || {
            let at = left.iter().position(|bind| address.port() != Some(0) && bind.is_at(address))?;
            Some(left.remove(at).clone())
        };
        if let Some(bind) = kept.take().or_else(taken_over) {
            binds.push(OpenBind {
                listener: Arc::clone(&listener.name),
                configured: address.clone(),
                ..bind
            });
            continue;
        }
        let (bind, sockets) = open(BindId(next), listener, address, workers)?;
        next += 1;
        binds.push(bind);
        opened.push(sockets);
    }
    Ok((binds, opened, next))
}

/// Binds and listens: a socket for each worker where `SO_REUSEPORT` spreads clients over them, else one.
///
/// # Errors
/// [`BindError`] names the address.
fn open(
    id: BindId,
    listener: &Listener,
    configured: &BindAddress,
    workers: usize,
) -> Result<(OpenBind, Opened), BindError> {
    let options = &listener.socket;
    let (bound, sockets) = match configured {
        BindAddress::Tcp(address) => open_tcp(*address, V6Only::Yes, options, workers),
        BindAddress::DualStack(port) => {
            let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
            open_tcp(address, V6Only::No, options, workers)
        }
        BindAddress::Unix(path) => open_unix(path, options),
    }
    .map_err(|fault| match fault {
        Fault::Address(error) | Fault::Option(OptionError { option: SocketOption::Socket, error }) => {
            BindError::Address { address: configured.clone(), error }
        }
        Fault::Option(error) => BindError::Option { listener: Arc::clone(&listener.name), error },
    })?;
    let (configured, options) = (configured.clone(), options.clone());
    let bind = OpenBind { id, listener: Arc::clone(&listener.name), configured, bound, options };
    Ok((bind, (id, sockets)))
}

/// What was refused.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Address(#[from] io::Error),
    #[error(transparent)]
    Option(#[from] OptionError),
}

/// The binds whose sockets were opened with other options than their listener has now.
pub(crate) fn with_old_sockets(config: &Config, binds: &[OpenBind]) -> Vec<String> {
    let differs = |bind: &&OpenBind| {
        let listener = config.listeners.iter().find(|listener| listener.name == bind.listener);
        listener.is_some_and(|listener| listener.socket != bind.options)
    };
    let what = |bind: &OpenBind| {
        format!("what changed in the socket options of listener {} at {}", bind.listener, bind.bound)
    };
    binds.iter().filter(differs).map(what).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum V6Only {
    Yes,
    No,
}

fn open_tcp(
    address: SocketAddr,
    v6_only: V6Only,
    options: &Listening,
    workers: usize,
) -> Result<(String, Vec<Socket>), Fault> {
    // Elsewhere SO_REUSEPORT does not spread clients evenly, or does not exist.
    let count = if cfg!(target_os = "linux") { workers } else { 1 };
    refuse_if_taken(address, v6_only, options)?;
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = options.open(address)?;
        if address.is_ipv6() {
            socket.set_only_v6(v6_only == V6Only::Yes)?;
        }
        share_address(&socket)?;
        socket.bind(&address.into())?;
        options.listen(&socket)?;
        if let Some(bound) = socket.local_addr()?.as_socket() {
            // The others follow the port that the kernel chose for the first.
            address = bound;
        }
        sockets.push(socket);
    }
    Ok((address.to_string(), sockets))
}

/// `SO_REUSEPORT` would let a second daemon of the same user take a share of the first one's clients without a word. A
/// socket without it is refused where anybody listens.
#[cfg(target_os = "linux")]
fn refuse_if_taken(address: SocketAddr, v6_only: V6Only, options: &Listening) -> Result<(), Fault> {
    let socket = options.open(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only == V6Only::Yes)?;
    }
    socket.set_reuse_address(true)?;
    Ok(socket.bind(&address.into())?)
}

/// Nothing is shared there.
#[cfg(not(target_os = "linux"))]
fn refuse_if_taken(_address: SocketAddr, _v6_only: V6Only, _options: &Listening) -> Result<(), Fault> {
    Ok(())
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
fn open_unix(path: &Path, options: &Listening) -> Result<(String, Vec<Socket>), Fault> {
    let address = SockAddr::unix(path)?;
    remove_stale_socket(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&address)?;
    options.listen(&socket)?;
    Ok((format!("unix:{}", path.display()), vec![socket]))
}

/// Removes the file of a Unix socket that nobody serves any more.
///
/// # Errors
/// When somebody does, or when the file is no socket: it is somebody's data then.
pub(crate) fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !is_socket(&metadata) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in the way"));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

#[cfg(unix)]
fn is_socket(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type())
}

/// There are no such files.
#[cfg(not(unix))]
fn is_socket(_metadata: &std::fs::Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> Listener {
        crate::forward::without_file().unwrap().listeners.remove(0)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn every_worker_gets_a_socket_on_the_same_chosen_port() {
        let address = BindAddress::Tcp("127.0.0.1:0".parse().unwrap());
        let (bind, (_, sockets)) = open(BindId(1), &listener(), &address, 3).unwrap();
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
        let (_, first) = open(BindId(1), &listener(), &address, 2).unwrap();
        let error = open(BindId(2), &listener(), &address, 2).unwrap_err();
        assert!(error.to_string().contains("l.sock"), "{error}");
        drop(first);
        open(BindId(3), &listener(), &address, 2).unwrap();
        let data = folder.join("data");
        std::fs::write(&data, "precious").unwrap();
        open(BindId(4), &listener(), &BindAddress::Unix(data.clone()), 2).unwrap_err();
        assert_eq!(std::fs::read_to_string(&data).unwrap(), "precious");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_address_that_another_daemon_serves_is_refused() {
        let address = BindAddress::Tcp("127.0.0.1:0".parse().unwrap());
        let (bind, _sockets) = open(BindId(1), &listener(), &address, 1).unwrap();
        let same = BindAddress::Tcp(bind.bound.parse().unwrap());
        assert!(open(BindId(2), &listener(), &same, 1).unwrap_err().to_string().contains(&bind.bound));
    }
}
