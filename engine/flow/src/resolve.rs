//! What a driver asks of whoever resolves names (the control thread): a port, so that neither knows the other.

use std::net::IpAddr;

use crate::wire::HostName;

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name does not exist or has no addresses.
    #[error("no such name")]
    NotFound,
    /// No name server answered in time.
    #[error("no name server answered in time")]
    TimedOut,
    /// Too many questions wait already, or the servers failed.
    #[error("the resolver failed")]
    Failed,
}

/// The addresses of a name, best first, at least one; or why there are none.
pub type Resolved = Result<Vec<IpAddr>, ResolveError>;

/// Resolves names off the workers. Implementations answer exactly once, from any thread, and never block the caller.
pub trait Resolver: Send + Sync {
    /// Looks up the IPv6 and IPv4 addresses of `name` and hands them to `answer`.
    fn resolve(&self, name: HostName, answer: Box<dyn FnOnce(Resolved) + Send>);
}
