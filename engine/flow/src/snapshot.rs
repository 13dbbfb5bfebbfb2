//! The snapshot: listeners, targets and their health at one moment. Immutable; control builds it, publishes it
//! whole, and never touches it again. Workers read it without a lock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::access::{Access, Gate};
use crate::account::{ListenerCounters, TargetCounters, UserCounters};
use crate::affinity::Affinity;
use crate::capacity::Capacity;
use crate::health::{Trial, Watch};
use crate::limits::Limits;
use crate::outgoing::{Keepalive, Outgoing};
use crate::pick::{HashKey, Maglev};
use crate::reach::Reach;
use crate::retire::OnDown;
use crate::rules::{Networks, Rules};
use crate::users::Users;
use crate::way::Splicing;
use crate::wire::client::Credentials;
use crate::wire::proxy_protocol::Version;
use crate::wire::{Destination, shadowsocks};

/// How deep groups may nest. A deeper configuration is a mistake, and a session's path stays small.
pub const MAX_NESTING: usize = 8;

/// Everything a worker needs to serve, at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Grows by one with every snapshot.
    pub generation: u64,
    /// The sockets that are open, and which listener each belongs to.
    pub binds: Vec<Bind>,
    /// The listeners; [`ListenerIndex`] points here.
    pub listeners: Vec<Listener>,
    /// Upstreams and groups; [`TargetIndex`] points here.
    pub targets: Vec<Target>,
    /// What is decided before a session goes to the target of its listener, if anything is.
    pub rules: Option<Arc<Rules>>,
    /// Whether each finished session gets a line in the log.
    pub log_sessions: bool,
    /// Whether streams may go through pipes.
    pub splicing: Splicing,
}

impl Snapshot {
    /// The first snapshot of these listeners and targets: no bind is open, no rules, no lines in the log.
    pub fn new(listeners: Vec<Listener>, targets: Vec<Target>) -> Snapshot {
        Snapshot {
            generation: 1,
            binds: Vec::new(),
            listeners,
            targets,
            rules: None,
            log_sessions: false,
            splicing: Splicing::default(),
        }
    }

    /// A target by its index.
    pub fn target(&self, index: TargetIndex) -> &Target {
        &self.targets[index.0 as usize]
    }

    /// A listener by its index.
    pub fn listener(&self, index: ListenerIndex) -> &Listener {
        &self.listeners[index.0 as usize]
    }
}

/// A worker's number, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerIndex(pub usize);

/// A position in [`Snapshot::targets`]; means nothing in another snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetIndex(pub u32);

/// A position in [`Snapshot::listeners`]; means nothing in another snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerIndex(pub u32);

/// Names one bound address for as long as it stays open, across snapshots; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BindId(pub u64);

/// One bound address and the listener it belongs to in this snapshot.
#[derive(Clone, Debug)]
pub struct Bind {
    /// The identity of the open sockets.
    pub id: BindId,
    /// Which listener serves what arrives there.
    pub listener: ListenerIndex,
    /// Where it is bound, as written in logs.
    pub address: Arc<str>,
}

/// Where clients connect.
#[derive(Debug)]
pub struct Listener {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where its sessions are dispatched.
    pub target: TargetIndex,
    /// How many sessions it bears; `None` for as many as there is room for.
    pub limits: Option<Limits>,
    /// The ports that it is bound to.
    pub ports: Box<[u16]>,
    /// The users that `socks5`, `http` and `mixed` ask for; `None` asks for none.
    pub users: Option<Arc<Users>>,
    /// Where clients may come from; `None` for anywhere.
    pub access: Option<Arc<Access>>,
    /// Through which the log is told of clients that are refused; of the listener's name, across snapshots.
    pub gate: Arc<Gate>,
    /// Who the server is that [`Protocol::Shadowsocks`] speaks for; there alone.
    pub shadowsocks: Option<Arc<shadowsocks::Server>>,
    /// The networks of the proxies in front, each of whose connections begins with a PROXY header that says who the
    /// client is; nobody else may connect, but on a Unix socket. `None` where there are no such proxies.
    pub trusted: Option<Arc<Networks>>,
    /// How long a client of `tcp` may take to say what it is about before a target is picked for it; `None` where
    /// nobody wants to know.
    pub peek: Option<Duration>,
    /// Which destinations `direct` may dial for clients of this listener.
    pub reach: Reach,
    /// Its timeouts.
    pub timeouts: Timeouts,
    /// How clients that have vanished are noticed. For systems whose accepted sockets do not inherit it from the
    /// listening one, on which control sets it.
    pub keepalive: Option<Keepalive>,
    /// Its counters, kept across snapshots.
    pub counters: Arc<ListenerCounters>,
    /// Those of its users, by name; kept likewise.
    pub user_counters: HashMap<Arc<str>, Arc<UserCounters>>,
}

impl Listener {
    /// A listener that asks nothing of its clients and lets them go anywhere, without bounds, with the usual timeouts.
    pub fn new(
        name: impl Into<Arc<str>>,
        protocol: Protocol,
        target: TargetIndex,
        counters: Arc<ListenerCounters>,
    ) -> Listener {
        Listener {
            name: name.into(),
            protocol,
            target,
            limits: None,
            ports: [].into(),
            users: None,
            access: None,
            gate: Arc::default(),
            shadowsocks: None,
            trusted: None,
            peek: None,
            reach: Reach::Anywhere,
            timeouts: Timeouts::default(),
            keepalive: None,
            counters,
            user_counters: HashMap::new(),
        }
    }
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Nothing: every byte is payload.
    Tcp,
    /// Nothing: the system has redirected the connection here (netfilter's REDIRECT or DNAT), and knows where it was going.
    Redirect,
    /// Nothing: the system has given us a connection to somebody else (netfilter's TPROXY); the socket is bound to where
    /// it was going.
    Tproxy,
    /// SOCKS version 5 (RFC 1928), CONNECT.
    Socks5,
    /// HTTP proxy: CONNECT and absolute-form requests (RFC 9110, RFC 9112).
    Http,
    /// SOCKS 4, 4a or 5; the first byte decides.
    Socks,
    /// SOCKS 4, 4a or 5, or HTTP; the first byte decides.
    Mixed,
    /// Shadowsocks, SIP004 or SIP022.
    Shadowsocks,
}

/// How long a session may take for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept to a complete request.
    pub handshake: Duration,
    /// For each attempt to reach an upstream.
    pub connect: Duration,
    /// Without a byte in either direction.
    pub idle: Duration,
    /// Without a byte after one side has ended its stream.
    pub half_close: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(3600),
            half_close: Duration::from_secs(120),
        }
    }
}

/// What a session may hope for at a target that is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// To be served at once.
    Place,
    /// To wait for a place, with others.
    Line,
    /// Nothing, unless somebody leaves in the meantime.
    Refusal,
}

/// Anything a session may be dispatched to.
#[derive(Debug)]
pub struct Target {
    /// Its name: one namespace for upstreams and groups.
    pub name: Arc<str>,
    /// Upstream or group.
    pub kind: TargetKind,
    /// Whether it may be picked. A group's health follows from its members.
    pub health: Health,
    /// What is special about the connections to an upstream, if anything is.
    pub outgoing: Option<Arc<Outgoing>>,
    /// Whether, and how, an upstream's endpoint is told whose each connection is, ahead of everything else.
    pub send_proxy: Option<Version>,
    /// How what real sessions meet there is watched, if it is.
    pub watch: Option<Arc<Watch>>,
    /// The trial of [`Health::Trial`].
    pub trial: Option<Arc<Trial>>,
    /// How many sessions an upstream bears, if there is a bound.
    pub capacity: Option<Arc<Capacity>>,
    /// Its counters, kept across snapshots.
    pub counters: Arc<TargetCounters>,
}

impl Target {
    /// A target of which nothing is known, nothing is special and nothing is watched.
    pub fn new(name: impl Into<Arc<str>>, kind: TargetKind, counters: Arc<TargetCounters>) -> Target {
        Target {
            name: name.into(),
            kind,
            health: Health::Unknown,
            outgoing: None,
            send_proxy: None,
            watch: None,
            trial: None,
            capacity: None,
            counters,
        }
    }

    /// Whether new sessions may go there; one on trial takes only the first, which [`Target::admit`] tells.
    pub fn is_available(&self) -> bool {
        self.health.is_available() && self.trial.as_ref().is_none_or(|trial| trial.is_open())
    }

    /// What a session that has a place at `held` may hope for here. Of groups nothing is known before they are asked.
    pub fn prospect(&self, held: Option<&Arc<Capacity>>) -> Prospect {
        match &self.capacity {
            None => Prospect::Place,
            Some(capacity) if !capacity.is_full() => Prospect::Place,
            Some(capacity) if held.is_some_and(|held| Arc::ptr_eq(held, capacity)) => Prospect::Place,
            Some(capacity) if capacity.has_queue() => Prospect::Line,
            Some(_) => Prospect::Refusal,
        }
    }

    /// Whether a session for which nobody else is left may go there: it is out for what other sessions met, which is no
    /// more than a guess about this one.
    pub fn is_last_resort(&self) -> bool {
        match self.health {
            Health::Ejected | Health::Trial => true,
            Health::Unknown | Health::Up | Health::Down | Health::Draining | Health::Disabled => false,
        }
    }

    /// Takes the one place of a target that is on trial. To be called once for a target that was picked.
    pub fn admit(&self) -> bool {
        self.trial.as_ref().is_none_or(|trial| trial.take())
    }
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
#[derive(Clone, Debug)]
pub enum Upstream {
    /// A fixed host and port. The addresses are resolved by control, best first; none while the name has none.
    Tcp(Arc<[SocketAddr]>),
    /// A Unix socket in the file system.
    Unix(Arc<Path>),
    /// Dials what the client asked for.
    Direct,
    /// Refuses every session.
    Reject,
    /// Through one proxy or several.
    Proxied(Arc<Route>),
}

/// A way over proxies.
#[derive(Clone, Debug)]
pub struct Route {
    /// The first proxy, which is connected to.
    pub first: FirstHop,
    /// What each proxy is asked for, from the first one on; at least one.
    pub hops: Box<[Hop]>,
}

/// Where a way over proxies begins.
#[derive(Clone, Debug)]
pub enum FirstHop {
    /// As [`Upstream::Tcp`].
    Tcp(Arc<[SocketAddr]>),
    /// As [`Upstream::Unix`].
    Unix(Arc<Path>),
}

/// A proxy, and what it is asked for.
#[derive(Clone, Debug)]
pub struct Hop {
    /// What it speaks, and who we are to it.
    pub proxy: Proxy,
    /// Where it is to lead.
    pub towards: Towards,
}

impl Hop {
    /// Where it is to lead a client that has `asked` for something; `None` where that is not known.
    pub fn destination<'a>(&'a self, asked: Option<&'a Destination>) -> Option<&'a Destination> {
        match &self.towards {
            Towards::Client => asked,
            Towards::Fixed(destination) => Some(destination),
        }
    }
}

/// A proxy as we speak to it, and what it is told of who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// SOCKS version 5 (RFC 1928).
    Socks5(Option<Arc<Credentials>>),
    /// HTTP/1.1 CONNECT (RFC 9110, section 9.3.6).
    Http(Option<Arc<Credentials>>),
    /// Shadowsocks, SIP004 or SIP022. No more than one on a way.
    Shadowsocks(Arc<shadowsocks::Client>),
}

impl Proxy {
    /// The word used in configurations.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Proxy::Socks5(_) => "socks5",
            Proxy::Http(_) => "http",
            Proxy::Shadowsocks(_) => "shadowsocks",
        }
    }
}

/// Where a proxy is to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Towards {
    /// Where the client wants to go.
    Client,
    /// To the next proxy, or to the endpoint of the upstream.
    Fixed(Destination),
}

/// A policy over targets.
#[derive(Clone, Debug)]
pub struct Group {
    /// How a member is picked.
    pub policy: Policy,
    /// The members, as written.
    pub members: Arc<[Member]>,
    /// How many members one session may try, at least 1.
    pub attempts: u32,
    /// How long one member may take until it has won; a member that is a group gets this for all its own tries.
    pub attempt_timeout: Duration,
    /// What makes an attempt win; `None` for what the upstream's kind can tell. Of several groups that an attempt goes
    /// through, the strictest decides.
    pub commit: Option<Commit>,
    /// Whom which member served before, where that matters.
    pub affinity: Option<Arc<Affinity>>,
    /// The table of [`Policy::Hash`].
    pub maglev: Option<Arc<Maglev>>,
    /// What becomes of the sessions of a member that goes.
    pub on_down: OnDown,
    /// The position of the member of [`Policy::Select`].
    pub selected: u32,
    pub(crate) evenness: Evenness,
}

/// What picks want to know of the weights of all members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evenness {
    /// All have the same.
    Even,
    /// The heaviest has this.
    Uneven(u32),
}

impl Group {
    /// A group that makes nothing special of an attempt's winning, and remembers nobody.
    pub fn new(policy: Policy, members: Arc<[Member]>, attempts: u32, attempt_timeout: Duration) -> Group {
        let weights = || members.iter().map(|member| member.weight);
        let evenness = match (weights().min(), weights().max()) {
            (Some(least), Some(most)) if least != most => Evenness::Uneven(most),
            (Some(_) | None, _) => Evenness::Even,
        };
        Group {
            policy,
            members,
            attempts,
            attempt_timeout,
            commit: None,
            affinity: None,
            maglev: None,
            on_down: OnDown::Keep,
            selected: 0,
            evenness,
        }
    }

    /// The same group where its members have other weights or roles, or another order. A policy with a table knows
    /// members by their positions, and needs the same order.
    #[must_use]
    pub fn with_members(&self, members: Arc<[Member]>) -> Group {
        let Group { policy, attempts, attempt_timeout, commit, on_down, .. } = *self;
        let (affinity, maglev) = (self.affinity.clone(), self.maglev.clone());
        Group { commit, affinity, maglev, on_down, ..Group::new(policy, members, attempts, attempt_timeout) }
    }

    /// Whether picks go by what the client asked for.
    pub fn needs_destination(&self) -> bool {
        self.policy == Policy::Hash(HashKey::Destination)
            || self.affinity.as_ref().is_some_and(|table| table.settings().key == HashKey::Destination)
    }

    /// Whether picks go by what a client says first.
    pub fn needs_peek(&self) -> bool {
        let by_policy = matches!(self.policy, Policy::Hash(key) if key.is_peeked());
        by_policy || self.affinity.as_ref().is_some_and(|table| table.settings().key.is_peeked())
    }

    /// How many members are tried at a time.
    pub fn parallel(&self) -> u32 {
        if let Policy::Race { parallel, .. } = self.policy { parallel } else { 1 }
    }

    /// How long after one member the next is begun beside it.
    pub fn stagger(&self) -> Duration {
        if let Policy::Race { stagger, .. } = self.policy { stagger } else { Duration::ZERO }
    }
}

/// What makes an attempt win, after which no other member is tried. Later ones are stricter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Commit {
    /// The connection is open.
    Connect,
    /// The proxy has said yes; where there is none, as [`Commit::Connect`].
    Handshake,
    /// The destination has sent something. Until then what the client says, up to
    /// [`MAX_EARLY_BYTES`](crate::session::MAX_EARLY_BYTES), is said to each attempt: requests may arrive twice.
    FirstByte,
}

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The target.
    pub target: TargetIndex,
    /// Its share, 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// When it is picked.
    pub role: Role,
}

impl Member {
    /// A member that the policy picks.
    pub const fn primary(target: TargetIndex, weight: u32) -> Member {
        Member { target, weight, role: Role::Primary }
    }
}

/// When a member is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// By the policy.
    #[default]
    Primary,
    /// By the policy among its like, when no primary may be picked.
    Backup,
}

/// The largest weight; keeps products with session counts far from overflow.
pub const MAX_WEIGHT: u32 = 65_535;

/// How a group picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Smooth weighted round-robin, as nginx's: a member's picks are spread evenly over the cycle.
    RoundRobin,
    /// A weighted draw.
    Random,
    /// Fewest active sessions per weight, summed over workers; ties at random. Of many members, the better of two.
    LeastConnections,
    /// The better of two by the time that attempts took to win there of late, times the sessions that are there.
    LeastLatency,
    /// The same member for the same key, as long as it may be picked.
    Hash(HashKey),
    /// The first member that is up, as written.
    Failover,
    /// The one that the operator selected, and no other.
    Select,
    /// Several members at once, as written; the first to win serves.
    Race {
        /// How long after one member the next is begun beside it; a member that fails has its place taken at once.
        stagger: Duration,
        /// How many are under way at a time, at least 1.
        parallel: u32,
    },
}

impl Policy {
    /// Whether the weights of members mean anything to it.
    pub const fn is_weighted(self) -> bool {
        match self {
            Policy::RoundRobin | Policy::Random | Policy::LeastConnections | Policy::LeastLatency => true,
            // A hash that followed weights as they grow would move keys at every step.
            Policy::Hash(_) | Policy::Failover | Policy::Select | Policy::Race { .. } => false,
        }
    }
}

/// Whether a target may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// No check has spoken yet, or there is none: picked.
    Unknown,
    /// Picked.
    Up,
    /// Not picked.
    Down,
    /// Not picked at the operator's word; running sessions go on.
    Draining,
    /// Neither picked nor probed, at the operator's word.
    Disabled,
    /// Not picked for a time, for what real sessions met there.
    Ejected,
    /// Picked by one session, which shows whether it is sound again.
    Trial,
}

impl Health {
    /// Whether new sessions may go there.
    pub const fn is_available(self) -> bool {
        match self {
            Health::Unknown | Health::Up | Health::Trial => true,
            Health::Down | Health::Draining | Health::Disabled | Health::Ejected => false,
        }
    }

    /// The word used in status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Up => "up",
            Health::Down => "down",
            Health::Draining => "draining",
            Health::Disabled => "disabled",
            Health::Ejected => "ejected",
            Health::Trial => "trial",
        }
    }
}
