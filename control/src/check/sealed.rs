//! A probe's connection through Shadowsocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringweir_flow::wire::Destination;
use ringweir_flow::wire::shadowsocks::{Client, Serial, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, WriteHalf, duplex, split};

use super::reach::Io;

/// How much is on its way at a time: probes say little.
const ROOM_BYTES: usize = 16 * 1024;

/// Workers have numbers; probes are nobody's.
const NO_WORKER: u64 = u64::MAX;

/// A connection to `destination` through the server at the other end of `stream`. It ends when what comes is not that
/// server's.
pub(super) fn enter(stream: Box<dyn Io>, client: &Arc<Client>, destination: Destination) -> Box<dyn Io> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let serial = Serial { generation: 0, worker: NO_WORKER, count };
    let tunnel = client.tunnel(destination, serial, fastrand::u16(..));
    let (near, far) = duplex(ROOM_BYTES);
    // It ends with either of its ends; a probe drops its own when it is over.
    tokio::spawn(relay(far, stream, tunnel));
    Box::new(near)
}

async fn relay(far: DuplexStream, stream: Box<dyn Io>, mut tunnel: Tunnel) {
    let (mut from_probe, mut to_probe) = split(far);
    let (mut from_server, mut to_server) = split(stream);
    let (mut said, mut heard) = (Vec::with_capacity(ROOM_BYTES), Vec::with_capacity(ROOM_BYTES));
    loop {
        let passed = tokio::select! {
            bytes = from_probe.read_buf(&mut said) => match bytes {
                Ok(1..) => pass_up(&mut tunnel, &mut said, &mut to_server).await,
                Ok(_) | Err(_) => None,
            },
            bytes = from_server.read_buf(&mut heard) => match bytes {
                Ok(1..) => pass_down(&mut tunnel, &mut heard, &mut to_probe).await,
                Ok(_) | Err(_) => None,
            },
        };
        if passed.is_none() {
            return;
        }
    }
}

async fn pass_up(tunnel: &mut Tunnel, said: &mut Vec<u8>, to: &mut WriteHalf<Box<dyn Io>>) -> Option<()> {
    let mut sealed = Vec::new();
    tunnel.seal([&said[..]], &mut sealed);
    said.clear();
    to.write_all(&sealed).await.ok()
}

async fn pass_down(tunnel: &mut Tunnel, heard: &mut Vec<u8>, to: &mut WriteHalf<DuplexStream>) -> Option<()> {
    let mut plain = Vec::new();
    tunnel.open([&heard[..]], &mut plain).ok()?;
    heard.clear();
    to.write_all(&plain).await.ok()
}
