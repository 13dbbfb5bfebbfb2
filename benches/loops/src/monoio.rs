//! A forwarding loop on monoio: its own `copy` (4 KiB buffers), or with `--splice` its own `zero_copy`.

#[cfg(target_os = "linux")]
mod args;

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::net::SocketAddr;

    use clap::Parser;
    use monoio::io::{AsyncWriteRent, Splitable, copy, zero_copy};
    use monoio::net::tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf};
    use monoio::net::{TcpListener, TcpStream};

    use crate::args::Args;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        args: Args,
        /// Copy by splice, through the ring.
        #[arg(long)]
        splice: bool,
    }

    pub(crate) fn main() -> io::Result<()> {
        let Options { args, splice } = Options::parse();
        let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind(args.listen)?;
            loop {
                let (client, _) = listener.accept().await?;
                // An error is the end of that session; its sockets are closed by then.
                monoio::spawn(async move { forward(client, args.to, splice).await.ok() });
            }
        })
    }

    async fn forward(client: TcpStream, to: SocketAddr, splice: bool) -> io::Result<()> {
        let upstream = TcpStream::connect(to).await?;
        client.set_nodelay(true)?;
        upstream.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_upstream, to_upstream) = upstream.into_split();
        let up = monoio::spawn(pump(from_client, to_upstream, splice));
        let down = pump(from_upstream, to_client, splice).await;
        down.and(up.await)
    }

    /// Copies until the end of `source`'s stream, and passes it on as a half-close.
    async fn pump(mut source: TcpOwnedReadHalf, mut sink: TcpOwnedWriteHalf, splice: bool) -> io::Result<()> {
        let copied =
            if splice { zero_copy(&mut source, &mut sink).await } else { copy(&mut source, &mut sink).await };
        // Also after an error, so that the other direction ends too.
        let shut = sink.shutdown().await;
        copied.and(shut)
    }
}
