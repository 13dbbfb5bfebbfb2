//! Resolves names off the workers: for `direct`, and for upstreams that are written as names.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver as Hickory, TokioResolver};
use ringweir_flow::resolve::{ResolveError, Resolved, Resolver};
use ringweir_flow::wire::HostName;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::assemble::Knowledge;
use crate::model::{Config, Endpoint, ResolverSettings, TargetKind};

/// Questions in flight; a flood of names must not grow memory without bound.
const MAX_QUESTIONS: usize = 1024;

/// Names that the cache remembers, for as long as their time-to-live says.
const CACHED_NAMES: u64 = 4096;

/// An upstream's name is asked for again no sooner and no later than this, whatever its time-to-live.
const SOONEST: Duration = Duration::from_secs(5);
const LATEST: Duration = Duration::from_secs(3600);

/// How long the start and a reload wait for the addresses of upstreams that are names. What is not known by then
/// comes later.
const FIRST_LOOKUP: Duration = Duration::from_secs(2);

/// Asks name servers. Cloned handles share a cache.
pub(crate) struct Names {
    resolver: TokioResolver,
    timeout: Duration,
    runtime: Handle,
    questions: AtomicUsize,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Names")
    }
}

/// The addresses of a name, and until when they may be used.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) addresses: Vec<IpAddr>,
    valid_until: std::time::Instant,
}

impl Names {
    /// Must be called within the runtime that will ask.
    ///
    /// # Errors
    /// What the resolver library says; not for a system configuration that cannot be read, which is only told.
    pub(crate) fn new(settings: &ResolverSettings) -> Result<Names, String> {
        let mut builder = if settings.servers.is_empty() {
            match TokioResolver::builder_tokio() {
                Ok(builder) => builder,
                Err(error) => {
                    tracing::warn!(%error, "no name servers: the system's configuration cannot be read");
                    let none = ResolverConfig::from_name_servers(Vec::new());
                    Hickory::builder_with_config(none, TokioRuntimeProvider::default())
                }
            }
        } else {
            let servers = settings.servers.iter().map(|server| name_server(*server)).collect();
            Hickory::builder_with_config(
                ResolverConfig::from_name_servers(servers),
                TokioRuntimeProvider::default(),
            )
        };
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = CACHED_NAMES;
        // One silent server leaves time for the next.
        options.timeout = settings.timeout / 2;
        let resolver = builder.build().map_err(|error| format!("the resolver cannot be set up: {error}"))?;
        Ok(Names {
            resolver,
            timeout: settings.timeout,
            runtime: Handle::current(),
            questions: AtomicUsize::new(0),
        })
    }

    /// Asks for the addresses of a name, IPv6 ones first (RFC 6724, section 2.1, prefers them).
    pub(crate) async fn lookup(&self, name: &HostName) -> Result<Found, ResolveError> {
        // A name that ends in a dot is complete; without it the search list of the system counts too.
        let lookup = timeout(self.timeout, self.resolver.lookup_ip(name.as_str()))
            .await
            .map_err(|_| ResolveError::TimedOut)?
            .map_err(|error| resolve_error(&error))?;
        let (mut addresses, v4): (Vec<IpAddr>, Vec<IpAddr>) = lookup.iter().partition(IpAddr::is_ipv6);
        addresses.extend(v4);
        if addresses.is_empty() {
            return Err(ResolveError::NotFound);
        }
        Ok(Found { addresses, valid_until: lookup.valid_until() })
    }

    fn spawn(self: &Arc<Self>, name: HostName, answer: Box<dyn FnOnce(Resolved) + Send>) {
        if self.questions.fetch_add(1, Ordering::Relaxed) >= MAX_QUESTIONS {
            self.questions.fetch_sub(1, Ordering::Relaxed);
            answer(Err(ResolveError::Failed));
            return;
        }
        let names = Arc::clone(self);
        self.runtime.spawn(async move {
            let found = names.lookup(&name).await;
            names.questions.fetch_sub(1, Ordering::Relaxed);
            answer(found.map(|found| found.addresses));
        });
    }
}

/// The port that drivers ask through.
#[derive(Debug)]
pub(crate) struct NamePort(pub(crate) Arc<Names>);

impl Resolver for NamePort {
    fn resolve(&self, name: HostName, answer: Box<dyn FnOnce(Resolved) + Send>) {
        self.0.spawn(name, answer);
    }
}

/// The addresses of an upstream, as they were found.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) target: Arc<str>,
    pub(crate) addresses: Vec<SocketAddr>,
}

/// Keeps asking for the addresses of an upstream, as often as their time-to-live says; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    name: (HostName, u16),
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    pub(crate) fn start(
        target: Arc<str>,
        name: HostName,
        port: u16,
        names: Arc<Names>,
        located: mpsc::Sender<Located>,
    ) -> Watch {
        let asked = (name.clone(), port);
        let task = tokio::spawn(async move {
            loop {
                let wait = match names.lookup(&name).await {
                    Ok(found) => {
                        let addresses: Vec<_> =
                            found.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
                        if located.send(Located { target: Arc::clone(&target), addresses }).await.is_err() {
                            return;
                        }
                        found.valid_until.saturating_duration_since(Instant::now().into_std())
                    }
                    // The last good addresses stay.
                    Err(error) => {
                        tracing::warn!(target_name = &*target, name = name.as_str(), %error, "name not resolved");
                        SOONEST
                    }
                };
                sleep(wait.clamp(SOONEST, LATEST)).await;
            }
        });
        Watch { name: asked, task }
    }

    /// Whether a new configuration asks for the very same.
    pub(crate) fn is_same(&self, name: &HostName, port: u16) -> bool {
        self.name.0 == *name && self.name.1 == port
    }
}

/// Asks for the addresses of upstreams that are names and not known yet, all at once.
pub(crate) async fn locate(config: &Config, names: &Arc<Names>, knowledge: &mut Knowledge) {
    let mut questions = tokio::task::JoinSet::new();
    for target in &config.targets {
        let TargetKind::Upstream(upstream) = &target.kind else { continue };
        let Endpoint::Name(host, port) = &upstream.endpoint else { continue };
        if !upstream.via.is_empty() || upstream.plugin.is_some() {
            continue;
        }
        let (names, host, port) = (Arc::clone(names), host.clone(), *port);
        let target = Arc::clone(&target.name);
        questions.spawn(async move {
            let found = names.lookup(&host).await.ok()?;
            let addresses = found.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
            Some(Located { target, addresses })
        });
    }
    let all = async {
        while let Some(answer) = questions.join_next().await {
            if let Ok(Some(located)) = answer {
                knowledge.addresses.insert(located.target, located.addresses);
            }
        }
    };
    // What comes too late is asked for again by the watches.
    let _ = timeout(FIRST_LOOKUP, all).await;
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let with_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    let connections = vec![with_port(ConnectionConfig::udp()), with_port(ConnectionConfig::tcp())];
    NameServerConfig::new(address.ip(), true, connections)
}

fn resolve_error(error: &NetError) -> ResolveError {
    if error.is_nx_domain() || error.is_no_records_found() {
        ResolveError::NotFound
    } else if matches!(error, NetError::Timeout) {
        ResolveError::TimedOut
    } else {
        ResolveError::Failed
    }
}
