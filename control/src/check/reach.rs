//! How a probe gets to a target: the way that sessions go, proxies included.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use ringweir_flow::outgoing::Outgoing;
use ringweir_flow::snapshot::{Hop, Towards};
use ringweir_flow::wire::Destination;
use ringweir_flow::wire::client::{Introduction, Step};
use ringweir_flow::wire::proxy_protocol;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{Prober, Stage, Stages, sealed};
use crate::model::Endpoint;

/// What a probe speaks over.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection, and what came over it already.
pub(super) struct Reached {
    pub(super) stream: Box<dyn Io>,
    pub(super) heard: Vec<u8>,
}

/// Reaches a target as [`connect`] does, and tells it that it is us, where it wants to know whose connections are.
pub(super) async fn reach(
    prober: &mut Prober,
    asked: Option<&Destination>,
    stages: &mut Stages,
) -> Result<Reached, String> {
    let mut reached = connect(prober, asked, stages).await?;
    let upstream = &prober.upstream;
    let ends_at_endpoint = asked.is_some() || !upstream.needs_destination();
    if let Some(version) = upstream.send_proxy.filter(|_| ends_at_endpoint) {
        let mut header = Vec::new();
        proxy_protocol::write_local(version, &mut header);
        reached.stream.write_all(&header).await.map_err(|error| error.to_string())?;
    }
    Ok(reached)
}

/// Connects, and gets past the proxies on the way. `asked` is where a proxy, or `direct`, is to lead; without it the
/// way ends at the proxy. All addresses of a name are tried, each for its share of the time.
async fn connect(
    prober: &mut Prober,
    asked: Option<&Destination>,
    stages: &mut Stages,
) -> Result<Reached, String> {
    let upstream = prober.upstream.clone();
    let leads = |hop: &Hop| asked.is_some() || matches!(hop.towards, Towards::Fixed(_));
    let hops: Vec<Hop> = upstream.hops().into_iter().filter(leads).collect();
    stages.contact.leads_on = !hops.is_empty();
    let endpoint = upstream.via.first().map_or(&upstream.endpoint, |via| &via.endpoint);
    let found = match (endpoint, asked) {
        (Endpoint::Direct, Some(Destination::Address(address))) => Endpoint::Address(*address),
        (Endpoint::Direct, Some(Destination::Name(name, port))) => Endpoint::Name(name.clone(), *port),
        (known, _) => known.clone(),
    };
    let addresses = match &found {
        Endpoint::Address(address) => vec![*address],
        Endpoint::Name(name, port) => {
            let found = prober.names.lookup(name).await;
            stages.mark(Stage::Resolve);
            match found {
                Ok(found) => {
                    prober.known = found.addresses.iter().map(|ip| SocketAddr::new(*ip, *port)).collect();
                }
                Err(error) if prober.known.is_empty() => return Err(error.to_string()),
                // Name servers that are silent do not make a target that answers sick.
                Err(_) => {}
            }
            prober.known.clone()
        }
        Endpoint::Unix(path) => {
            stages.contact.is_local = true;
            let stream = connect_unix(path).await?;
            stages.mark(Stage::Connect);
            return pass(stream, &hops, asked, stages).await;
        }
        // The configuration lets only checks that name a destination go here.
        Endpoint::Direct | Endpoint::Reject => return Err("leads nowhere that could be probed".to_owned()),
    };
    reach_one_of(&addresses, upstream.outgoing.as_deref(), &hops, asked, prober.check.timeout, stages).await
}

async fn reach_one_of(
    addresses: &[SocketAddr],
    outgoing: Option<&Outgoing>,
    hops: &[Hop],
    asked: Option<&Destination>,
    limit: Duration,
    stages: &mut Stages,
) -> Result<Reached, String> {
    let mut last = match addresses {
        [] => "the name has no address".to_owned(),
        _ => "there is no source address of the family of its addresses".to_owned(),
    };
    let reached = |address: &SocketAddr| outgoing.is_none_or(|outgoing| outgoing.reaches(*address));
    let addresses: Vec<_> = addresses.iter().copied().filter(reached).collect();
    let is_local = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
    stages.contact.is_local = !addresses.is_empty() && addresses.iter().all(is_local);
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    for address in addresses {
        let reach = async {
            let connected = connect_one(address, outgoing).await;
            stages.contact.has_refused |= connected.as_ref().is_err_and(is_refusal);
            let stream = connected.map_err(|error| error.to_string())?;
            stages.mark(Stage::Connect);
            pass(Box::new(stream), hops, asked, stages).await
        };
        match timeout(share, reach).await {
            Ok(Ok(reached)) => return Ok(reached),
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer within {share:?}"),
        }
    }
    Err(last)
}

/// Connects as sessions do, from the first of the source addresses.
async fn connect_one(address: SocketAddr, outgoing: Option<&Outgoing>) -> io::Result<TcpStream> {
    match outgoing {
        None => TcpStream::connect(address).await,
        Some(outgoing) => {
            let source = outgoing.source(address, 0);
            let socket = ringweir_socket::open(address, outgoing, source).map_err(io::Error::other)?;
            TcpSocket::from_std_stream(socket.into()).connect(address).await
        }
    }
}

/// Whether somebody at the other end has said no.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
}

/// Gets past the proxies on the way.
async fn pass(
    mut stream: Box<dyn Io>,
    hops: &[Hop],
    asked: Option<&Destination>,
    stages: &mut Stages,
) -> Result<Reached, String> {
    let (mut received, mut out) = (Vec::new(), Vec::new());
    for (number, hop) in (1..).zip(hops) {
        let of_proxy = |error: &dyn Display| format!("proxy {number} of {}: {error}", hops.len());
        // Hops that lead where the client wants to go are taken only when that is known.
        let mut handshake = match Introduction::new(hop, asked) {
            None => continue,
            Some(Introduction::Tunnel(client, destination)) => {
                stream = sealed::enter(stream, &client, destination);
                continue;
            }
            Some(Introduction::Handshake(handshake)) => handshake,
        };
        loop {
            let progress = handshake.advance(&received, &mut out);
            received.drain(..progress.consumed);
            stream.write_all(&out).await.map_err(|error| of_proxy(&error))?;
            out.clear();
            match progress.step {
                Step::Done => break,
                Step::Failed(error) => return Err(of_proxy(&error)),
                Step::Incomplete => {
                    let bytes = stream.read_buf(&mut received).await.map_err(|error| of_proxy(&error))?;
                    if bytes == 0 {
                        return Err(of_proxy(&"ended without an answer"));
                    }
                }
            }
        }
        stages.mark(Stage::Proxy);
    }
    Ok(Reached { stream, heard: received })
}

#[cfg(unix)]
async fn connect_unix(path: &std::path::Path) -> Result<Box<dyn Io>, String> {
    match tokio::net::UnixStream::connect(path).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(not(unix))]
async fn connect_unix(_path: &std::path::Path) -> Result<Box<dyn Io>, String> {
    Err("Unix sockets are not to be had here".to_owned())
}
