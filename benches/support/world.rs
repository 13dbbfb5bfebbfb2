//! A snapshot made by hand, as control would make it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::account::{ListenerCounters, TargetCounters};
use ringweir_flow::pick::Maglev;
use ringweir_flow::snapshot::{
    Bind, BindId, Group, Health, Listener, ListenerIndex, Member, Policy, Protocol, Snapshot, Target,
    TargetIndex, TargetKind, Upstream,
};

/// How many workers the counters have cells for.
pub(crate) const WORKERS: usize = 2;

/// The bind of every snapshot made here.
pub(crate) const BIND: BindId = BindId(0);

/// A listener whose sessions go to `target`.
pub(crate) fn listener(protocol: Protocol, target: TargetIndex) -> Listener {
    Listener::new("in", protocol, target, Arc::new(ListenerCounters::new(WORKERS)))
}

/// A fixed endpoint.
pub(crate) fn endpoint(name: impl Into<Arc<str>>, address: SocketAddr) -> Target {
    target(name, TargetKind::Upstream(Upstream::Tcp([address].into())))
}

/// Any upstream or group, up.
pub(crate) fn target(name: impl Into<Arc<str>>, kind: TargetKind) -> Target {
    let target = Target::new(name, kind, Arc::new(TargetCounters::new(WORKERS)));
    Target { health: Health::Up, ..target }
}

/// A policy over the first `members` targets, of weights 1, 2 and 3 in turn.
pub(crate) fn group(policy: Policy, members: u32) -> Group {
    let members = (0..members).map(|index| Member::primary(TargetIndex(index), 1 + index % 3));
    let names: Vec<String> = (0..members.len()).map(|index| format!("member-{index}")).collect();
    let members: Arc<[Member]> = members.collect();
    let weighted = names.iter().map(String::as_str).zip(members.iter().map(|member| member.weight));
    let maglev = matches!(policy, Policy::Hash(_)).then(|| Arc::new(Maglev::new(weighted)));
    let mut group = Group::new(policy, members, 8, Duration::from_secs(4));
    group.maglev = maglev;
    group
}

/// One listener on [`BIND`], and these targets; session logs are off, as they are unless configured.
pub(crate) fn snapshot(listener: Listener, targets: Vec<Target>) -> Snapshot {
    let bind = Bind { id: BIND, listener: ListenerIndex(0), address: "127.0.0.1".into() };
    Snapshot { binds: vec![bind], ..Snapshot::new(vec![listener], targets) }
}
