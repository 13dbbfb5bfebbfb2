//! Linux: accepted sockets inherit keepalive probes from their listener, where control has set them.

use ringweir_flow::outgoing::Keepalive;

use crate::stream::Stream;

/// It is done.
pub(crate) fn keep_alive(_: &Stream, _: Option<Keepalive>) {}
