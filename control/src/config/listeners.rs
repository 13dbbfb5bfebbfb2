//! The listeners: what each says for itself, and then what it means together with the targets.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use ringweir_flow::access::Access;
use ringweir_flow::pace::{Rate, Rates};
use ringweir_flow::reach::Reach;
use ringweir_flow::rules::Networks;
use ringweir_flow::snapshot::{Protocol, TargetIndex, Timeouts};
use ringweir_flow::users::Users;
use ringweir_flow::wire::shadowsocks::Server;
use ringweir_socket::Listening;

use super::address::parse_bind;
use super::graph::Graph;
use super::reader::{Node, Table};
use super::rules::RulesNeed;
use super::targets::is_name;
use super::{schema, sealed, secrets, sections, sockets};
use crate::model::{BindAddress, Listener, Plugin};

/// A listener before its target is known.
#[derive(Debug)]
pub(crate) struct RawListener<'a> {
    table: Table<'a>,
    pub(crate) name: &'a str,
    binds: Vec<(BindAddress, Node<'a>)>,
    /// `tcp` where what is said is none.
    pub(crate) protocol: Protocol,
    is_misspelt: bool,
    pub(crate) target: Option<Node<'a>>,
    users: Option<Arc<Users>>,
    access: Option<Arc<Access>>,
    trusted: Option<Arc<Networks>>,
    shadowsocks: Option<Arc<Server>>,
    plugin: Option<(Plugin, SocketAddr)>,
    peek: Peek,
    allow_local: Arc<[IpNet]>,
    max_sessions: (Option<u64>, Option<u32>),
    max_new: (Option<Rate>, Option<Rate>),
    rates: (Rates, Rates),
    timeouts: Timeouts,
    socket: Listening,
}

/// Whether what clients say first is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peek {
    /// Where somebody goes by it.
    AsNeeded,
    Never,
    Within(Duration),
}

/// How long is waited for what clients say first unless configured otherwise: clients that let the server speak first
/// wait that long.
const DEFAULT_PEEK: Duration = Duration::from_secs(1);

/// With less, one receive would keep a session waiting for a quarter of a minute.
const SLOWEST_BYTES: u64 = 1024;

/// The words for what a listener speaks.
pub(crate) const PROTOCOLS: &[(&str, Protocol)] = &[
    ("tcp", Protocol::Tcp),
    ("redirect", Protocol::Redirect),
    ("tproxy", Protocol::Tproxy),
    ("socks", Protocol::Socks),
    ("socks5", Protocol::Socks5),
    ("http", Protocol::Http),
    ("mixed", Protocol::Mixed),
    ("shadowsocks", Protocol::Shadowsocks),
];

/// Reads every listener.
pub(crate) fn read<'a>(root: &Table<'a>, defaults: Timeouts, folder: &Path) -> Vec<RawListener<'a>> {
    let Some(node) = root.get("listener") else { return Vec::new() };
    let Some(list) = node.list() else { return Vec::new() };
    let listeners: Vec<RawListener<'a>> =
        list.iter().filter_map(|node| listener(node, defaults, folder)).collect();
    report_twins(&listeners);
    listeners
}

fn listener<'a>(node: &Node<'a>, defaults: Timeouts, folder: &Path) -> Option<RawListener<'a>> {
    let table = node.table(schema::LISTENER)?;
    let name_node = table.required("name");
    let name = name_node.as_ref().and_then(Node::string).unwrap_or_default();
    if let Some(node) = name_node.filter(Node::is_string) {
        is_name(name, &node);
    }
    let protocol = table.get("protocol").map(|node| node.choice(PROTOCOLS));
    let binds = table.required("bind").map(|node| binds(&node)).unwrap_or_default();
    let (users, shadowsocks) = who_may(&table, protocol.flatten(), folder);
    let is_diverted = matches!(protocol, Some(Some(Protocol::Redirect | Protocol::Tproxy)));
    if let (true, Some(node)) = (is_diverted, table.get("protocol")) {
        report_undivertible(&node, &binds);
    }
    if is_diverted || protocol.is_none_or(|protocol| protocol == Some(Protocol::Tcp)) {
        let of_proxies: &[&str] = &["users", "users_file", "allow_local"];
        for key in if is_diverted { &of_proxies[..2] } else { of_proxies } {
            if let Some(node) = table.get(key) {
                let hint = "protocol = \"socks\", \"socks5\", \"http\" or \"mixed\"".to_owned();
                let why = match is_diverted {
                    true => "has no meaning here: these clients speak to nobody but their destination",
                    false => "has no meaning where the protocol is tcp",
                };
                node.report(why, Some(hint));
            }
        }
    }
    let timeouts = match table.get("timeouts").and_then(|node| node.table(schema::LISTENER_TIMEOUTS)) {
        Some(overrides) => sections::session_timeouts(&overrides, defaults),
        None => defaults,
    };
    Some(RawListener {
        target: table.required("target"),
        max_sessions: (
            table.get("max_sessions").and_then(|node| node.integer(1..=u32::MAX)).map(u64::from),
            table.get("max_sessions_per_source").and_then(|node| node.integer(1..=u32::MAX)),
        ),
        max_new: (events(&table, "max_new_per_second"), events(&table, "max_new_per_second_per_source")),
        rates: (
            Rates { up: bytes(&table, "rate_up"), down: bytes(&table, "rate_down") },
            Rates { up: bytes(&table, "rate_up_per_source"), down: bytes(&table, "rate_down_per_source") },
        ),
        allow_local: table.get("allow_local").map(|node| networks(&node)).unwrap_or_default(),
        protocol: protocol.flatten().unwrap_or(Protocol::Tcp),
        is_misspelt: protocol == Some(None),
        socket: Listening {
            transparent: protocol.flatten() == Some(Protocol::Tproxy),
            ..sockets::listening(&table, &binds)
        },
        access: access(&table),
        trusted: trusted(&table, &binds),
        peek: peek(&table, protocol.flatten().unwrap_or(Protocol::Tcp)),
        plugin: match protocol.flatten() == Some(Protocol::Shadowsocks) {
            true => sealed::plugin_of_listener(&table, name, &binds, folder),
            false => None,
        },
        table,
        name,
        binds,
        users,
        shadowsocks,
        timeouts,
    })
}

/// What the system gives to us comes over TCP, and is of Linux.
fn report_undivertible(node: &Node<'_>, binds: &[(BindAddress, Node<'_>)]) {
    if !ringweir_socket::IS_LINUX {
        node.report("is of Linux: this system has nothing like it", None);
    }
    for (bind, node) in binds.iter().filter(|(bind, _)| matches!(bind, BindAddress::Unix(_))) {
        node.report(format!("{bind} gets no connections that were going elsewhere"), None);
    }
}

fn binds<'a>(node: &Node<'a>) -> Vec<(BindAddress, Node<'a>)> {
    let nodes = node.one_or_more();
    if nodes.is_empty() {
        node.report("is empty: a listener has at least one address", None);
    }
    nodes.into_iter().filter_map(|node| Some((node.parsed(parse_bind)?, node))).collect()
}

pub(crate) fn networks(node: &Node<'_>) -> Arc<[IpNet]> {
    let network = |text: &str| {
        let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
        address.or_else(|_| text.parse()).map_err(|_| "is no network: write it as 10.0.0.0/8 or fd00::/8")
    };
    node.one_or_more().iter().filter_map(|node| node.parsed(network)).collect()
}

/// Whether what clients say first is to be looked at.
fn peek(table: &Table<'_>, protocol: Protocol) -> Peek {
    let Some(node) = table.get("peek") else { return Peek::AsNeeded };
    if protocol != Protocol::Tcp {
        node.report("has a meaning for protocol = \"tcp\" alone", None);
    }
    if !node.is_table() {
        return match node.boolean() {
            Some(true) => Peek::Within(DEFAULT_PEEK),
            Some(false) => Peek::Never,
            None => Peek::AsNeeded,
        };
    }
    let timeout = node.table(schema::PEEK).and_then(|table| table.get("timeout"));
    Peek::Within(timeout.and_then(|node| node.duration()).unwrap_or(DEFAULT_PEEK))
}

/// Where clients may come from, where something is said of it.
fn access(table: &Table<'_>) -> Option<Arc<Access>> {
    let (allow, deny) = (table.get("allow"), table.get("deny"));
    if let Some(node) = allow.as_ref().filter(|node| node.one_or_more().is_empty()) {
        node.report("lets nobody in", Some("leave it out to let everybody in".to_owned()));
    }
    let set = |node: &Node<'_>| networks(node).iter().copied().collect();
    let is_said = allow.is_some() || deny.is_some();
    is_said.then(|| {
        let deny = deny.as_ref().map(set).unwrap_or_default();
        Arc::new(Access { allow: allow.as_ref().map(set), deny })
    })
}

/// The proxies in front that say who the client is.
fn trusted(table: &Table<'_>, binds: &[(BindAddress, Node<'_>)]) -> Option<Arc<Networks>> {
    let table = table.get("proxy_protocol")?.table(schema::PROXY_PROTOCOL)?;
    let node = table.get("trusted");
    let trusted = node.as_ref().map(networks).unwrap_or_default();
    let is_tcp = |(bind, _): &(BindAddress, Node<'_>)| !matches!(bind, BindAddress::Unix(_));
    if trusted.is_empty() && binds.iter().any(is_tcp) && node.is_none_or(|node| node.one_or_more().is_empty())
    {
        let hint = "name the proxies in front: trusted = [\"10.0.0.0/8\"]".to_owned();
        table.report("trusts nobody, so that nobody could connect", Some(hint));
    }
    Some(Arc::new(trusted.iter().copied().collect()))
}

/// Whom a listener lets in: by name, or by key.
fn who_may(
    table: &Table<'_>,
    protocol: Option<Protocol>,
    folder: &Path,
) -> (Option<Arc<Users>>, Option<Arc<Server>>) {
    if protocol == Some(Protocol::Shadowsocks) {
        if let Some(node) = table.get("users_file") {
            node.report("has no meaning here", Some("users = { name = \"key\" }".to_owned()));
        }
        return (None, sealed::server(table, folder));
    }
    for node in sealed::KEYS.iter().filter_map(|key| table.get(key)) {
        node.report("has a meaning for protocol = \"shadowsocks\" alone", None);
    }
    (users(table, folder), None)
}

fn users(table: &Table<'_>, folder: &Path) -> Option<Arc<Users>> {
    match (table.get("users"), table.get("users_file")) {
        (Some(_), Some(file)) => {
            file.report("the users are given twice", Some("keep users or users_file".to_owned()));
            None
        }
        (Some(node), None) => secrets::users(&node),
        (None, Some(node)) => secrets::users_file(&node, folder),
        (None, None) => None,
    }
}

/// So many in a second.
fn events(table: &Table<'_>, key: &'static str) -> Option<Rate> {
    table.get(key)?.integer(1..=u32::MAX).and_then(|count| Rate::new(u64::from(count)))
}

/// So many bytes in a second.
fn bytes(table: &Table<'_>, key: &'static str) -> Option<Rate> {
    table.get(key)?.parsed(parse_bytes).and_then(Rate::new)
}

/// A number of bytes, as `"500KiB"`, `"10MiB"`, `"1GiB"`, or of kB, MB, GB; at least [`SLOWEST_BYTES`].
fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    const WANTED: &str =
        "wants a number of bytes with its unit, B, kB, MB, GB, KiB, MiB or GiB: \"10MiB\", \"500kB\"";
    let named = UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)));
    let (number, unit) = named.ok_or(WANTED)?;
    let number = number.trim();
    if !number.bytes().all(|byte| byte.is_ascii_digit()) && unit == 1 {
        // "10KB" and "10mb" end in a B as well.
        return Err(WANTED.to_owned());
    }
    let number: u64 = number.parse().map_err(|_| format!("{number:?} is no whole number"))?;
    match number.checked_mul(unit) {
        Some(bytes) if bytes >= SLOWEST_BYTES => Ok(bytes),
        Some(_) => Err(format!("is too slow: {SLOWEST_BYTES} bytes a second are the least")),
        None => Err("is more than can be counted".to_owned()),
    }
}

/// Reports names and addresses that are given twice.
fn report_twins(listeners: &[RawListener<'_>]) {
    let mut binds: Vec<(&BindAddress, &str)> = Vec::new();
    for (index, listener) in listeners.iter().enumerate() {
        if !listener.name.is_empty() && listeners[..index].iter().any(|other| other.name == listener.name) {
            listener.table.report(format!("the name {:?} is taken by another listener", listener.name), None);
        }
        for (bind, node) in &listener.binds {
            if let Some((other, owner)) = binds.iter().find(|(other, _)| bind.collides_with(other)) {
                node.report(format!("{bind} is taken: listener {owner:?} is bound to {other}"), None);
            }
            binds.push((bind, listener.name));
        }
    }
}

/// Joins listeners with their targets and judges what they let strangers do.
pub(crate) fn judge(raw: Vec<RawListener<'_>>, graph: &Graph, rules: &[RulesNeed]) -> Vec<Listener> {
    raw.into_iter().zip(rules).map(|(raw, need)| judge_one(raw, graph, *need)).collect()
}

fn judge_one(raw: RawListener<'_>, graph: &Graph, need: RulesNeed) -> Listener {
    let target = raw.target.as_ref().and_then(|node| graph.find(node));
    match raw.protocol {
        // What is misspelt may have been meant to be another.
        Protocol::Tcp if raw.is_misspelt => {}
        Protocol::Tcp => report_no_destination(&raw, target, graph),
        Protocol::Socks | Protocol::Socks5 | Protocol::Http | Protocol::Mixed => report_open_relay(&raw),
        // They lead nowhere but where the client was going, as the rules of the system's own filter let it.
        Protocol::Redirect | Protocol::Tproxy => {}
        // Nobody is served there who has no key.
        Protocol::Shadowsocks => {}
    }
    let peek = judge_peek(&raw, target, graph, need);
    let reach = if raw.binds.iter().all(|(bind, _)| bind.is_local()) {
        Reach::Anywhere
    } else {
        Reach::NotLocal { allowed: raw.allow_local }
    };
    Listener {
        name: raw.name.into(),
        binds: match &raw.plugin {
            // Whoever connects there is the plugin.
            Some(_) => vec![BindAddress::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))],
            None => raw.binds.into_iter().map(|(bind, _)| bind).collect(),
        },
        plugin: raw.plugin,
        protocol: raw.protocol,
        target: target.unwrap_or(TargetIndex(0)),
        users: raw.users,
        access: raw.access,
        shadowsocks: raw.shadowsocks,
        max_sessions: raw.max_sessions,
        max_new: raw.max_new,
        rates: raw.rates,
        trusted: raw.trusted,
        peek,
        reach,
        timeouts: raw.timeouts,
        socket: raw.socket,
    }
}

/// Whether, and how long, what clients say first is waited for.
fn judge_peek(
    raw: &RawListener<'_>,
    target: Option<TargetIndex>,
    graph: &Graph,
    need: RulesNeed,
) -> Option<Duration> {
    let path = target.and_then(|target| graph.path_to_peek(target));
    let way = path.as_ref().map_or_else(String::new, |path| path.join(" -> "));
    if let (Some(node), Some(_)) = (&raw.target, &path) {
        match (raw.protocol, raw.peek) {
            (Protocol::Tcp, Peek::AsNeeded | Peek::Within(_)) => {}
            (Protocol::Tcp, Peek::Never) => {
                let hint = "leave out peek = false".to_owned();
                node.report(format!("leads to {way}, which goes by what clients say first"), Some(hint));
            }
            (
                Protocol::Redirect
                | Protocol::Tproxy
                | Protocol::Socks
                | Protocol::Socks5
                | Protocol::Http
                | Protocol::Mixed
                | Protocol::Shadowsocks,
                _,
            ) => {
                let hint = "only at protocol = \"tcp\" is that looked at".to_owned();
                node.report(format!("leads to {way}, which goes by what clients say first"), Some(hint));
            }
        }
    }
    match raw.peek {
        Peek::AsNeeded => (path.is_some() || need == RulesNeed::Peek).then_some(DEFAULT_PEEK),
        Peek::Never => None,
        Peek::Within(timeout) => Some(timeout),
    }
}

fn report_no_destination(raw: &RawListener<'_>, target: Option<TargetIndex>, graph: &Graph) {
    let (Some(node), Some(path)) = (&raw.target, target.and_then(|target| graph.path_to_destination(target)))
    else {
        return;
    };
    let last = path.last().unwrap_or(&"direct");
    let way = if path.len() > 1 { format!(" ({})", path.join(" -> ")) } else { String::new() };
    node.report(
        format!("leads to {last}{way}, and clients of a tcp listener name no destination"),
        Some("protocol = \"mixed\" understands SOCKS and HTTP clients, which do".to_owned()),
    );
}

fn report_open_relay(raw: &RawListener<'_>) {
    if raw.users.is_some() || raw.table.get("allow").is_some() || raw.table.get("users_file").is_some() {
        return;
    }
    for (bind, node) in raw.binds.iter().filter(|(bind, _)| !bind.is_local()) {
        node.report(
            format!("would be an open relay: {bind} can be reached from other machines, by anybody"),
            Some("name who may use it with users, or from where with allow = [\"10.0.0.0/8\"]".to_owned()),
        );
    }
}
