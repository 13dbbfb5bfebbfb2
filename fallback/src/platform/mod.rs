//! What differs between systems: Unix sockets, what TCP sockets are given, error numbers, the limit on descriptors, pipes to splice through, and
//! how to learn that a peer has everything it was sent.

#[cfg(not(target_os = "linux"))]
mod delivery;
#[cfg(target_os = "linux")]
#[path = "delivery_linux.rs"]
mod delivery;
#[cfg(not(target_os = "linux"))]
mod keepalive;
#[cfg(target_os = "linux")]
#[path = "keepalive_linux.rs"]
mod keepalive;
#[cfg(not(target_os = "linux"))]
mod splice;
#[cfg(target_os = "linux")]
#[path = "splice_linux.rs"]
mod splice;
#[cfg(not(unix))]
#[path = "windows.rs"]
mod system;
#[cfg(unix)]
#[path = "unix.rs"]
mod system;
#[cfg(not(target_os = "linux"))]
mod tcp;
#[cfg(target_os = "linux")]
#[path = "tcp_linux.rs"]
mod tcp;

pub(crate) use delivery::{Watch, watch};
pub(crate) use keepalive::keep_alive;
pub(crate) use splice::{Budget, Pipe, Pool, drain, fill, is_unspliceable};
pub(crate) use system::{
    LocalListener, LocalStream, adopt_local, adopt_local_listener, connect_error, connect_local,
    is_clients_doing, is_full, is_in_progress, release_local, release_local_listener, session_limit,
    shut_down_local,
};
pub(crate) use tcp::{open_tcp, prepare_accepted, prepare_listener};
