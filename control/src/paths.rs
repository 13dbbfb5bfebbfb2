//! Where the admin endpoint is when nobody says.

use std::path::PathBuf;

use crate::config::parse_bind;
use crate::model::BindAddress;

/// Of a daemon without a file: in the user's own runtime folder where there is one (XDG Base Directory
/// Specification), else where services have theirs.
pub(crate) fn own_admin() -> BindAddress {
    runtime_socket().map_or_else(system_admin, BindAddress::Unix)
}

/// Where `status` and its like ask: the system's daemon if its socket is there, else the user's own.
pub(crate) fn default_admin() -> BindAddress {
    match (system_admin(), runtime_socket()) {
        (BindAddress::Unix(system), Some(own)) if !system.exists() && own.exists() => BindAddress::Unix(own),
        (system, _) => system,
    }
}

fn system_admin() -> BindAddress {
    match parse_bind(crate::config::DEFAULT_ADMIN) {
        Ok(address) => address,
        Err(error) => unreachable!("a constant of ours {error}"),
    }
}

fn runtime_socket() -> Option<PathBuf> {
    if cfg!(not(unix)) {
        return None;
    }
    std::env::var_os("XDG_RUNTIME_DIR").map(|folder| PathBuf::from(folder).join("ringweir/admin.sock"))
}
