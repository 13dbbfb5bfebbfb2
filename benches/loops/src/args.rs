//! What every loop takes.

use std::net::SocketAddr;

/// Forwards each connection to one address, in one thread.
#[derive(clap::Parser)]
pub(crate) struct Args {
    /// Where clients connect.
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// Where they are forwarded.
    #[arg(long)]
    pub(crate) to: SocketAddr,
}
