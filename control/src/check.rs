//! Active health checks: one task for each checked upstream, probes bounded in number and in time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::health::{Judgement, Verdict, VerdictTerms};
use ringweir_flow::outgoing::Outgoing;
use ringweir_flow::snapshot::{Health, Hop, Towards};
use ringweir_flow::time::Instant;
use ringweir_flow::wire::client::{Introduction, Step};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::model::{Check, Endpoint, Upstream};
use crate::resolve::Names;

/// How many probes are in flight at once, over all targets.
pub(crate) const MAX_PROBES: usize = 64;

/// How long a probe may take where no check says.
const DEFAULT_LIMIT: Duration = Duration::from_secs(3);

/// Waits are drawn from this much around the scheduled ones, so that probes of many targets do not march in step.
const JITTER: f64 = 0.1;

/// What a probe found, and what follows from it.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) target: Arc<str>,
    /// `None` when the probe succeeded.
    pub(crate) error: Option<String>,
    /// How long the probe took.
    pub(crate) took: Duration,
    /// The health from now on.
    pub(crate) health: Health,
}

/// A running check; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    upstream: Upstream,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    /// Whether a new configuration asks for the very same.
    pub(crate) fn is_same(&self, upstream: &Upstream) -> bool {
        self.upstream == *upstream
    }
}

/// Starts to check a target. The first probe goes out at once.
pub(crate) fn start(
    target: Arc<str>,
    check: Arc<Check>,
    upstream: Upstream,
    names: Arc<Names>,
    probes: Arc<Semaphore>,
    findings: mpsc::Sender<Finding>,
) -> Running {
    let probed = upstream.clone();
    let task = tokio::spawn(async move {
        let origin = tokio::time::Instant::now();
        let terms = VerdictTerms { fall: check.fall, rise: check.rise, double_check: check.double_check };
        let mut verdict = Verdict::new(terms);
        let mut step = 0;
        // Name servers that are silent do not make a target that answers sick: the last addresses are probed then.
        let mut addresses = Vec::new();
        loop {
            let begun = tokio::time::Instant::now();
            let result = {
                // The semaphore is never closed.
                let _permit = probes.acquire().await;
                probe(&probed, check.timeout, &names, &mut addresses).await
            };
            let judgement = verdict.handle(result.is_ok(), moment(origin));
            if judgement == Judgement::Doubted {
                continue;
            }
            let finding = Finding {
                target: Arc::clone(&target),
                error: result.err(),
                took: begun.elapsed(),
                health: verdict.health(),
            };
            if findings.send(finding).await.is_err() {
                return;
            }
            // After a change the schedule starts again: news wants to be confirmed soon.
            step = if judgement == Judgement::Changed { 0 } else { step + 1 };
            let wait = check.schedule[step.min(check.schedule.len() - 1)];
            sleep(jittered(wait)).await;
        }
    });
    Running { upstream, task }
}

/// Probes an upstream now, as its check would or by a connect.
pub(crate) async fn probe_once(upstream: &Upstream, names: &Names, probes: &Semaphore) -> Result<(), String> {
    let limit = upstream.check.as_ref().map_or(DEFAULT_LIMIT, |check| check.timeout);
    // The semaphore is never closed.
    let _permit = probes.acquire().await;
    probe(upstream, limit, names, &mut Vec::new()).await
}

/// Connects and closes. All addresses of a name are tried, each for its share of the time.
async fn probe(
    upstream: &Upstream,
    limit: Duration,
    names: &Names,
    known: &mut Vec<SocketAddr>,
) -> Result<(), String> {
    let outgoing = upstream.outgoing.as_deref();
    let hops: Vec<Hop> =
        upstream.hops().into_iter().filter(|hop| matches!(hop.towards, Towards::Fixed(_))).collect();
    let endpoint = upstream.via.first().map_or(&upstream.endpoint, |via| &via.endpoint);
    match endpoint {
        Endpoint::Address(address) => connect_tcp(&[*address], outgoing, &hops, limit).await,
        Endpoint::Name(name, port) => {
            match names.lookup(name).await {
                Ok(found) => *known = found.addresses.iter().map(|ip| SocketAddr::new(*ip, *port)).collect(),
                Err(error) if known.is_empty() => return Err(error.to_string()),
                Err(_) => {}
            }
            connect_tcp(known, outgoing, &hops, limit).await
        }
        Endpoint::Unix(path) => within(limit, connect_unix(path, &hops)).await,
        // The configuration gives no check to these.
        Endpoint::Direct | Endpoint::Reject => Ok(()),
    }
}

async fn connect_tcp(
    addresses: &[SocketAddr],
    outgoing: Option<&Outgoing>,
    hops: &[Hop],
    limit: Duration,
) -> Result<(), String> {
    let mut last = match addresses {
        [] => "the name has no address".to_owned(),
        _ => "there is no source address of the family of its addresses".to_owned(),
    };
    let reached = |address: &SocketAddr| outgoing.is_none_or(|outgoing| outgoing.reaches(*address));
    let addresses: Vec<_> = addresses.iter().copied().filter(reached).collect();
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    for address in addresses {
        let reach = async {
            let mut stream = connect_one(address, outgoing).await?;
            pass(&mut stream, hops).await
        };
        match within(share, reach).await {
            Ok(()) => return Ok(()),
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(last)
}

/// Connects as sessions do, from the first of the source addresses.
async fn connect_one(address: SocketAddr, outgoing: Option<&Outgoing>) -> Result<TcpStream, String> {
    let connected = match outgoing {
        None => TcpStream::connect(address).await,
        Some(outgoing) => {
            let source = outgoing.source(address, 0);
            let socket =
                ringweir_socket::open(address, outgoing, source).map_err(|error| error.to_string())?;
            TcpSocket::from_std_stream(socket.into()).connect(address).await
        }
    };
    connected.map_err(|error| error.to_string())
}

async fn within<T>(limit: Duration, attempt: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(limit, attempt).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
}

/// Gets past the proxies on the way.
async fn pass(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), hops: &[Hop]) -> Result<(), String> {
    let (mut received, mut out) = (Vec::new(), Vec::new());
    for (number, hop) in (1..).zip(hops) {
        let of_proxy = |error: &dyn std::fmt::Display| format!("proxy {number} of {}: {error}", hops.len());
        // Such hops lead to a fixed place.
        let Some(mut introduction) = Introduction::new(hop, None) else { continue };
        loop {
            let progress = introduction.advance(&received, &mut out);
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
    }
    Ok(())
}

#[cfg(unix)]
async fn connect_unix(path: &std::path::Path, hops: &[Hop]) -> Result<(), String> {
    let connected = tokio::net::UnixStream::connect(path).await;
    pass(&mut connected.map_err(|error| error.to_string())?, hops).await
}

#[cfg(not(unix))]
async fn connect_unix(_path: &std::path::Path, _hops: &[Hop]) -> Result<(), String> {
    Err("Unix sockets are not to be had here".to_owned())
}

/// The time as state machines are told it.
fn moment(origin: tokio::time::Instant) -> Instant {
    Instant::ZERO + origin.elapsed()
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_within_the_jitter() {
        let wait = Duration::from_secs(10);
        for _ in 0..1000 {
            let drawn = jittered(wait);
            assert!(drawn >= Duration::from_secs(9) && drawn <= Duration::from_secs(11));
        }
    }
}
