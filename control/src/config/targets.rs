//! The declarations of upstreams, groups and checks, before names are joined.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::affinity::{Binding, MAX_ENTRIES, Settings};
use ringweir_flow::capacity::Room;
use ringweir_flow::outgoing::Outgoing;
use ringweir_flow::pick::{FieldName, HashKey};
use ringweir_flow::retire::OnDown;
use ringweir_flow::snapshot::{Commit, MAX_WEIGHT, Policy, Proxy, Role};
use ringweir_flow::wire::client::Credentials;
use ringweir_flow::wire::proxy_protocol::Version;
use zeroize::Zeroizing;

use super::address::parse_endpoint;
use super::checks::Checks;
use super::diagnostic::did_you_mean;
use super::health::{self, DeclaredHealth};
use super::reader::{Node, Table};
use super::{schema, sealed, secrets, sockets};
use crate::model::{Check, CheckKind, Endpoint, Plugin};

/// The longest name: names stand in every log line and metric.
const MAX_NAME_BYTES: usize = 128;

/// How long one member may take unless configured otherwise.
const DEFAULT_ATTEMPT: Duration = Duration::from_secs(4);

/// The most members that one session may try by configuration.
const MAX_ATTEMPTS: u32 = 64;

/// How long a member stays somebody's unless configured otherwise, and how many are remembered.
const DEFAULT_STICKY: Duration = Duration::from_secs(30 * 60);
const DEFAULT_STICKY_ENTRIES: u32 = 10_000;

/// As leaf's fallback cache.
const DEFAULT_REMEMBER: Duration = Duration::from_secs(60 * 60);
const DEFAULT_REMEMBER_ENTRIES: u32 = 256;

/// A shorter time is none, a longer one outlives what it is about.
const SHORTEST_TTL: Duration = Duration::from_secs(1);
const LONGEST_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// How many members race at a time at most: each holds a descriptor, for every session.
const MAX_PARALLEL: u32 = 8;

/// How many wait for a place unless configured otherwise, how many may at most, and for how long.
const DEFAULT_QUEUE: u32 = 100;
const MAX_QUEUE: u32 = 100_000;
const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);

/// A longer wait is a failover's.
const LONGEST_STAGGER: Duration = Duration::from_secs(60);

/// An upstream or group as it is declared.
#[derive(Debug)]
pub(crate) struct Declared<'a> {
    pub(crate) name: &'a str,
    pub(crate) node: Node<'a>,
    pub(crate) weight: u32,
    pub(crate) check: Option<Arc<Check>>,
    pub(crate) outgoing: Option<Arc<Outgoing>>,
    pub(crate) send_proxy: Option<Version>,
    pub(crate) room: Option<Room>,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) plugin: Option<Plugin>,
    /// The upstream whose connections it goes through.
    pub(crate) via: Option<Node<'a>>,
    pub(crate) health: DeclaredHealth,
    pub(crate) kind: DeclaredKind<'a>,
}

#[derive(Debug)]
pub(crate) enum DeclaredKind<'a> {
    Upstream(Endpoint),
    Group(Box<DeclaredGroup<'a>>),
}

#[derive(Debug)]
pub(crate) struct DeclaredGroup<'a> {
    pub(crate) policy: Policy,
    pub(crate) members: Vec<DeclaredMember<'a>>,
    pub(crate) attempts: Option<u32>,
    pub(crate) attempt_timeout: Duration,
    pub(crate) commit: Option<Commit>,
    pub(crate) affinity: Option<Settings>,
    pub(crate) on_down: OnDown,
}

#[derive(Debug)]
pub(crate) struct DeclaredMember<'a> {
    /// Where its name is written.
    pub(crate) name: Node<'a>,
    /// That of the target unless it has another here.
    pub(crate) weight: Option<u32>,
    pub(crate) role: Role,
}

/// Every upstream and group, in the order of the text.
pub(crate) fn declared<'a>(root: &Table<'a>, checks: &Checks<'_>, folder: &Path) -> Vec<Declared<'a>> {
    let mut all = Vec::new();
    for (name, node) in root.get("upstream").and_then(|node| node.named()).unwrap_or_default() {
        all.extend(upstream(name, node, checks, folder));
    }
    for (name, node) in root.get("group").and_then(|node| node.named()).unwrap_or_default() {
        all.extend(group(name, node, checks));
    }
    all.sort_by_key(|declared| declared.node.span().start);
    let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
    for declared in &all {
        if seen.insert(declared.name, declared.node.span().clone()).is_some() {
            let hint = "upstreams and groups share one namespace".to_owned();
            declared.node.report(format!("the name {:?} is taken", declared.name), Some(hint));
        }
    }
    all
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Unix,
    Direct,
    Reject,
    Socks5,
    Http,
    Shadowsocks,
}

fn upstream<'a>(name: &'a str, node: Node<'a>, checks: &Checks<'_>, folder: &Path) -> Option<Declared<'a>> {
    is_name(name, &node);
    let table = node.table(schema::UPSTREAM)?;
    let kinds = [
        ("tcp", Kind::Tcp),
        ("unix", Kind::Unix),
        ("direct", Kind::Direct),
        ("reject", Kind::Reject),
        ("socks5", Kind::Socks5),
        ("http", Kind::Http),
        ("shadowsocks", Kind::Shadowsocks),
    ];
    let kind = table.get("kind").map(|node| node.choice(&kinds));
    let endpoint = match kind {
        // Reported already; what follows would only be guesses.
        Some(None) => None,
        Some(Some(kind)) => endpoint(&table, Some(kind)),
        None => endpoint(&table, None),
    };
    let check = check_of(&table, checks);
    let names_destination = check.as_ref().is_some_and(|check| matches!(check.kind, CheckKind::Http(_)));
    match (table.get("check"), &endpoint) {
        (Some(node), Some(Endpoint::Reject)) => node.report("has nothing to probe: nothing is dialled", None),
        (Some(node), Some(Endpoint::Direct)) if check.is_some() && !names_destination => {
            let hint = "a check of kind = \"http\" names one".to_owned();
            node.report("has nothing to probe: this upstream leads to no fixed endpoint", Some(hint));
        }
        (Some(_) | None, _) => {}
    }
    let reserved = matches!(
        (name, &endpoint),
        ("direct", Some(other)) if *other != Endpoint::Direct
    ) || matches!((name, &endpoint), ("reject", Some(other)) if *other != Endpoint::Reject);
    if reserved {
        node.report(
            format!("the name {name:?} stands for what is built in"),
            Some("choose another".to_owned()),
        );
    }
    let outgoing = endpoint.as_ref().and_then(|endpoint| sockets::outgoing(&table, endpoint));
    let send_proxy = send_proxy(&table, endpoint.as_ref());
    let room = room(&table, endpoint.as_ref());
    let proxy = proxy(&table, kind.flatten(), folder);
    let is_sealed = kind == Some(Some(Kind::Shadowsocks));
    let plugin =
        is_sealed.then(|| sealed::plugin_of_upstream(&table, name, endpoint.as_ref(), folder)).flatten();
    let via = via(&table, endpoint.as_ref());
    let health = health::of_upstream(&table, endpoint.as_ref());
    let kind = DeclaredKind::Upstream(endpoint.unwrap_or(Endpoint::Reject));
    let (weight, outgoing) = (weight(&table), outgoing.map(Arc::new));
    Some(Declared { name, weight, check, outgoing, send_proxy, room, proxy, plugin, via, health, kind, node })
}

/// Whether the endpoint is told whose each connection is.
fn send_proxy(table: &Table<'_>, endpoint: Option<&Endpoint>) -> Option<Version> {
    let node = table.get("send_proxy")?;
    if let Some(Endpoint::Reject) = endpoint {
        node.report("has no meaning here: nothing is dialled", None);
    }
    node.choice(&[("v1", Version::V1), ("v2", Version::V2)])
}

/// How many sessions it bears, and who may wait.
fn room(table: &Table<'_>, endpoint: Option<&Endpoint>) -> Option<Room> {
    let Some(node) = table.get("max_sessions") else {
        for node in ["queue", "queue_timeout"].iter().filter_map(|key| table.get(key)) {
            node.report("has a meaning beside max_sessions alone", None);
        }
        return None;
    };
    if let Some(Endpoint::Reject) = endpoint {
        node.report("has no meaning here: nothing is dialled", None);
    }
    let sessions = node.integer(1..=u32::MAX);
    let queue = table.get("queue").map_or(Some(DEFAULT_QUEUE), |node| node.integer(0..=MAX_QUEUE));
    let patience = table.get("queue_timeout").map_or(Some(DEFAULT_PATIENCE), |node| node.duration());
    Some(Room { sessions: sessions?, queue: queue?, patience: patience? })
}

/// What is spoken to an upstream that is a proxy.
fn proxy(table: &Table<'_>, kind: Option<Kind>, folder: &Path) -> Option<Proxy> {
    let (is_plain, is_sealed) = match kind {
        Some(Kind::Socks5 | Kind::Http) => (true, false),
        Some(Kind::Shadowsocks) => (false, true),
        Some(Kind::Tcp | Kind::Unix | Kind::Direct | Kind::Reject) | None => (false, false),
    };
    let has_password = is_plain || is_sealed;
    for (key, has_meaning, kinds) in [
        ("user", is_plain, "\"socks5\" and \"http\""),
        ("method", is_sealed, "\"shadowsocks\""),
        ("plugin", is_sealed, "\"shadowsocks\""),
        ("plugin_opts", is_sealed, "\"shadowsocks\""),
        ("password", has_password, "\"socks5\", \"http\" and \"shadowsocks\""),
        ("password_file", has_password, "\"socks5\", \"http\" and \"shadowsocks\""),
    ] {
        if let (false, Some(node)) = (has_meaning, table.get(key)) {
            node.report(format!("has a meaning for kind = {kinds} alone"), None);
        }
    }
    match kind {
        Some(Kind::Socks5) => Some(Proxy::Socks5(credentials(table, folder))),
        Some(Kind::Http) => Some(Proxy::Http(credentials(table, folder))),
        Some(Kind::Shadowsocks) => sealed::client(table, folder).map(Proxy::Shadowsocks),
        Some(Kind::Tcp | Kind::Unix | Kind::Direct | Kind::Reject) | None => None,
    }
}

/// What a proxy is told of who asks.
fn credentials(table: &Table<'_>, folder: &Path) -> Option<Arc<Credentials>> {
    let user = table.get("user");
    let password = match (table.get("password"), table.get("password_file")) {
        (Some(_), Some(file)) => {
            file.report("is given beside a password: one of them is enough", None);
            None
        }
        (Some(node), None) => node.string().map(|text| Zeroizing::new(text.to_owned())),
        (None, Some(file)) => secrets::password_file(&file, folder),
        (None, None) => {
            if let Some(user) = &user {
                user.report("has no password", Some("add password or password_file".to_owned()));
            }
            None
        }
    };
    let credentials = match (user, password) {
        (None, Some(_)) => {
            table.report("has a password and no user", None);
            None
        }
        (Some(node), Some(password)) => node.parsed(|user| Credentials::new(user, &password)),
        (Some(_) | None, None) => None,
    };
    credentials.map(Arc::new)
}

/// The upstream whose connections this one goes through.
fn via<'a>(table: &Table<'a>, endpoint: Option<&Endpoint>) -> Option<Node<'a>> {
    let via = table.get("via")?;
    match endpoint {
        Some(Endpoint::Unix(_) | Endpoint::Direct | Endpoint::Reject) => {
            via.report("has no meaning here: only an address or a name can be reached through a proxy", None);
        }
        Some(Endpoint::Address(_) | Endpoint::Name(..)) | None => {}
    }
    for key in sockets::UPSTREAM_KEYS {
        if let Some(node) = table.get(key) {
            let hint = "say it there".to_owned();
            node.report("has no meaning here: the connection is made to the upstream of via", Some(hint));
        }
    }
    Some(via)
}

fn endpoint(table: &Table<'_>, kind: Option<Kind>) -> Option<Endpoint> {
    if let Some(fixed @ (Kind::Direct | Kind::Reject)) = kind {
        if let Some(address) = table.get("address") {
            address.report("has no meaning here: this kind leads to no fixed endpoint", None);
        }
        return Some(if fixed == Kind::Direct { Endpoint::Direct } else { Endpoint::Reject });
    }
    let Some(node) = table.get("address") else {
        let hint = "an upstream has an address, or kind = \"direct\" or \"reject\"".to_owned();
        table.report("\"address\" is missing", Some(hint));
        return None;
    };
    let endpoint = node.parsed(parse_endpoint)?;
    let is_unix = matches!(endpoint, Endpoint::Unix(_));
    if kind == Some(Kind::Tcp) && is_unix || kind == Some(Kind::Unix) && !is_unix {
        let hint = "leave out kind: the address tells".to_owned();
        node.report("does not fit the kind of this upstream", Some(hint));
    }
    Some(endpoint)
}

fn group<'a>(name: &'a str, node: Node<'a>, checks: &Checks<'_>) -> Option<Declared<'a>> {
    is_name(name, &node);
    if matches!(name, "direct" | "reject") {
        node.report(
            format!("the name {name:?} stands for what is built in"),
            Some("choose another".to_owned()),
        );
    }
    let table = node.table(schema::GROUP)?;
    let policies = [
        ("round-robin", Policy::RoundRobin),
        ("random", Policy::Random),
        ("least-connections", Policy::LeastConnections),
        ("least-latency", Policy::LeastLatency),
        ("hash", Policy::Hash(HashKey::Source)),
        ("failover", Policy::Failover),
        ("select", Policy::Select),
        ("race", Policy::Race { stagger: Duration::ZERO, parallel: MAX_PARALLEL }),
    ];
    let mut policy =
        table.get("policy").and_then(|node| node.choice(&policies)).unwrap_or(Policy::RoundRobin);
    let members = table.required("members").and_then(|node| members(&node)).unwrap_or_default();
    let attempts = table.get("attempts").and_then(|node| node.integer(1..=MAX_ATTEMPTS));
    let attempt_timeout =
        table.get("attempt_timeout").and_then(|node| node.duration()).unwrap_or(DEFAULT_ATTEMPT);
    race(&table, &mut policy);
    hash(&table, &mut policy);
    let affinity = affinity(&table, policy);
    let commits =
        [("connect", Commit::Connect), ("handshake", Commit::Handshake), ("first-byte", Commit::FirstByte)];
    let commit = table.get("commit").and_then(|node| node.choice(&commits));
    let health = health::of_group(&table, policy, members.len());
    let on_down = table.get("on_down").and_then(|node| health::on_down(&node)).unwrap_or_default();
    let group = DeclaredGroup { policy, members, attempts, attempt_timeout, commit, affinity, on_down };
    let kind = DeclaredKind::Group(Box::new(group));
    Some(Declared {
        name,
        weight: weight(&table),
        check: check_of(&table, checks),
        outgoing: None,
        send_proxy: None,
        room: None,
        proxy: None,
        plugin: None,
        via: None,
        health,
        kind,
        node,
    })
}

/// The keys that only a race has.
fn race(table: &Table<'_>, policy: &mut Policy) {
    if let Policy::Race { stagger, parallel } = policy {
        let delay =
            table.get("stagger").and_then(|node| node.duration_from(Duration::ZERO..=LONGEST_STAGGER));
        *stagger = delay.unwrap_or(Duration::ZERO);
        let most = table.get("parallel").and_then(|node| node.integer(1..=MAX_PARALLEL));
        *parallel = most.unwrap_or(MAX_PARALLEL);
    } else {
        for node in ["stagger", "parallel"].into_iter().filter_map(|key| table.get(key)) {
            node.report("has a meaning for policy = \"race\" alone", None);
        }
    }
}

/// The key that only a hash has.
fn hash(table: &Table<'_>, policy: &mut Policy) {
    let Some(node) = table.get("key") else { return };
    if let Policy::Hash(key) = policy {
        *key = hash_key(&node).unwrap_or(*key);
    } else {
        node.report("has a meaning for policy = \"hash\" alone", None);
    }
}

/// A word, or a table that names a cookie or a key in the query.
fn hash_key(node: &Node<'_>) -> Option<HashKey> {
    if !node.is_table() {
        return node.choice(&[("source", HashKey::Source), ("destination", HashKey::Destination)]);
    }
    let table = node.table(schema::HASH_KEY)?;
    let name = |node: Node<'_>| node.parsed(FieldName::new);
    match (table.get("cookie"), table.get("query")) {
        (Some(node), None) => name(node).map(HashKey::Cookie),
        (None, Some(node)) => name(node).map(HashKey::Query),
        (Some(_), Some(_)) | (None, None) => {
            table.report("names one cookie or one query key", Some("key = { cookie = \"id\" }".to_owned()));
            None
        }
    }
}

/// What the group remembers of whom it served.
fn affinity(table: &Table<'_>, policy: Policy) -> Option<Settings> {
    let (sticky, remember) = (table.get("sticky"), table.get("remember"));
    if let (Some(_), Some(node)) = (&sticky, &remember) {
        node.report("is given beside sticky: one of them is enough", None);
    }
    if let Some(node) = &remember
        && policy != Policy::Failover
    {
        let hint = "sticky serves every policy".to_owned();
        node.report("has a meaning for policy = \"failover\" alone", Some(hint));
    }
    let (table, key, binding, ttl, size) = match (sticky, remember) {
        (Some(node), _) => {
            let table = node.table(schema::STICKY)?;
            let key = hash_key(&table.required("key")?)?;
            (table, key, Binding::AtPick, DEFAULT_STICKY, DEFAULT_STICKY_ENTRIES)
        }
        (None, Some(node)) => {
            let table = node.table(schema::REMEMBER)?;
            let key = HashKey::Destination;
            (table, key, Binding::AtCommit, DEFAULT_REMEMBER, DEFAULT_REMEMBER_ENTRIES)
        }
        (None, None) => return None,
    };
    let ttl = table.get("ttl").and_then(|node| node.duration_from(SHORTEST_TTL..=LONGEST_TTL)).unwrap_or(ttl);
    let size = table.get("size").and_then(|node| node.integer(1..=MAX_ENTRIES)).unwrap_or(size);
    let size = NonZeroUsize::new(size as usize)?;
    Some(Settings { key, ttl, size, binding })
}

fn members<'a>(node: &Node<'a>) -> Option<Vec<DeclaredMember<'a>>> {
    let nodes = node.list()?;
    if nodes.is_empty() {
        node.report("is empty: a group has at least one member", None);
    }
    let members: Vec<_> = nodes.into_iter().filter_map(member).collect();
    let mut seen: Vec<&str> = Vec::new();
    for member in &members {
        let Some(name) = member.name.string() else { continue };
        if seen.contains(&name) {
            let hint = "for a larger share give it a weight".to_owned();
            member.name.report(format!("{name:?} is a member already"), Some(hint));
        }
        seen.push(name);
    }
    if !members.is_empty() && members.iter().all(|member| member.role == Role::Backup) {
        node.report("has backups alone: there is nobody whom they would stand in for", None);
    }
    Some(members)
}

/// A name, or a table that says more.
fn member(node: Node<'_>) -> Option<DeclaredMember<'_>> {
    if !node.is_table() {
        return Some(DeclaredMember { name: node, weight: None, role: Role::Primary });
    }
    let table = node.table(schema::MEMBER)?;
    let name = table.required("target")?;
    let weight = table.get("weight").and_then(|node| node.integer(1..=MAX_WEIGHT));
    let role = match table.get("backup").and_then(|node| node.boolean()) {
        Some(true) => Role::Backup,
        Some(false) | None => Role::Primary,
    };
    Some(DeclaredMember { name, weight, role })
}

fn weight(table: &Table<'_>) -> u32 {
    table.get("weight").and_then(|node| node.integer(1..=MAX_WEIGHT)).unwrap_or(1)
}

fn check_of(table: &Table<'_>, checks: &Checks<'_>) -> Option<Arc<Check>> {
    let node = table.get("check")?;
    let name = node.string()?;
    let check = checks.get(name);
    if check.is_none() {
        let hint = did_you_mean(name, checks.keys().copied());
        let hint = hint.unwrap_or_else(|| format!("declare it: [check.{name}]"));
        node.report(format!("there is no check {name:?}"), Some(hint));
    }
    check.cloned()
}

/// Names stand in logs, metrics and URLs: no spaces, quotes or control characters.
pub(crate) fn is_name(name: &str, node: &Node<'_>) {
    let is_sound = !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name.chars().all(|character| {
            !character.is_whitespace() && !character.is_control() && !matches!(character, '"' | '\'' | '\\')
        });
    if !is_sound {
        node.report(
            format!("{name:?} is no name"),
            Some(format!("1 to {MAX_NAME_BYTES} bytes without spaces, quotes and backslashes")),
        );
    }
}
