//! The options of sockets: of the connections to an upstream, and of listeners.

use std::net::IpAddr;
use std::time::Duration;

use ringweir_flow::outgoing::{Keepalive, Outgoing, StreamProtocol};
use ringweir_socket::{IS_LINUX, Listening};

use super::reader::{Node, Table};
use super::schema;
use crate::model::{BindAddress, Endpoint};

/// The longest name of an interface: IFNAMSIZ has 16 bytes, one for the final NUL.
const MAX_INTERFACE_BYTES: usize = 15;

/// The most source addresses. Each is good for some 28,000 connections to one endpoint at a time.
const MAX_SOURCES: usize = 64;

/// Linux takes 32,767 s (MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, net/tcp.h); no system takes less.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(9 * 3600);
/// MAX_TCP_KEEPCNT of net/tcp.h.
const MOST_PROBES: u32 = 127;

/// Longer than any client that means to speak waits.
const LONGEST_DEFERRAL: Duration = Duration::from_secs(300);

/// The longest queue that listen(2) and TCP_FASTOPEN are asked for.
const LONGEST_QUEUE: u32 = 65_535;

/// The keys that only TCP has a meaning for.
pub(super) const UPSTREAM_KEYS: &[&str] =
    &["source", "transparent", "interface", "mark", "keepalive", "mptcp"];
const LISTENER_KEYS: &[&str] = &["interface", "keepalive", "mptcp", "fast_open", "defer_accept"];

/// The keys of options that only Linux has.
const OF_LINUX: &[&str] = &["interface", "mark", "mptcp", "fast_open", "defer_accept", "transparent"];

/// What is special about the connections to an upstream; `None` where nothing is.
pub(crate) fn outgoing(table: &Table<'_>, endpoint: &Endpoint) -> Option<Outgoing> {
    let why_not = match endpoint {
        Endpoint::Address(_) | Endpoint::Name(..) | Endpoint::Direct => None,
        Endpoint::Unix(_) => Some("has no meaning for a Unix socket"),
        Endpoint::Reject => Some("has no meaning here: nothing is dialled"),
    };
    report_misplaced(table, UPSTREAM_KEYS, why_not);
    let transparent = table.get("transparent").and_then(|node| {
        if table.get("source").is_some() {
            node.report("is given beside source: connections come from one or the other", None);
        }
        node.boolean()
    });
    let outgoing = Outgoing {
        transparent: transparent.unwrap_or(false),
        sources: table.get("source").map(|node| sources(&node, endpoint)).unwrap_or_default(),
        interface: table.get("interface").and_then(|node| interface(&node)),
        mark: table.get("mark").and_then(|node| node.integer(1..=u32::MAX)),
        keepalive: table.get("keepalive").and_then(|node| keepalive(&node)),
        protocol: protocol(table),
    };
    (outgoing != Outgoing::default()).then_some(outgoing)
}

/// What is special about the sockets of a listener.
pub(crate) fn listening(table: &Table<'_>, binds: &[(BindAddress, Node<'_>)]) -> Listening {
    let is_unix = |(bind, _): &(BindAddress, Node<'_>)| matches!(bind, BindAddress::Unix(_));
    let is_unix_alone = !binds.is_empty() && binds.iter().all(is_unix);
    report_misplaced(table, LISTENER_KEYS, is_unix_alone.then_some("has no meaning for Unix sockets"));
    let queue = |key| table.get(key).and_then(|node| node.integer(1..=LONGEST_QUEUE));
    Listening {
        interface: table.get("interface").and_then(|node| interface(&node)),
        keepalive: table.get("keepalive").and_then(|node| keepalive(&node)),
        protocol: protocol(table),
        fast_open: queue("fast_open"),
        defer_accept: table.get("defer_accept").and_then(|node| whole_seconds(&node, LONGEST_DEFERRAL)),
        backlog: queue("backlog"),
        transparent: false,
    }
}

fn report_misplaced(table: &Table<'_>, keys: &[&'static str], why_not: Option<&str>) {
    for key in keys {
        let Some(node) = table.get(key) else { continue };
        if let Some(why) = why_not {
            node.report(why, None);
        } else if !IS_LINUX && OF_LINUX.contains(key) {
            node.report("is of Linux: this system has nothing like it", None);
        }
    }
}

fn sources(node: &Node<'_>, endpoint: &Endpoint) -> Vec<IpAddr> {
    let nodes = node.one_or_more();
    if nodes.is_empty() || nodes.len() > MAX_SOURCES {
        node.report(format!("has 1 to {MAX_SOURCES} addresses, not {}", nodes.len()), None);
    }
    let mut sources: Vec<IpAddr> = Vec::new();
    for one in &nodes {
        let parse = |text: &str| {
            let address = text.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified());
            address.ok_or("is no address to come from: write it as 192.0.2.1 or 2001:db8::1, without a port")
        };
        let Some(address) = one.parsed(parse) else { continue };
        if sources.contains(&address) {
            one.report(format!("{address} is in the list already"), None);
        }
        sources.push(address);
    }
    if let Endpoint::Address(endpoint) = endpoint
        && !sources.is_empty()
        && sources.iter().all(|source| source.is_ipv4() != endpoint.is_ipv4())
    {
        let family = if endpoint.is_ipv4() { "IPv4" } else { "IPv6" };
        node.report(format!("has no {family} address, and {endpoint} can be reached from no other"), None);
    }
    sources
}

fn interface(node: &Node<'_>) -> Option<Box<str>> {
    let name = node.string()?;
    let is_sound = !name.is_empty()
        && name.len() <= MAX_INTERFACE_BYTES
        && !name
            .contains(|character: char| character == '/' || character == '\0' || character.is_whitespace());
    if !is_sound {
        let hint = format!("1 to {MAX_INTERFACE_BYTES} bytes without spaces and slashes, like \"eth1\"");
        node.report(format!("{name:?} is no name of an interface"), Some(hint));
    }
    is_sound.then(|| name.into())
}

fn protocol(table: &Table<'_>) -> StreamProtocol {
    match table.get("mptcp").and_then(|node| node.boolean()) {
        Some(true) => StreamProtocol::Mptcp,
        Some(false) | None => StreamProtocol::Tcp,
    }
}

/// One time, or a table with all three.
fn keepalive(node: &Node<'_>) -> Option<Keepalive> {
    if !node.is_table() {
        let idle = whole_seconds(node, LONGEST_KEEPALIVE)?;
        return Some(Keepalive { idle, interval: None, count: None });
    }
    let table = node.table(schema::KEEPALIVE)?;
    let time = |node: Node<'_>| whole_seconds(&node, LONGEST_KEEPALIVE);
    let (interval, count) = (table.get("interval"), table.get("count"));
    Some(Keepalive {
        idle: table.required("idle").and_then(time)?,
        interval: interval.and_then(time),
        count: count.and_then(|node| node.integer(1..=MOST_PROBES)),
    })
}

/// A time that the kernel takes in seconds.
fn whole_seconds(node: &Node<'_>, longest: Duration) -> Option<Duration> {
    let time = node.duration_from(Duration::from_secs(1)..=longest)?;
    if time.subsec_nanos() != 0 {
        node.report("is a whole number of seconds: the kernel counts no fractions of this one", None);
        return None;
    }
    Some(time)
}
