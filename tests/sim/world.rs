//! The world that sessions live in: targets, groups, health, names, and peers that behave as they please.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::access::Access;
use ringweir_flow::account::{Counter, ListenerCounters, TargetCounters};
use ringweir_flow::close::ConnectError;
use ringweir_flow::dial::UpstreamAddr;
use ringweir_flow::limits::Limits;
use ringweir_flow::pace::{Rate, Rates};
use ringweir_flow::reach::Reach;
use ringweir_flow::resolve::{ResolveError, Resolved};
use ringweir_flow::retire::Retirement;
use ringweir_flow::rules::RuleCounters;
use ringweir_flow::snapshot::{
    Group, Health, Listener, Member, Policy, Protocol, Role, Snapshot, Target, TargetIndex, TargetKind,
    Timeouts, Upstream, WorkerIndex,
};
use ringweir_flow::users::Users;
use ringweir_flow::verify::{Question, Verdict};
use ringweir_flow::way::Splicing;

use crate::peer::{Conn, MAX_PAYLOAD_BYTES, Manner, Out, pattern};
use crate::rules::{self, Said};

/// Addresses that outsiders may dial, and some that they may not.
const OPEN: [&str; 5] = ["192.0.2.7", "198.51.100.9", "2001:db8::5", "203.0.113.1", "2001:db8::6"];
const LOCAL: [&str; 5] = ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"];

/// How deep groups nest here; the configuration allows eight.
const MAX_DEPTH: u32 = 3;

pub(crate) struct World {
    pub(crate) kinds: Vec<TargetKind>,
    pub(crate) root: TargetIndex,
    pub(crate) protocol: Protocol,
    pub(crate) has_users: bool,
    /// One by his password, or by a hash of it; the same in every snapshot, and so is what is known of them.
    users: Arc<Users>,
    pub(crate) is_guarded: bool,
    /// Refuses whoever comes from outside, where it is there.
    pub(crate) access: Option<Access>,
    pub(crate) timeouts: Timeouts,
    pub(crate) target_counters: Vec<Arc<TargetCounters>>,
    pub(crate) listener_counters: Arc<ListenerCounters>,
    /// Bounds each piece that moves, so that a schedule of single bytes has few of them.
    pub(crate) grain: usize,
    splicing: Splicing,
    pub(crate) limits: Option<Limits>,
    pub(crate) rules: Vec<Said>,
    pub(crate) rule_counters: Arc<RuleCounters>,
}

impl World {
    pub(crate) fn new(rng: &mut fastrand::Rng) -> World {
        let protocol = match rng.u8(..5) {
            0 => Protocol::Tcp,
            1 => Protocol::Socks5,
            2 => Protocol::Http,
            3 if rng.bool() => Protocol::Socks,
            _ if rng.bool() => Protocol::Mixed,
            _ => Protocol::Tcp,
        };
        let mut kinds = Vec::new();
        let root = add_target(&mut kinds, protocol, 0, rng);
        World {
            root,
            protocol,
            has_users: protocol != Protocol::Tcp && rng.u8(..3) == 0,
            users: Arc::new(users(rng)),
            is_guarded: rng.bool(),
            access: (rng.u8(..8) == 0).then(|| access(rng)),
            timeouts: Timeouts {
                handshake: span(rng, 500, 8_000),
                connect: span(rng, 300, 8_000),
                idle: span(rng, 1_000, 60_000),
                half_close: span(rng, 500, 20_000),
            },
            target_counters: kinds.iter().map(|_| Arc::new(TargetCounters::new(1))).collect(),
            rules: rules::draw(kinds.len(), rng),
            rule_counters: Arc::new(RuleCounters::new(1)),
            kinds,
            listener_counters: Arc::new(ListenerCounters::new(1)),
            grain: [1, 40, 700, 20_000][rng.usize(..4)],
            limits: (rng.u8(..16) == 0).then(|| limits(rng)),
            splicing: [1, 2, 100, 5_000]
                .map(Splicing::From)
                .into_iter()
                .nth(rng.usize(..5))
                .unwrap_or(Splicing::Off),
        }
    }

    /// Whether the bytes of sessions are bounded.
    pub(crate) fn is_paced(&self) -> bool {
        self.limits
            .as_ref()
            .is_some_and(|limits| !limits.rates.is_unlimited() || !limits.source_rates.is_unlimited())
    }

    /// A snapshot with health drawn anew; counters stay.
    pub(crate) fn snapshot(&self, generation: u64, rng: &mut fastrand::Rng) -> Arc<Snapshot> {
        let bad = rng.u8(..4) * 15;
        let mut healths: Vec<Health> = Vec::new();
        for kind in &self.kinds {
            let health = match kind {
                TargetKind::Upstream(_) => match rng.u8(..100) {
                    draw if draw < bad => [Health::Down, Health::Draining][usize::from(draw & 1)],
                    draw if draw < 60 => Health::Unknown,
                    _ => Health::Up,
                },
                TargetKind::Group(_) if rng.u8(..40) == 0 => Health::Draining,
                TargetKind::Group(group) => {
                    // Members stand before their groups.
                    let is_up = |member: &Member| healths[member.target.0 as usize].is_available();
                    if group.members.iter().any(is_up) { Health::Up } else { Health::Down }
                }
            };
            healths.push(health);
        }
        let targets = self.kinds.iter().zip(healths).zip(&self.target_counters).enumerate();
        let targets = targets.map(|(index, ((kind, health), counters))| Target {
            health,
            ..Target::new(index.to_string(), kind.clone(), Arc::clone(counters))
        });
        Arc::new(Snapshot {
            generation,
            rules: rules::build(&self.rules, &self.rule_counters),
            log_sessions: true,
            splicing: self.splicing,
            ..Snapshot::new(vec![self.listener()], targets.collect())
        })
    }

    fn listener(&self) -> Listener {
        Listener {
            limits: self.limits.clone(),
            users: self.has_users.then(|| Arc::clone(&self.users)),
            access: self.access.clone().map(Arc::new),
            reach: if self.is_guarded { Reach::NotLocal { allowed: [].into() } } else { Reach::Anywhere },
            timeouts: self.timeouts,
            ..Listener::new("listener", self.protocol, self.root, Arc::clone(&self.listener_counters))
        }
    }

    /// Switches to pipes, switches to buffers, refusals.
    pub(crate) fn count_ways(&self) -> [u64; 3] {
        let ways = &self.listener_counters.cell(WorkerIndex(0)).ways;
        let refused = ways.refused.iter().map(Counter::get).sum();
        [ways.to_pipe.get(), ways.to_buffer.get(), refused]
    }

    /// How many upstreams one session may try at most, by the groups' budgets.
    pub(crate) fn budget(&self, target: TargetIndex) -> u32 {
        match &self.kinds[target.0 as usize] {
            TargetKind::Upstream(_) => 1,
            TargetKind::Group(group) => {
                let mut budgets: Vec<u32> =
                    group.members.iter().map(|member| self.budget(member.target)).collect();
                budgets.sort_unstable_by(|a, b| b.cmp(a));
                budgets.iter().take(group.attempts as usize).sum()
            }
        }
    }

    /// A member of a group that may go, and the order to follow it.
    pub(crate) fn draw_retirement(&self, rng: &mut fastrand::Rng) -> Option<(TargetIndex, Arc<Retirement>)> {
        let index = rng.usize(..self.kinds.len());
        let TargetKind::Group(group) = &self.kinds[index] else { return None };
        let member = group.members[rng.usize(..group.members.len())].target;
        let over = if rng.bool() { Duration::ZERO } else { span(rng, 0, 3_000) };
        let counters = [index, member.0 as usize].map(|at| Arc::clone(&self.target_counters[at]));
        let [group, counters] = counters;
        Some((member, Arc::new(Retirement::new(group, counters, over))))
    }

    /// Whether an upstream may be reached by way of a target.
    pub(crate) fn leads_to(&self, from: TargetIndex, upstream: TargetIndex) -> bool {
        match &self.kinds[from.0 as usize] {
            TargetKind::Upstream(_) => from == upstream,
            TargetKind::Group(group) => {
                group.members.iter().any(|member| self.leads_to(member.target, upstream))
            }
        }
    }

    /// How many ways lead from `from` to `upstream` over targets that are up: so often may it be tried.
    pub(crate) fn ways(&self, snapshot: &Snapshot, from: TargetIndex, upstream: TargetIndex) -> usize {
        if !snapshot.target(from).health.is_available() {
            return 0;
        }
        match &self.kinds[from.0 as usize] {
            TargetKind::Upstream(_) => usize::from(from == upstream),
            TargetKind::Group(group) => {
                group.members.iter().map(|member| self.ways(snapshot, member.target, upstream)).sum()
            }
        }
    }

    /// What a client of the listener may not dial, judged without flow's help.
    pub(crate) fn is_forbidden(&self, address: IpAddr) -> bool {
        self.is_guarded && LOCAL.iter().any(|local| local.parse() == Ok(address))
    }

    /// A connection that an upstream has accepted.
    pub(crate) fn accept(&self, rng: &mut fastrand::Rng) -> Conn {
        let len = payload_bytes(rng, self.grain);
        let out = match rng.u8(..3) {
            0 => Out::Echo,
            _ => Out::Pattern(pattern(rng.usize(..MAX_PAYLOAD_BYTES), len)),
        };
        let limit = if rng.u8(..8) == 0 { rng.usize(..=len) } else { usize::MAX };
        let window = rng.usize(1..=4) * self.grain;
        Conn::new(out, manner(rng, len), Vec::new(), self.grain).limited(limit, window)
    }

    /// The answer of a verifier.
    pub(crate) fn verify(question: &Question, rng: &mut fastrand::Rng) -> Verdict {
        match question.password.as_slice() {
            _ if rng.u8(..8) == 0 => Verdict::Overloaded,
            b"secret" if &*question.hash == "hash of secret" => Verdict::Right,
            _ => Verdict::Wrong,
        }
    }

    /// The answer of a resolver.
    pub(crate) fn resolve(rng: &mut fastrand::Rng) -> Resolved {
        match rng.u8(..10) {
            0 => Err(ResolveError::NotFound),
            1 => Err(ResolveError::TimedOut),
            2 => Err(ResolveError::Failed),
            _ => {
                // Now and then more than are tried.
                let many = if rng.u8(..8) == 0 { 12 } else { 4 };
                let count = rng.usize(1..=many);
                Ok((0..count).map(|_| address(rng)).collect())
            }
        }
    }
}

/// How a connect ends and after how long; `None` when nobody answers.
pub(crate) fn connect_outcome(rng: &mut fastrand::Rng) -> Option<(Duration, Result<(), ConnectError>)> {
    let after = if rng.bool() { span(rng, 0, 20) } else { span(rng, 0, 3_000) };
    let result = match rng.u8(..16) {
        0..=7 => Ok(()),
        8 | 9 => Err(ConnectError::Refused),
        10 => Err(ConnectError::TimedOut),
        11 => Err([ConnectError::NetworkUnreachable, ConnectError::HostUnreachable][rng.usize(..2)]),
        12 => Err(ConnectError::Reset),
        13 => Err([ConnectError::OutOfResources, ConnectError::Other(13)][rng.usize(..2)]),
        _ => return None,
    };
    Some((after, result))
}

pub(crate) fn address(rng: &mut fastrand::Rng) -> IpAddr {
    let text = if rng.u8(..4) == 0 { LOCAL[rng.usize(..5)] } else { OPEN[rng.usize(..5)] };
    text.parse().unwrap()
}

pub(crate) fn span(rng: &mut fastrand::Rng, from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_micros(rng.u64(from_ms * 1000..=to_ms * 1000))
}

/// Few pieces of a grain, none, or (seldom) more than any bound.
pub(crate) fn payload_bytes(rng: &mut fastrand::Rng, grain: usize) -> usize {
    match rng.u8(..16) {
        0 | 1 => 0,
        2 if grain > 10_000 => rng.usize(..MAX_PAYLOAD_BYTES),
        _ => rng.usize(..grain * 12),
    }
}

/// How a peer with `len` bytes behaves.
pub(crate) fn manner(rng: &mut fastrand::Rng, len: usize) -> Manner {
    let at = rng.usize(..=len);
    match rng.u8(..16) {
        0..=5 => Manner::Finish,
        6..=9 => Manner::Follow,
        10 => Manner::FinishAt(at),
        11 => Manner::ResetAt(at),
        12 => Manner::ResetOnceRead(at),
        13 => Manner::CloseAt(at),
        14 => Manner::StallAt(at),
        _ => Manner::StallAt(len),
    }
}

/// Adds a target and what it leads to, members first.
fn add_target(
    kinds: &mut Vec<TargetKind>,
    protocol: Protocol,
    depth: u32,
    rng: &mut fastrand::Rng,
) -> TargetIndex {
    let is_group = depth < MAX_DEPTH && rng.u32(..=depth) == 0 && rng.u8(..4) != 0;
    let kind = if is_group {
        let members: Vec<Member> = (0..rng.u8(1..=4))
            .map(|_| {
                // Sometimes a target that another group holds as well.
                let target = match kinds.len() {
                    0 => add_target(kinds, protocol, depth + 1, rng),
                    known if rng.u8(..6) == 0 => TargetIndex(rng.u32(..known as u32)),
                    _ => add_target(kinds, protocol, depth + 1, rng),
                };
                Member { target, weight: rng.u32(1..=3), role: Role::Primary }
            })
            .collect();
        let policies = [
            Policy::RoundRobin,
            Policy::Random,
            Policy::LeastConnections,
            Policy::LeastLatency,
            Policy::Failover,
        ];
        let policy = policies[rng.usize(..policies.len())];
        let attempts = rng.u32(1..=4);
        TargetKind::Group(Group::new(policy, members.into(), attempts, span(rng, 200, 8_000)))
    } else {
        TargetKind::Upstream(upstream(kinds.len(), protocol, rng))
    };
    kinds.push(kind);
    TargetIndex(u32::try_from(kinds.len() - 1).unwrap())
}

fn users(rng: &mut fastrand::Rng) -> Users {
    let mut users = Users::default();
    if rng.bool() {
        users.insert(b"ann", b"secret");
    } else {
        users.insert_hashed(b"ann", "hash of secret");
    }
    users
}

/// One that refuses 192.0.2.200 and lets 10.0.0.9 in.
fn access(rng: &mut fastrand::Rng) -> Access {
    let networks = |text: &str| [text.parse::<ipnet::IpNet>().unwrap()].into_iter().collect();
    match rng.u8(..3) {
        0 => Access { allow: Some(networks("10.0.0.0/8")), ..Access::default() },
        1 => Access { allow: None, deny: networks("192.0.2.0/24") },
        _ => Access { allow: Some(networks("0.0.0.0/0")), deny: networks("192.0.2.200/32") },
    }
}

fn upstream(number: usize, protocol: Protocol, rng: &mut fastrand::Rng) -> Upstream {
    match rng.u8(..12) {
        0 => Upstream::Unix(Path::new(&format!("/run/{number}.sock")).into()),
        1 => Upstream::Reject,
        // Control refuses a plain tcp listener in front of `direct`.
        2..=6 if protocol != Protocol::Tcp => Upstream::Direct,
        7 if rng.bool() => Upstream::Tcp([].into()),
        _ => {
            let count = rng.u16(1..=3);
            // The port tells the target.
            Upstream::Tcp((0..count).map(|_| SocketAddr::new(address(rng), 1000 + number as u16)).collect())
        }
    }
}

/// Whether a fixed upstream has this address.
pub(crate) fn has_address(upstream: &Upstream, address: &UpstreamAddr) -> bool {
    match (upstream, address) {
        (Upstream::Tcp(addresses), UpstreamAddr::Tcp(address)) => addresses.contains(address),
        (Upstream::Unix(path), UpstreamAddr::Unix(other)) => path == other,
        (
            Upstream::Tcp(_) | Upstream::Unix(_) | Upstream::Direct | Upstream::Reject | Upstream::Proxied(_),
            _,
        ) => false,
    }
}

fn limits(rng: &mut fastrand::Rng) -> Limits {
    let mut rate = |least: u64, most: u64| rng.bool().then(|| Rate::new(rng.u64(least..most))).flatten();
    let (new, new_per_source) = (rate(1, 4), rate(1, 4));
    let rates = Rates { up: rate(5_000, 50_000_000), down: rate(5_000, 50_000_000) };
    let source_rates = Rates { up: rate(5_000, 50_000_000), down: rate(5_000, 50_000_000) };
    Limits {
        sessions: rng.bool().then(|| rng.u64(..=1)),
        per_source: rng.bool().then(|| rng.u32(1..=2)),
        new,
        new_per_source,
        rates,
        source_rates,
        sources: Arc::default(),
    }
}
