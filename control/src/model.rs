//! A configuration that cannot be wrong: names are resolved to positions, cycles, open relays and impossible values
//! have been refused.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::access::Access;
use ringweir_flow::capacity::Room;
use ringweir_flow::health::Terms;
use ringweir_flow::outgoing::Outgoing;
use ringweir_flow::pace::{Rate, Rates};
use ringweir_flow::reach::Reach;
use ringweir_flow::rules::list::{Format, List};
use ringweir_flow::rules::{Action, Condition, Countries, Networks};
use ringweir_flow::snapshot::{Group, Hop, Protocol, Proxy, TargetIndex, Timeouts, Towards};
use ringweir_flow::users::Users;
use ringweir_flow::way::Splicing;
use ringweir_flow::wire::proxy_protocol::Version;
use ringweir_flow::wire::shadowsocks::Server;
use ringweir_flow::wire::{Destination, HostName};
use ringweir_socket::Listening;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use zeroize::Zeroizing;

pub use crate::rules::files::Stamp;

/// The most workers that may be configured.
pub const MAX_WORKERS: usize = 1024;

/// Everything that is configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// What runs the sessions.
    pub engine: Engine,
    /// The admin endpoint.
    pub admin: Admin,
    /// The log.
    pub log: Log,
    /// How long SIGTERM waits for running sessions.
    pub drain: Duration,
    /// Whether targets that fall silent all at once are not taken to be down: it is our own network then.
    pub excuse_outages: bool,
    /// The file that keeps the operator's selections, if there is one.
    pub state: Option<PathBuf>,
    /// The file that histograms are written to, if there is one.
    pub histograms: Option<HistogramFile>,
    /// How names are resolved.
    pub resolver: ResolverSettings,
    /// The listeners, as written.
    pub listeners: Vec<Listener>,
    /// What is decided before a session goes to the target of its listener, in this order.
    pub rules: Vec<Rule>,
    /// The lists that they go by.
    pub lists: Vec<ListFile>,
    /// By which they know countries.
    pub countries: Option<CountryFile>,
    /// The targets, as written; [`TargetIndex`] points here and at the same place in the snapshot.
    pub targets: Vec<Target>,
}

/// What runs the sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Engine {
    /// Which engine.
    pub kind: EngineKind,
    /// How many workers.
    pub workers: Workers,
    /// When streams go through pipes.
    pub splicing: Splicing,
    /// How many pipes there may be, 0 to [`MAX_PIPES`]; `None` for what the system's limits are good for.
    pub pipes: Option<usize>,
    /// How long the rings wait for packets by polling network devices before they sleep; `None` for not at all.
    pub busy_poll: Option<Duration>,
}

/// The most pipes that may be configured.
pub const MAX_PIPES: usize = 4096;

/// Which engine runs the sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring where it can be had, else tokio.
    #[default]
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// tokio.
    Tokio,
}

/// How many workers serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Workers {
    /// As many as this process may use cores.
    #[default]
    Auto,
    /// So many, 1 to [`MAX_WORKERS`].
    Count(usize),
}

impl Workers {
    /// How many that is on this machine.
    pub fn count(self) -> usize {
        match self {
            Workers::Count(count) => count,
            Workers::Auto => {
                std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS))
            }
        }
    }
}

/// The admin endpoint.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where the whole of it listens; `None` when it is switched off.
    pub listen: Option<BindAddress>,
    /// Where scrapers may read.
    pub metrics: Option<BindAddress>,
    /// What requests over TCP must bear.
    pub token: Option<Token>,
}

/// A secret that requests over TCP must bear. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<Zeroizing<String>>);

impl Token {
    /// Takes over a secret.
    pub fn new(secret: &str) -> Token {
        Token(Arc::new(Zeroizing::new(secret.to_owned())))
    }

    /// Whether `offered` is the secret; takes as long for a wrong one of equal length.
    pub fn verify(&self, offered: &[u8]) -> bool {
        bool::from(subtle::ConstantTimeEq::ct_eq(self.0.as_bytes(), offered))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important lines that are still written.
    pub level: Level,
    /// How they look.
    pub format: LogFormat,
    /// Whether each finished session gets one.
    pub sessions: bool,
}

/// The file that histograms are written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramFile {
    /// Where it is.
    pub path: PathBuf,
    /// How often an interval is written, beside those that are asked for.
    pub interval: Option<Duration>,
}

/// How important a line of the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Something does not work.
    Error,
    /// Something may soon not work.
    Warn,
    /// What an operator wants to know.
    #[default]
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// How lines of the log look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How names are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverSettings {
    /// The name servers; empty for those of the system.
    pub servers: Vec<SocketAddr>,
    /// How long one question may take in all.
    pub timeout: Duration,
}

/// Where clients connect.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name.
    pub name: Arc<str>,
    /// Its addresses, at least one.
    pub binds: Vec<BindAddress>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where its sessions are dispatched.
    pub target: TargetIndex,
    /// Who may use it, where the protocol can ask.
    pub users: Option<Arc<Users>>,
    /// Where its clients may come from; `None` for anywhere.
    pub access: Option<Arc<Access>>,
    /// Who the server is that `shadowsocks` speaks for; there alone.
    pub shadowsocks: Option<Arc<Server>>,
    /// Sessions at once, in all and of one source.
    pub max_sessions: (Option<u64>, Option<u32>),
    /// New sessions a second, in all and of one source.
    pub max_new: (Option<Rate>, Option<Rate>),
    /// Bytes a second, in all and of one source.
    pub rates: (Rates, Rates),
    /// The networks of the proxies in front that say who the client is, if there are to be such.
    pub trusted: Option<Arc<Networks>>,
    /// How long is waited for what clients say first, where that is looked at.
    pub peek: Option<Duration>,
    /// What `direct` may dial for its clients.
    pub reach: Reach,
    /// Its timeouts.
    pub timeouts: Timeouts,
    /// What is special about its sockets.
    pub socket: Listening,
    /// The plugin in front of it, and where that listens; its own address is one of this machine then.
    pub plugin: Option<(Plugin, SocketAddr)>,
}

/// A program that Shadowsocks goes through besides (SIP003).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// The upstream or listener that names it.
    pub owner: Arc<str>,
    /// What is run, without a shell.
    pub program: String,
    /// What it is told.
    pub options: Option<String>,
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name.
    pub name: Arc<str>,
    /// What must hold, all of it.
    pub conditions: Vec<Condition>,
    /// What becomes of the session then.
    pub action: Action,
}

/// A list that rules go by.
#[derive(Clone, Debug)]
pub struct ListFile {
    /// Its name.
    pub name: Arc<str>,
    /// Where it is.
    pub path: PathBuf,
    /// How it is written.
    pub format: Format,
    /// Of the file as it was when it was read.
    pub stamp: Option<Stamp>,
    /// What it said then.
    pub content: Arc<List>,
}

/// A table of countries that rules go by.
#[derive(Clone, Debug)]
pub struct CountryFile {
    /// Where it is.
    pub path: PathBuf,
    /// Of the file as it was when it was read.
    pub stamp: Option<Stamp>,
    /// What it said then.
    pub content: Arc<Countries>,
}

/// Where a listener is bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BindAddress {
    /// One address; IPv6 ones take no IPv4 clients.
    Tcp(SocketAddr),
    /// Every address of both families, written `:port`.
    DualStack(u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl BindAddress {
    /// Whether only this machine can connect there.
    pub fn is_local(&self) -> bool {
        match self {
            BindAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
            BindAddress::DualStack(_) => false,
            BindAddress::Unix(_) => true,
        }
    }

    /// The port, where there is one.
    pub fn port(&self) -> Option<u16> {
        match self {
            BindAddress::Tcp(address) => Some(address.port()),
            BindAddress::DualStack(port) => Some(*port),
            BindAddress::Unix(_) => None,
        }
    }

    /// Whether clients of one would sometimes be served by the other. Port 0 is a new port each time.
    pub fn collides_with(&self, other: &BindAddress) -> bool {
        match (self, other) {
            (BindAddress::Unix(a), BindAddress::Unix(b)) => a == b,
            (BindAddress::Unix(_), BindAddress::Tcp(_) | BindAddress::DualStack(_))
            | (BindAddress::Tcp(_) | BindAddress::DualStack(_), BindAddress::Unix(_)) => false,
            (BindAddress::Tcp(a), BindAddress::Tcp(b)) => a == b && a.port() != 0,
            (BindAddress::DualStack(a), BindAddress::DualStack(b)) => a == b && *a != 0,
            (BindAddress::Tcp(one), BindAddress::DualStack(port))
            | (BindAddress::DualStack(port), BindAddress::Tcp(one)) => {
                one.ip().is_unspecified() && one.port() == *port && *port != 0
            }
        }
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindAddress::Tcp(address) => address.fmt(f),
            BindAddress::DualStack(port) => write!(f, ":{port}"),
            BindAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Anything that sessions may be dispatched to.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name.
    pub name: Arc<str>,
    /// Upstream or group.
    pub kind: TargetKind,
    /// What is configured of its health beside its check.
    pub health: HealthSettings,
}

/// What is configured of a target's health beside its check.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HealthSettings {
    /// When what real sessions meet at an upstream ejects it; `None` for never.
    pub passive: Option<Terms>,
    /// Of a group: the share of its members that may be ejected at once.
    pub max_ejected: f64,
    /// Of a group: how long a member that returns takes until it has its whole share.
    pub slow_start: Option<Duration>,
    /// Of a group: how many members serve; the others are the reserve.
    pub active: Option<usize>,
    /// Whether it is neither picked nor probed, unless the operator says otherwise.
    pub disabled: bool,
    /// Of a failover that goes by latency: how much quicker a member must be to overtake another.
    pub tolerance: Option<Duration>,
}

/// Upstream or group.
#[derive(Clone, Debug)]
pub enum TargetKind {
    /// A way to reach an endpoint.
    Upstream(Upstream),
    /// A policy over targets.
    Group(Group),
}

/// A way to reach an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where it leads.
    pub endpoint: Endpoint,
    /// What is spoken there, if it is a proxy that leads on to where the client wants to go.
    pub proxy: Option<Proxy>,
    /// The proxies on the way there, the one that is connected to first.
    pub via: Vec<Via>,
    /// How its health is found out, if at all.
    pub check: Option<Arc<Check>>,
    /// What is special about the connections to it, if anything is.
    pub outgoing: Option<Arc<Outgoing>>,
    /// Whether, and how, its endpoint is told whose each connection is.
    pub send_proxy: Option<Version>,
    /// How many sessions it bears, if there is a bound.
    pub room: Option<Room>,
    /// The plugin that the connection goes to in place of where it leads, be it of the first proxy on the way.
    pub plugin: Option<Plugin>,
}

impl Upstream {
    /// A plain way there.
    pub fn to(endpoint: Endpoint) -> Upstream {
        let (proxy, check, outgoing, send_proxy, room, plugin) = (None, None, None, None, None, None);
        Upstream { endpoint, proxy, via: Vec::new(), check, outgoing, send_proxy, room, plugin }
    }

    /// The same way, with its first connection to another address.
    pub(crate) fn dialled_at(&self, address: SocketAddr) -> Upstream {
        let mut upstream = self.clone();
        let first = upstream.via.first_mut().map_or(&mut upstream.endpoint, |via| &mut via.endpoint);
        *first = Endpoint::Address(address);
        upstream
    }

    /// Whether a client must have said where it wants to go.
    pub fn needs_destination(&self) -> bool {
        self.endpoint == Endpoint::Direct || self.proxy.is_some()
    }

    /// What each proxy on the way is asked for.
    pub fn hops(&self) -> Vec<Hop> {
        let fixed = self
            .via
            .iter()
            .map(|via| &via.proxy)
            .zip(self.via.iter().skip(1).map(|via| &via.endpoint).chain([&self.endpoint]));
        let hop = |proxy: &Proxy, towards| Hop { proxy: proxy.clone(), towards };
        let fixed = fixed.filter_map(|(proxy, next)| Some(hop(proxy, Towards::Fixed(next.destination()?))));
        fixed.chain(self.proxy.iter().map(|proxy| hop(proxy, Towards::Client))).collect()
    }
}

/// A proxy on the way to another upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// The name of the upstream that it is.
    pub name: Arc<str>,
    /// Where it is.
    pub endpoint: Endpoint,
    /// What it speaks.
    pub proxy: Proxy,
}

/// Where an upstream leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// An address.
    Address(SocketAddr),
    /// A name and a port.
    Name(HostName, u16),
    /// A Unix socket.
    Unix(Arc<Path>),
    /// Wherever the client wants to go.
    Direct,
    /// Nowhere.
    Reject,
}

impl Endpoint {
    /// As a proxy is asked for it; `None` for what no proxy can reach.
    pub fn destination(&self) -> Option<Destination> {
        match self {
            Endpoint::Address(address) => Some(Destination::Address(*address)),
            Endpoint::Name(host, port) => Some(Destination::Name(host.clone(), *port)),
            Endpoint::Unix(_) | Endpoint::Direct | Endpoint::Reject => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Address(address) => address.fmt(f),
            Endpoint::Name(host, port) => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Direct => f.write_str("direct"),
            Endpoint::Reject => f.write_str("reject"),
        }
    }
}

/// An active health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name.
    pub name: Arc<str>,
    /// The waits between probes, at least one; the last repeats.
    pub schedule: Vec<Duration>,
    /// How long one probe may take.
    pub timeout: Duration,
    /// After how many failures in a row the target is down.
    pub fall: u32,
    /// After how many successes in a row the target is up.
    pub rise: u32,
    /// Whether a failure counts only when the probe is repeated at once and fails again.
    pub double_check: bool,
    /// What a probe does.
    pub kind: CheckKind,
}

impl Check {
    /// A connect, as targets without a check are probed when somebody asks.
    pub fn connect() -> Check {
        Check {
            name: "connect".into(),
            schedule: vec![Duration::from_secs(60)],
            timeout: Duration::from_secs(3),
            fall: 1,
            rise: 1,
            double_check: false,
            kind: CheckKind::Tcp,
        }
    }
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// Connects and closes.
    Tcp,
    /// Asks a question in HTTP/1.1.
    Http(HttpCheck),
    /// Says something and waits for an answer.
    Talk(TalkCheck),
    /// Runs a program.
    Exec(ExecCheck),
}

/// A question in HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// What proxies are asked for, and `direct` dials.
    pub destination: Destination,
    /// The `Host` field.
    pub authority: String,
    /// The path with its query.
    pub path: String,
    /// The method.
    pub method: String,
    /// The statuses of a target that is well.
    pub expect: Vec<RangeInclusive<u16>>,
    /// Whether and how it is encrypted.
    pub tls: Option<Trust>,
}

/// Whom TLS trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Whom the certificate must be for.
    pub server_name: ServerName<'static>,
    /// The certificates that may have signed it; empty for those that Mozilla trusts.
    pub roots: Arc<[CertificateDer<'static>]>,
}

/// Bytes and the answer to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TalkCheck {
    /// What is said; may be nothing.
    pub send: Vec<u8>,
    /// What the answer must have in it; nothing for any answer.
    pub expect: Vec<u8>,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecCheck {
    /// What is run, without a shell.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_collide_with_the_dual_stack_bind_of_the_same_port() {
        let dual = BindAddress::DualStack(80);
        let tcp = |text: &str| BindAddress::Tcp(text.parse().unwrap());
        assert!(dual.collides_with(&tcp("0.0.0.0:80")) && tcp("[::]:80").collides_with(&dual));
        assert!(!dual.collides_with(&tcp("127.0.0.1:80")) && !dual.collides_with(&tcp("0.0.0.0:81")));
        assert!(!tcp("127.0.0.1:0").collides_with(&tcp("127.0.0.1:0")));
    }

    #[test]
    fn a_token_shows_nothing_of_itself() {
        let token = Token::new("secret");
        assert!(token.verify(b"secret") && !token.verify(b"secreT") && !token.verify(b""));
        assert_eq!(format!("{token:?}"), "Token(..)");
    }
}
