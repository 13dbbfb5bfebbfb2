//! A forwarding loop on tokio, as its documentation suggests it: `copy_bidirectional`, one task a session.

mod args;

use std::io;
use std::net::SocketAddr;

use args::Args;
use clap::Parser;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

fn main() -> io::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen).await?;
        loop {
            let (client, _) = listener.accept().await?;
            // An error is the end of that session; its sockets are closed by then.
            tokio::spawn(async move { forward(client, args.to).await.ok() });
        }
    })
}

async fn forward(mut client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut upstream = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut upstream).await?;
    Ok(())
}
