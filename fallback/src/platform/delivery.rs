//! Systems that tell nothing safe about what a peer has acknowledged: a short while must do.

use std::time::Duration;

use tokio::net::TcpStream;

/// Watches a socket to which nothing more will be written.
pub(crate) struct Watch;

/// Begins to watch.
pub(crate) fn watch(_: &TcpStream) -> Watch {
    Watch
}

impl Watch {
    /// Long enough for a round trip across a continent.
    pub(crate) const LIMIT: Duration = Duration::from_millis(250);

    pub(crate) fn is_delivered(&self, _: &TcpStream) -> bool {
        false
    }
}
