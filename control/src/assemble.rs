//! Puts a snapshot together: configuration, health, addresses, and the counters that live on by name.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ringweir_flow::access::Gate;
use ringweir_flow::account::{ListenerCounters, TargetCounters, UserCounters};
use ringweir_flow::affinity::Affinity;
use ringweir_flow::capacity::Capacity;
use ringweir_flow::limits::{Limits, Sources};
use ringweir_flow::outgoing::Outgoing;
use ringweir_flow::snapshot::{
    Bind, FirstHop, Health, Hop, Listener, ListenerIndex, Member, Route, Snapshot, Target, TargetIndex,
    TargetKind, Upstream,
};
use ringweir_flow::wire::proxy_protocol::Version;
use ringweir_flow::wire::shadowsocks::Server;

use crate::bind::OpenBind;
use crate::health::Care;
use crate::model::{self, Config, Endpoint};
use crate::plugins::Plugins;
use crate::rules::RuleBook;
use crate::state::Selections;

/// What control knows beside the configuration.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    /// What checks have found, by target.
    pub(crate) health: HashMap<Arc<str>, Health>,
    /// Whom the operator drains.
    pub(crate) drained: HashSet<Arc<str>>,
    /// Whom the operator has disabled, or enabled over what the configuration says.
    pub(crate) disabled: HashMap<Arc<str>, bool>,
    /// The addresses of upstreams that are written as names, by target.
    pub(crate) addresses: HashMap<Arc<str>, Vec<SocketAddr>>,
    /// What real traffic shows, and what follows from it.
    pub(crate) care: Care,
    counters: HashMap<Arc<str>, Arc<TargetCounters>>,
    /// Whom the operator selected, by group.
    pub(crate) selected: Selections,
    /// Whom which member of a group served, by group: a reload does not forget it.
    affinities: HashMap<Arc<str>, Arc<Affinity>>,
    /// Who has how many sessions, by listener: those that run are counted on.
    sources: HashMap<Arc<str>, Arc<Sources>>,
    /// What bounds the lines of refused clients in the log, by listener.
    gates: HashMap<Arc<str>, Arc<Gate>>,
    /// Who has which place at upstreams that bear no more than so many sessions.
    capacities: HashMap<Arc<str>, Arc<Capacity>>,
    /// Whom listeners of Shadowsocks speak for.
    servers: HashMap<Arc<str>, Arc<Server>>,
    listener_counters: HashMap<Arc<str>, Arc<ListenerCounters>>,
    /// By listener and user.
    user_counters: HashMap<Arc<str>, HashMap<Arc<str>, Arc<UserCounters>>>,
    /// What is decided before sessions are dispatched.
    pub(crate) rules: RuleBook,
    /// The programs that sessions go through besides.
    pub(crate) plugins: Plugins,
}

impl Knowledge {
    /// Whether a target is neither picked nor probed. The operator's word stands over the configuration's.
    pub(crate) fn is_disabled(&self, target: &model::Target) -> bool {
        self.disabled.get(&target.name).copied().unwrap_or(target.health.disabled)
    }

    /// Forgets what the configuration no longer names.
    pub(crate) fn retain(&mut self, config: &Config) {
        let targets: HashSet<_> = config.targets.iter().map(|target| Arc::clone(&target.name)).collect();
        let listeners: HashSet<_> =
            config.listeners.iter().map(|listener| Arc::clone(&listener.name)).collect();
        self.health.retain(|name, _| targets.contains(name));
        self.drained.retain(|name| targets.contains(name));
        self.disabled.retain(|name, _| targets.contains(name));
        self.addresses.retain(|name, _| targets.contains(name));
        self.counters.retain(|name, _| targets.contains(name));
        self.selected.retain(|name, _| targets.contains(name));
        self.capacities.retain(|name, _| targets.contains(name));
        self.affinities.retain(|name, _| targets.contains(name));
        self.sources.retain(|name, _| listeners.contains(name));
        self.gates.retain(|name, _| listeners.contains(name));
        self.servers.retain(|name, _| listeners.contains(name));
        self.user_counters.retain(|name, _| listeners.contains(name));
        self.listener_counters.retain(|name, _| listeners.contains(name));
    }
}

/// The snapshot of this moment.
pub(crate) fn assemble(
    config: &Config,
    knowledge: &mut Knowledge,
    binds: &[OpenBind],
    workers: usize,
    generation: u64,
    log_sessions: bool,
) -> Snapshot {
    let listeners = config
        .listeners
        .iter()
        .map(|listener| Listener {
            name: Arc::clone(&listener.name),
            protocol: listener.protocol,
            ports: ports(binds, &listener.name),
            target: listener.target,
            users: listener.users.clone(),
            access: listener.access.clone(),
            gate: Arc::clone(knowledge.gates.entry(Arc::clone(&listener.name)).or_default()),
            shadowsocks: shadowsocks(listener, &mut knowledge.servers),
            limits: limits(listener, &mut knowledge.sources),
            trusted: listener.trusted.clone(),
            peek: listener.peek,
            reach: listener.reach.clone(),
            timeouts: listener.timeouts,
            keepalive: listener.socket.keepalive,
            user_counters: user_counters(listener, &mut knowledge.user_counters, workers),
            counters: Arc::clone(
                knowledge
                    .listener_counters
                    .entry(Arc::clone(&listener.name))
                    .or_insert_with(|| Arc::new(ListenerCounters::new(workers))),
            ),
        })
        .collect();
    let targets = (0u32..)
        .zip(&config.targets)
        .map(|(index, target)| Target {
            name: Arc::clone(&target.name),
            kind: kind(config, target, knowledge),
            health: health(config, knowledge, TargetIndex(index)),
            outgoing: outgoing(target),
            send_proxy: send_proxy(target),
            watch: knowledge.care.watch(&target.name),
            trial: knowledge.care.trial(&target.name),
            capacity: capacity(target, &mut knowledge.capacities),
            counters: Arc::clone(
                knowledge
                    .counters
                    .entry(Arc::clone(&target.name))
                    .or_insert_with(|| Arc::new(TargetCounters::new(workers))),
            ),
        })
        .collect();
    Snapshot {
        generation,
        binds: open_binds(config, binds),
        listeners,
        targets,
        rules: knowledge.rules.current(),
        log_sessions,
        splicing: config.engine.splicing,
    }
}

/// The counters of a listener's users; those of others are forgotten.
fn user_counters(
    listener: &model::Listener,
    known: &mut HashMap<Arc<str>, HashMap<Arc<str>, Arc<UserCounters>>>,
    workers: usize,
) -> HashMap<Arc<str>, Arc<UserCounters>> {
    let by_password = listener.users.iter().flat_map(|users| users.names()).map(Arc::from);
    let by_key = listener.shadowsocks.iter().flat_map(|server| server.users()).map(Arc::clone);
    let names: Vec<Arc<str>> = by_password.chain(by_key).collect();
    if names.is_empty() {
        known.remove(&listener.name);
        return HashMap::new();
    }
    let before = known.remove(&listener.name).unwrap_or_default();
    let counters = |name: Arc<str>| {
        let counters = before.get(&name).map(Arc::clone);
        (name, counters.unwrap_or_else(|| Arc::new(UserCounters::new(workers))))
    };
    let now: HashMap<_, _> = names.into_iter().map(counters).collect();
    known.insert(Arc::clone(&listener.name), now.clone());
    now
}

fn limits(listener: &model::Listener, known: &mut HashMap<Arc<str>, Arc<Sources>>) -> Option<Limits> {
    let (sessions, per_source) = listener.max_sessions;
    let (new, new_per_source) = listener.max_new;
    let (rates, source_rates) = listener.rates;
    let sources = known.entry(Arc::clone(&listener.name)).or_default();
    let sources = Arc::clone(sources);
    let limits = Limits { sessions, per_source, new, new_per_source, rates, source_rates, sources };
    (!limits.is_unlimited()).then_some(limits)
}

/// The places of an upstream, as they are taken.
fn capacity(target: &model::Target, known: &mut HashMap<Arc<str>, Arc<Capacity>>) -> Option<Arc<Capacity>> {
    let room = match &target.kind {
        model::TargetKind::Upstream(upstream) => upstream.room,
        model::TargetKind::Group(_) => None,
    };
    let Some(room) = room else {
        // Those who wait are served by whoever leaves; nobody is counted from now on.
        known.remove(&target.name);
        return None;
    };
    let capacity = known.entry(Arc::clone(&target.name)).or_insert_with(|| Arc::new(Capacity::new(room)));
    capacity.set(room);
    Some(Arc::clone(capacity))
}

/// The server of a listener, as the one before where nothing of it has changed: that knows which salts have come. One
/// that has changed, as by another user, takes that over.
fn shadowsocks(
    listener: &model::Listener,
    known: &mut HashMap<Arc<str>, Arc<Server>>,
) -> Option<Arc<Server>> {
    let server = listener.shadowsocks.as_ref()?;
    let known = known.entry(Arc::clone(&listener.name)).or_insert_with(|| Arc::clone(server));
    if *known != *server {
        *known = Arc::new(server.succeeding(known));
    }
    Some(Arc::clone(known))
}

/// As bound.
fn ports(binds: &[OpenBind], listener: &str) -> Box<[u16]> {
    let own = binds.iter().filter(|bind| *bind.listener == *listener);
    own.filter_map(|bind| Some(bind.bound.parse::<SocketAddr>().ok()?.port())).collect()
}

/// The binds stand in the order of the listeners and their addresses.
fn open_binds(config: &Config, binds: &[OpenBind]) -> Vec<Bind> {
    let listener_of = |bind: &OpenBind| {
        let at = config.listeners.iter().position(|listener| listener.name == bind.listener)?;
        u32::try_from(at).ok().map(ListenerIndex)
    };
    binds
        .iter()
        .filter_map(|bind| {
            let address = bind.bound.as_str().into();
            Some(Bind { id: bind.id, listener: listener_of(bind)?, address })
        })
        .collect()
}

fn kind(config: &Config, target: &model::Target, knowledge: &mut Knowledge) -> TargetKind {
    match &target.kind {
        model::TargetKind::Group(group) => {
            let mut group = knowledge.care.group(config, &target.name, group);
            if let Some(table) = &mut group.affinity {
                let known = knowledge.affinities.entry(Arc::clone(&target.name));
                let known = known.or_insert_with(|| Arc::clone(table));
                if known.settings() != table.settings() {
                    *known = Arc::clone(table);
                }
                *table = Arc::clone(known);
            }
            let chosen = knowledge.selected.get(&target.name);
            let position = chosen.and_then(|name| {
                let named = |member: &Member| config.targets[member.target.0 as usize].name == *name;
                group.members.iter().position(named)
            });
            group.selected = position.and_then(|position| u32::try_from(position).ok()).unwrap_or(0);
            TargetKind::Group(group)
        }
        model::TargetKind::Upstream(upstream) => {
            let first = upstream.via.first().map(|via| (&via.name, &via.endpoint));
            let (name, endpoint) = first.unwrap_or((&target.name, &upstream.endpoint));
            let reached = match &upstream.plugin {
                Some(plugin) => Upstream::Tcp(knowledge.plugins.local(&plugin.owner).as_slice().into()),
                None => reached(name, endpoint, knowledge),
            };
            TargetKind::Upstream(over_proxies(reached, upstream.hops().into()))
        }
    }
}

/// What is connected to, as far as it is known where that is.
fn reached(name: &Arc<str>, endpoint: &Endpoint, knowledge: &Knowledge) -> Upstream {
    match endpoint {
        Endpoint::Address(address) => Upstream::Tcp([*address].into()),
        Endpoint::Name(..) => {
            let addresses = knowledge.addresses.get(name);
            Upstream::Tcp(addresses.map(Vec::as_slice).unwrap_or_default().into())
        }
        Endpoint::Unix(path) => Upstream::Unix(Arc::clone(path)),
        Endpoint::Direct => Upstream::Direct,
        Endpoint::Reject => Upstream::Reject,
    }
}

fn over_proxies(reached: Upstream, hops: Box<[Hop]>) -> Upstream {
    match reached {
        Upstream::Tcp(addresses) if !hops.is_empty() => {
            Upstream::Proxied(Arc::new(Route { first: FirstHop::Tcp(addresses), hops }))
        }
        Upstream::Unix(path) if !hops.is_empty() => {
            Upstream::Proxied(Arc::new(Route { first: FirstHop::Unix(path), hops }))
        }
        plain @ (Upstream::Tcp(_)
        | Upstream::Unix(_)
        | Upstream::Direct
        | Upstream::Reject
        | Upstream::Proxied(_)) => plain,
    }
}

fn send_proxy(target: &model::Target) -> Option<Version> {
    match &target.kind {
        model::TargetKind::Upstream(upstream) => upstream.send_proxy,
        model::TargetKind::Group(_) => None,
    }
}

fn outgoing(target: &model::Target) -> Option<Arc<Outgoing>> {
    match &target.kind {
        model::TargetKind::Upstream(upstream) => upstream.outgoing.clone(),
        model::TargetKind::Group(_) => None,
    }
}

/// An upstream's health is what its checks found; a group's follows from its members: it is as good as its best.
/// The configuration bounds the depth and has no cycles.
fn health(config: &Config, knowledge: &Knowledge, index: TargetIndex) -> Health {
    let target = &config.targets[index.0 as usize];
    if knowledge.is_disabled(target) {
        return Health::Disabled;
    }
    if knowledge.drained.contains(&target.name) {
        return Health::Draining;
    }
    match &target.kind {
        model::TargetKind::Upstream(upstream) if knowledge.plugins.is_down(upstream) => Health::Down,
        model::TargetKind::Upstream(_) => {
            let found = knowledge.health.get(&target.name).copied().unwrap_or(Health::Unknown);
            knowledge.care.health(&target.name, found)
        }
        model::TargetKind::Group(group) => group
            .members
            .iter()
            .map(|member| health(config, knowledge, member.target))
            .min_by_key(|health| match health {
                Health::Up => 0,
                Health::Unknown => 1,
                Health::Trial => 2,
                Health::Ejected => 3,
                // With anybody down it is not by the operator's word alone that nobody is left.
                Health::Down => 4,
                Health::Draining => 5,
                Health::Disabled => 6,
            })
            .unwrap_or(Health::Down),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use ringweir_flow::wire::Destination;
    use ringweir_flow::wire::shadowsocks::{Accept, Client, Method, Secret, Serial, Unwelcome};

    use super::*;

    const NESTED: &str = r#"
        [group.inner]
        members = ["a"]
        [group.pool]
        members = ["inner", "b"]
    "#;

    /// A listener that leads to the group `pool`, and upstreams `a` and `b` for it.
    pub(crate) fn config(groups: &str) -> Config {
        let text = r#"
            [[listener]]
            name = "web"
            bind = "127.0.0.1:0"
            target = "pool"
            [upstream.a]
            address = "127.0.0.1:1"
            [upstream.b]
            address = "127.0.0.1:2"
        "#;
        crate::config::parse(&format!("{text}{groups}"), "test", std::path::Path::new("")).unwrap()
    }

    fn health_of(snapshot: &Snapshot, name: &str) -> Health {
        snapshot.targets.iter().find(|target| &*target.name == name).unwrap().health
    }

    #[test]
    fn a_group_is_as_good_as_its_best_member() {
        let config = config(NESTED);
        let mut knowledge = Knowledge::default();
        let snapshot = |knowledge: &mut Knowledge| assemble(&config, knowledge, &[], 1, 1, false);
        assert_eq!(health_of(&snapshot(&mut knowledge), "pool"), Health::Unknown);
        knowledge.health.insert("a".into(), Health::Down);
        assert_eq!(health_of(&snapshot(&mut knowledge), "inner"), Health::Down);
        assert_eq!(health_of(&snapshot(&mut knowledge), "pool"), Health::Unknown);
        knowledge.drained.insert("b".into());
        let both_out = snapshot(&mut knowledge);
        assert_eq!(health_of(&both_out, "pool"), Health::Down, "one is down, the other drained");
        knowledge.health.insert("a".into(), Health::Up);
        assert_eq!(health_of(&snapshot(&mut knowledge), "pool"), Health::Up);
    }

    #[test]
    fn a_stream_that_came_does_not_come_again_after_users_have_changed() {
        let key = |fill: u8| BASE64_STANDARD.encode([fill; 16]);
        let config = |users: &str| {
            let text = format!(
                "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"shadowsocks\"\n\
                 method = \"2022-blake3-aes-128-gcm\"\npassword = \"{}\"\nusers = {{ {users} }}\n\
                 target = \"direct\"\n",
                key(1)
            );
            crate::config::parse(&text, "test", std::path::Path::new("")).unwrap()
        };
        let (ann, bob) = (format!("ann = \"{}\"", key(2)), format!("bob = \"{}\"", key(3)));
        let serial = Serial { generation: 1, worker: 0, count: 0 };
        let method = Method::Blake3Aes128Gcm;
        let keys = format!("{}:{}", key(1), key(2));
        let client = Client::new(method, &keys, Secret::new([7; 32]), crate::clock::wall()).unwrap();
        let mut said = Vec::new();
        let destination = Destination::from_host(b"a.example", 443).unwrap();
        Arc::new(client).tunnel(destination, serial, 0).seal([&b"hello"[..]], &mut said);

        let mut knowledge = Knowledge::default();
        let mut offer = |users: &str| {
            let snapshot = assemble(&config(users), &mut knowledge, &[], 1, 1, false);
            Accept::new(snapshot.listeners[0].shadowsocks.as_ref().unwrap(), serial).read(&said)
        };
        assert!(offer(&ann).unwrap().is_some());
        assert_eq!(offer(&ann).unwrap_err(), Unwelcome::Replayed, "nothing has changed");
        assert_eq!(offer(&format!("{ann}, {bob}")).unwrap_err(), Unwelcome::Replayed, "bob has come");
    }

    #[test]
    fn counters_live_on_by_name() {
        let config = config(NESTED);
        let mut knowledge = Knowledge::default();
        let first = assemble(&config, &mut knowledge, &[], 1, 1, false);
        knowledge.retain(&config);
        let second = assemble(&config, &mut knowledge, &[], 1, 2, false);
        assert!(Arc::ptr_eq(&first.targets[0].counters, &second.targets[0].counters));
        assert!(Arc::ptr_eq(&first.listeners[0].counters, &second.listeners[0].counters));
    }
}
