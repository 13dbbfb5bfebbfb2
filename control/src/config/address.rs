//! Addresses as they are written in configurations and on the command line.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ringweir_flow::wire::Destination;

use crate::model::{BindAddress, Endpoint};

/// The longest path of a Unix socket: `sun_path` has 108 bytes on Linux and 104 on macOS, one for the final NUL.
const MAX_SOCKET_PATH_BYTES: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The port of name servers.
const DNS_PORT: u16 = 53;

/// Why an address cannot be read. Its text follows the address in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `host:port` nor `unix:path`.
    #[error("is no address: write it as 127.0.0.1:8080, [::1]:8080, :8080 or unix:/path")]
    Bind,
    /// A name, where only an address can be bound.
    #[error("is a name: only addresses can be bound, such as 127.0.0.1:{0} or [::1]:{0}")]
    NameToBind(u16),
    /// Neither `host:port` nor `unix:path`.
    #[error("is no endpoint: write it as host:port, 10.0.0.1:80, [2001:db8::1]:80 or unix:/path")]
    Endpoint,
    /// Port 0.
    #[error("has port 0, where nobody can listen")]
    PortZero,
    /// The path of a Unix socket is empty or too long.
    #[error("has a path that is empty or longer than {MAX_SOCKET_PATH_BYTES} bytes")]
    Path,
    /// Unix sockets are not to be had here.
    #[error("is a Unix socket, which this system does not have")]
    NoUnixSockets,
    /// Not the address of a name server.
    #[error("is no address of a name server: write it as 10.0.0.53 or 10.0.0.53:53")]
    Server,
}

/// Reads where a listener is bound.
///
/// # Errors
/// [`AddressError`] says what is wrong.
pub fn parse_bind(text: &str) -> Result<BindAddress, AddressError> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path).map(BindAddress::Unix);
    }
    if let Some(port) = text.strip_prefix(':') {
        return port.parse().map(BindAddress::DualStack).map_err(|_| AddressError::Bind);
    }
    match text.parse() {
        Ok(address) => Ok(BindAddress::Tcp(address)),
        Err(_) => match text.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            Some((host, Ok(port))) if !host.contains(':') => Err(AddressError::NameToBind(port)),
            Some(_) | None => Err(AddressError::Bind),
        },
    }
}

/// Reads where an upstream leads.
///
/// # Errors
/// [`AddressError`] says what is wrong.
pub fn parse_endpoint(text: &str) -> Result<Endpoint, AddressError> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path).map(|path| Endpoint::Unix(path.into()));
    }
    let (host, port) = text.rsplit_once(':').ok_or(AddressError::Endpoint)?;
    let port: u16 = port.parse().map_err(|_| AddressError::Endpoint)?;
    if port == 0 {
        return Err(AddressError::PortZero);
    }
    // An IPv6 address without brackets: its last group would be taken for the port.
    if host.contains(':') && !host.starts_with('[') {
        return Err(AddressError::Endpoint);
    }
    match Destination::from_host(host.as_bytes(), port) {
        Ok(Destination::Address(address)) => Ok(Endpoint::Address(address)),
        Ok(Destination::Name(name, port)) => Ok(Endpoint::Name(name, port)),
        Err(_) => Err(AddressError::Endpoint),
    }
}

/// Reads the address of a name server; the port may be left out.
pub(crate) fn parse_server(text: &str) -> Result<SocketAddr, AddressError> {
    let address = text.parse().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT)));
    address.map_err(|_| AddressError::Server)
}

fn socket_path(path: &str) -> Result<PathBuf, AddressError> {
    if !cfg!(unix) {
        return Err(AddressError::NoUnixSockets);
    }
    if path.is_empty() || path.len() > MAX_SOCKET_PATH_BYTES || path.contains('\0') {
        return Err(AddressError::Path);
    }
    Ok(Path::new(path).to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_addresses_ports_or_paths() {
        assert_eq!(parse_bind(":8080"), Ok(BindAddress::DualStack(8080)));
        assert_eq!(parse_bind("[::1]:80"), Ok(BindAddress::Tcp("[::1]:80".parse().unwrap())));
        assert_eq!(parse_bind("localhost:80"), Err(AddressError::NameToBind(80)));
        for bad in ["", "80", "1.2.3.4", "1.2.3.4:70000", ":x", "::1:80"] {
            assert_eq!(parse_bind(bad), Err(AddressError::Bind), "{bad}");
        }
        #[cfg(unix)]
        {
            assert_eq!(parse_bind("unix:/a"), Ok(BindAddress::Unix("/a".into())));
            assert_eq!(parse_bind("unix:"), Err(AddressError::Path));
            assert_eq!(parse_bind(&format!("unix:/{}", "a".repeat(120))), Err(AddressError::Path));
        }
    }

    #[test]
    fn endpoints_are_names_addresses_or_paths() {
        assert_eq!(parse_endpoint("[::1]:80"), Ok(Endpoint::Address("[::1]:80".parse().unwrap())));
        assert!(matches!(parse_endpoint("a.example:80"), Ok(Endpoint::Name(_, 80))));
        assert_eq!(parse_endpoint("a.example:0"), Err(AddressError::PortZero));
        for bad in ["", "a.example", "::1:80", "a b:80", ":80", "a/b:80"] {
            assert_eq!(parse_endpoint(bad), Err(AddressError::Endpoint), "{bad}");
        }
    }

    #[test]
    fn name_servers_may_leave_out_the_port() {
        assert_eq!(parse_server("10.0.0.53").unwrap().port(), 53);
        assert_eq!(parse_server("[::1]:5353").unwrap().port(), 5353);
        assert_eq!(parse_server("dns.example"), Err(AddressError::Server));
    }
}
