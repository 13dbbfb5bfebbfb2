//! The barest forwarding loops there are, one for each way that the kernel offers: what none of them can do for less, no
//! forwarder of that kind can. They pick nothing, count nothing, time nothing out, and an accept that fails ends them.
//! They lose no byte and pass half-closes on: `tests/bare.rs`.

#[cfg(target_os = "linux")]
mod lane;
#[cfg(target_os = "linux")]
mod ready;
#[cfg(target_os = "linux")]
mod rings;

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{self, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::os::fd::OwnedFd;

    use clap::{Parser, ValueEnum};
    use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

    use super::{ready, rings};

    /// Forwards each connection to one address, in one thread.
    #[derive(Parser)]
    struct Args {
        /// Where clients connect.
        #[arg(long)]
        listen: SocketAddr,
        /// Where they are forwarded.
        #[arg(long)]
        to: SocketAddr,
        /// By what.
        #[arg(long)]
        kind: Kind,
    }

    #[derive(Clone, Copy, ValueEnum)]
    enum Kind {
        /// One-shot receives and sends of io_uring, through buffers of a pool.
        Ring,
        /// splice(2), where the ring tells when.
        RingSplice,
        /// recv(2) and send(2), where epoll tells when (edge-triggered).
        Epoll,
        /// splice(2), likewise.
        EpollSplice,
    }

    pub(crate) fn main() -> io::Result<()> {
        let Args { listen, to, kind } = Args::parse();
        let listener = TcpListener::bind(listen)?;
        // Accepted sockets inherit it.
        sockopt::set_tcp_nodelay(&listener, true)?;
        net::listen(&listener, 4096)?;
        writeln!(io::stdout(), "{}", listener.local_addr()?)?;
        match kind {
            Kind::Ring => rings::copy(&listener, to),
            Kind::RingSplice => rings::splice(&listener, to),
            Kind::Epoll => ready::run(&listener, to, false),
            Kind::EpollSplice => ready::run(&listener, to, true),
        }
    }

    /// A socket to be connected.
    pub(crate) fn upstream(to: SocketAddr) -> io::Result<OwnedFd> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        Ok(socket)
    }
}
