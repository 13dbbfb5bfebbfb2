//! A forwarding loop on tokio-uring: a task each direction, which owns its buffer for as long as it runs.

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
    use std::net::{Shutdown, SocketAddr};
    use std::rc::Rc;

    use clap::Parser;
    use tokio_uring::buf::BoundedBuf;
    use tokio_uring::net::{TcpListener, TcpStream};

    use crate::args::Args;

    /// The buffer of a direction, in bytes: twice what tokio's `copy_bidirectional` takes, as one who cares for bulk
    /// would.
    const BUFFER_BYTES: usize = 16 * 1024;

    pub(crate) fn main() -> io::Result<()> {
        let args = Args::parse();
        tokio_uring::start(async {
            let listener = TcpListener::bind(args.listen)?;
            loop {
                let (client, _) = listener.accept().await?;
                // An error is the end of that session; its sockets are closed by then.
                tokio_uring::spawn(async move { forward(client, args.to).await.ok() });
            }
        })
    }

    async fn forward(client: TcpStream, to: SocketAddr) -> io::Result<()> {
        let upstream = TcpStream::connect(to).await?;
        client.set_nodelay(true)?;
        upstream.set_nodelay(true)?;
        let (client, upstream) = (Rc::new(client), Rc::new(upstream));
        let up = tokio_uring::spawn(copy(Rc::clone(&client), Rc::clone(&upstream)));
        let down = copy(Rc::clone(&upstream), Rc::clone(&client)).await;
        if down.is_err() {
            // Ends what the other direction waits for.
            let _ = client.shutdown(Shutdown::Both);
        }
        down.and(up.await?)
    }

    /// Copies until the end of `source`'s stream, and passes it on as a half-close.
    async fn copy(source: Rc<TcpStream>, sink: Rc<TcpStream>) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let (received, filled) = source.read(buffer).await;
            let bytes = match received {
                Ok(0) => return sink.shutdown(Shutdown::Write),
                Ok(bytes) => bytes,
                Err(error) => {
                    let _ = sink.shutdown(Shutdown::Both);
                    return Err(error);
                }
            };
            let (sent, slice) = sink.write_all(filled.slice(..bytes)).await;
            if let Err(error) = sent {
                let _ = source.shutdown(Shutdown::Both);
                return Err(error);
            }
            buffer = slice.into_inner();
        }
    }
}
