//! Groups of every policy over destinations that do as they please.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::account::{ListenerCounters, TargetCounters};
use ringweir_flow::close::ConnectError;
use ringweir_flow::dial::AttemptId;
use ringweir_flow::pick::{HashKey, Maglev};
use ringweir_flow::pump::Closing;
use ringweir_flow::session::Command;
use ringweir_flow::snapshot::{
    Commit, FirstHop, Group, Health, Hop, Listener, Member, Policy, Protocol, Proxy, Role, Route, Snapshot,
    Target, TargetIndex, TargetKind, Timeouts, Towards, Upstream, WorkerIndex,
};
use ringweir_flow::time::Instant;
use ringweir_flow::way::Splicing;
use ringweir_flow::wire::Destination;

use super::NEVER;
use super::peer::{Conn, Fate, ProxyProtocol};
use crate::invariants::{Verdicts, hold};

/// How a connect ends, and after how long.
type Answered = (Duration, Result<(), ConnectError>);

pub(super) struct World {
    pub(super) kinds: Vec<TargetKind>,
    pub(super) healths: Vec<Health>,
    pub(super) root: TargetIndex,
    counters: Vec<Arc<TargetCounters>>,
    listener: Arc<ListenerCounters>,
    fates: Vec<Fate>,
}

impl World {
    pub(super) fn new(rng: &mut fastrand::Rng) -> World {
        let mut kinds = Vec::new();
        let root = add(&mut kinds, 0, rng);
        let bad = rng.u8(..4) * 15;
        let mut healths: Vec<Health> = Vec::new();
        for kind in &kinds {
            let health = match kind {
                TargetKind::Upstream(_) if rng.u8(..100) < bad => {
                    [Health::Down, Health::Ejected][rng.usize(..2)]
                }
                TargetKind::Upstream(_) => Health::Up,
                TargetKind::Group(group) => {
                    // Members stand before their groups.
                    let of = |member: &Member| healths[member.target.0 as usize];
                    let has = |health| group.members.iter().any(|member| of(member) == health);
                    if has(Health::Up) {
                        Health::Up
                    } else if has(Health::Ejected) {
                        Health::Ejected
                    } else {
                        Health::Down
                    }
                }
            };
            healths.push(health);
        }
        let fates = [Fate::Answer, Fate::Answer, Fate::Answer, Fate::Reset, Fate::End, Fate::Silence];
        World {
            counters: kinds.iter().map(|_| Arc::new(TargetCounters::new(1))).collect(),
            fates: kinds.iter().map(|_| fates[rng.usize(..fates.len())]).collect(),
            listener: Arc::new(ListenerCounters::new(1)),
            kinds,
            healths,
            root,
        }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        let targets = self.kinds.iter().zip(&self.healths).zip(&self.counters).enumerate();
        let targets = targets.map(|(index, ((kind, health), counters))| Target {
            health: *health,
            ..Target::new(index.to_string(), kind.clone(), Arc::clone(counters))
        });
        let timeouts = Timeouts {
            handshake: NEVER,
            connect: Duration::from_secs(2),
            idle: Duration::from_secs(60),
            half_close: Duration::from_secs(30),
        };
        let listener = Listener {
            timeouts,
            ..Listener::new("listener", Protocol::Tcp, self.root, Arc::clone(&self.listener))
        };
        let splicing = Splicing::Off;
        let snapshot = Snapshot::new(vec![listener], targets.collect());
        Arc::new(Snapshot { log_sessions: true, splicing, ..snapshot })
    }

    /// Somebody connects to an upstream, and may be answered.
    pub(super) fn accept(
        &self,
        attempt: AttemptId,
        address: SocketAddr,
        payload_bytes: usize,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> (Conn, Option<Answered>) {
        let upstream = usize::from(address.port() - 1000);
        let proxy = match &self.kinds[upstream] {
            TargetKind::Upstream(Upstream::Proxied(route)) => match route.hops[0].proxy {
                Proxy::Socks5(_) => Some(ProxyProtocol::Socks5),
                Proxy::Http(_) => Some(ProxyProtocol::Http),
                Proxy::Shadowsocks(_) => unreachable!("nothing is sealed in this world"),
            },
            TargetKind::Upstream(_) | TargetKind::Group(_) => None,
        };
        let after = if rng.bool() { span(rng, 0, 20) } else { span(rng, 0, 3_000) };
        let result = match rng.u8(..8) {
            0 => None,
            1 => Some((after, Err(ConnectError::Refused))),
            _ => Some((after, Ok(()))),
        };
        (Conn::new(attempt, upstream, proxy, self.fates[upstream], payload_bytes, now, rng), result)
    }

    /// Nothing is counted as running, and every attempt has ended in one way.
    pub(super) fn check_counters(&self, closing: Closing) -> Verdicts {
        let listener = self.listener.cell(WorkerIndex(0));
        hold!(listener.active.get() == 0, "{} sessions are counted as active", listener.active.get());
        hold!(listener.closed[closing.reason.index()].get() == 1, "{} is not counted", closing.reason);
        for (number, counters) in self.counters.iter().enumerate() {
            let cell = counters.cell(WorkerIndex(0));
            let failed: u64 = cell.failed.iter().map(|counter| counter.get()).sum();
            let (begun, won) = (cell.attempts.get(), cell.committed.get());
            let ended = won + failed + cell.abandoned.get();
            hold!(begun == ended, "target {number}: {begun} begun, {ended} ended");
            hold!(cell.active.get() == 0, "target {number}: {} active", cell.active.get());
        }
        Ok(())
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, ((kind, health), fate)) in
            self.kinds.iter().zip(&self.healths).zip(&self.fates).enumerate()
        {
            match kind {
                TargetKind::Group(group) => {
                    let members: Vec<_> =
                        group.members.iter().map(|member| (member.target.0, member.role)).collect();
                    let Group { policy, attempts, attempt_timeout, commit, selected, .. } = group;
                    write!(f, "{number} {health:?}: {policy:?} over {members:?}, {attempts} attempts of ")?;
                    writeln!(f, "{attempt_timeout:?}, commit {commit:?}, selected {selected}")?;
                }
                TargetKind::Upstream(Upstream::Proxied(route)) => {
                    writeln!(f, "{number} {health:?}: {fate:?} behind {}", route.hops[0].proxy.as_str())?;
                }
                TargetKind::Upstream(_) => writeln!(f, "{number} {health:?}: {fate:?}")?,
            }
        }
        Ok(())
    }
}

pub(super) fn span(rng: &mut fastrand::Rng, from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_micros(rng.u64(from_ms * 1000..=to_ms * 1000))
}

/// A command without its bytes.
pub(super) fn brief(command: &Command) -> String {
    match command {
        Command::Send(side, bytes) => format!("Send({side:?}, {} bytes)", bytes.len()),
        Command::SendAhead(attempt, bytes) => format!("SendAhead({attempt:?}, {} bytes)", bytes.len()),
        Command::ShutDownClient
        | Command::Connect { .. }
        | Command::EndAhead(_)
        | Command::ReceiveAhead(_)
        | Command::Abandon(_)
        | Command::Resolve(_)
        | Command::Verify(_)
        | Command::JoinLine(_)
        | Command::NameLocal
        | Command::NameDestination(_)
        | Command::Pump(_)
        | Command::Close(_) => format!("{command:?}"),
    }
}

/// Adds a target and what it leads to, members first.
fn add(kinds: &mut Vec<TargetKind>, depth: u32, rng: &mut fastrand::Rng) -> TargetIndex {
    let is_group = depth == 0 || depth < 3 && rng.u8(..4) == 0;
    let kind = if is_group {
        let mut members: Vec<Member> = Vec::new();
        for _ in 0..rng.u8(1..=4) {
            let role = if !members.is_empty() && rng.u8(..5) == 0 { Role::Backup } else { Role::Primary };
            members.push(Member { target: add(kinds, depth + 1, rng), weight: rng.u32(1..=3), role });
        }
        TargetKind::Group(group(members, rng))
    } else {
        TargetKind::Upstream(upstream(kinds.len(), rng))
    };
    kinds.push(kind);
    TargetIndex(u32::try_from(kinds.len() - 1).unwrap())
}

fn group(members: Vec<Member>, rng: &mut fastrand::Rng) -> Group {
    let stagger = if rng.bool() { Duration::ZERO } else { span(rng, 1, 1_500) };
    let policies = [
        Policy::RoundRobin,
        Policy::Random,
        Policy::LeastConnections,
        Policy::LeastLatency,
        Policy::Failover,
        Policy::Failover,
        Policy::Hash(HashKey::Source),
        Policy::Select,
        Policy::Race { stagger, parallel: rng.u32(1..=4) },
        Policy::Race { stagger, parallel: rng.u32(2..=4) },
    ];
    let policy = policies[rng.usize(..policies.len())];
    let names: Vec<String> = members.iter().map(|member| member.target.0.to_string()).collect();
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    let maglev = matches!(policy, Policy::Hash(_))
        .then(|| Arc::new(Maglev::new(names.iter().map(String::as_str).zip(weights))));
    let selected = rng.u32(..members.len() as u32);
    let mut group = Group::new(policy, members.into(), rng.u32(1..=5), span(rng, 200, 4_000));
    group.maglev = maglev;
    group.selected = selected;
    group.commit = [
        None,
        Some(Commit::Connect),
        Some(Commit::Handshake),
        Some(Commit::FirstByte),
        Some(Commit::FirstByte),
    ][rng.usize(..5)];
    group
}

fn upstream(number: usize, rng: &mut fastrand::Rng) -> Upstream {
    // The port tells the target.
    let address = SocketAddr::from(([192, 0, 2, 1], 1000 + number as u16));
    let proxy = match rng.u8(..4) {
        0 => Proxy::Socks5(None),
        1 => Proxy::Http(None),
        _ => return Upstream::Tcp([address].into()),
    };
    let towards = Towards::Fixed(Destination::Address(SocketAddr::from(([198, 51, 100, 7], 443))));
    let hops = vec![Hop { proxy, towards }];
    Upstream::Proxied(Arc::new(Route { first: FirstHop::Tcp([address].into()), hops: hops.into() }))
}
