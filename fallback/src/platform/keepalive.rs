//! Systems of which it is not known that accepted sockets inherit keepalive probes: each gets its own.

use ringweir_flow::outgoing::Keepalive;

use crate::stream::Stream;

/// Switches probes on for an accepted socket.
pub(crate) fn keep_alive(stream: &Stream, keepalive: Option<Keepalive>) {
    if let (Stream::Tcp(stream), Some(keepalive)) = (stream, keepalive)
        && let Err(error) = ringweir_socket::set_keepalive(stream, keepalive)
    {
        // It fails only when the client is gone already, which its first receive reports.
        tracing::debug!(%error, "a client is not probed");
    }
}
