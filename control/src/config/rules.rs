//! The rules: what each says for itself, and then what it means together with listeners and targets.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ringweir_flow::rules::names::{Builder, NameSet, Reach};
use ringweir_flow::rules::{Action, Code, Condition, Domains, MAX_RULES, NamedList, Origins};
use ringweir_flow::snapshot::{ListenerIndex, Protocol, TargetIndex};

use super::diagnostic::did_you_mean;
use super::graph::Graph;
use super::listeners::{RawListener, networks};
use super::reader::{Node, Table};
use super::schema;
use super::targets::is_name;
use crate::model::{CountryFile, ListFile, Rule};

/// The longest name that ALPN has room for (RFC 7301, section 3.1).
const MAX_PROTOCOL_BYTES: usize = 255;

/// A rule before its names are joined.
#[derive(Debug)]
pub(crate) struct RawRule<'a> {
    table: Table<'a>,
    name: String,
    pub(crate) target: Option<Node<'a>>,
    action: Option<Action>,
    conditions: Vec<Condition>,
}

/// What the rules need to know of the sessions of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RulesNeed {
    /// What is known anyway.
    #[default]
    Nothing,
    /// What clients say first.
    Peek,
}

/// The files that rules may go by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Files<'f> {
    pub(crate) lists: &'f [ListFile],
    pub(crate) countries: Option<&'f CountryFile>,
}

/// Reads every rule.
pub(crate) fn read<'a>(root: &Table<'a>, files: Files<'_>) -> Vec<RawRule<'a>> {
    let Some(node) = root.get("rule") else { return Vec::new() };
    let Some(list) = node.list() else { return Vec::new() };
    if list.len() > MAX_RULES {
        node.report(format!("are {} rules; {MAX_RULES} are the most", list.len()), None);
        return Vec::new();
    }
    let rules: Vec<RawRule<'a>> =
        list.iter().enumerate().filter_map(|(index, node)| rule(index, node, files)).collect();
    let mut names = HashSet::new();
    for rule in rules.iter().filter(|rule| !rule.name.is_empty()) {
        if !names.insert(rule.name.as_str()) {
            rule.table.report(format!("the name {:?} is taken by another rule", rule.name), None);
        }
    }
    rules
}

fn rule<'a>(index: usize, node: &Node<'a>, files: Files<'_>) -> Option<RawRule<'a>> {
    let table = node.table(schema::RULE)?;
    let name = match table.get("name") {
        Some(node) => {
            let name = node.string().unwrap_or_default();
            if node.is_string() {
                is_name(name, &node);
            }
            name.to_owned()
        }
        None => format!("rule-{}", index + 1),
    };
    let (target, action) = (table.get("target"), table.get("action"));
    match (&target, &action) {
        (Some(_), Some(action)) => {
            action.report("is said beside a target", Some("keep target or action".to_owned()));
        }
        (None, None) => {
            let hint = "target = \"NAME\", action = \"reject\" or action = \"drop\"".to_owned();
            table.report("says nothing of what becomes of a session", Some(hint));
        }
        (Some(_), None) | (None, Some(_)) => {}
    }
    let actions = [("reject", Action::Reject), ("drop", Action::Drop)];
    let action = action.and_then(|node| node.choice(&actions));
    let conditions = conditions(&table, files);
    Some(RawRule { table, name, target, action, conditions })
}

/// All but the listeners, whose places are not known yet. Cheap conditions stand first.
fn conditions(table: &Table<'_>, files: Files<'_>) -> Vec<Condition> {
    let mut conditions = Vec::new();
    conditions.extend(values(table, "port").map(|nodes| {
        let ports: Vec<RangeInclusive<u16>> = nodes.iter().filter_map(ports).collect();
        Condition::Port(ports.into())
    }));
    conditions.extend(values(table, "user").map(|nodes| {
        let users: Vec<Arc<str>> = nodes.iter().filter_map(|node| node.string().map(Arc::from)).collect();
        Condition::User(users.into())
    }));
    let in_networks = |key| {
        let networks = values(table, key)?.iter().flat_map(|node| networks(node).to_vec()).collect();
        Some(Arc::new(networks))
    };
    conditions.extend(in_networks("source").map(Condition::Source));
    conditions.extend(in_networks("destination").map(Condition::Destination));
    conditions.extend(domains(table).map(|domains| Condition::Domain(Arc::new(domains))));
    conditions.extend(servers(table, "sni").map(Condition::Sni));
    conditions.extend(values(table, "alpn").map(|nodes| {
        let protocols: Vec<Box<[u8]>> = nodes.iter().filter_map(protocol).collect();
        Condition::Alpn(protocols.into())
    }));
    conditions.extend(servers(table, "host").map(Condition::Host));
    conditions.extend(values(table, "path").map(|nodes| {
        let prefix = |node: &Node<'_>| {
            let text = node.string()?;
            if !text.starts_with('/') {
                node.report(format!("{text:?} is no beginning of a path: it starts with /"), None);
            }
            Some(Arc::from(text))
        };
        Condition::Path(nodes.iter().filter_map(prefix).collect())
    }));
    conditions.extend(origins(table, "country", files).map(Condition::Country));
    conditions.extend(origins(table, "source_country", files).map(Condition::SourceCountry));
    conditions.extend(values(table, "list").map(|nodes| {
        Condition::List(nodes.iter().filter_map(|node| named_list(node, files.lists)).collect())
    }));
    conditions
}

fn origins(table: &Table<'_>, key: &'static str, files: Files<'_>) -> Option<Origins> {
    let nodes = values(table, key)?;
    let Some(file) = files.countries else {
        let hint = "name a MaxMind file: [country] file = \"GeoLite2-Country.mmdb\"".to_owned();
        table.get(key)?.report("nothing says which country an address is in", Some(hint));
        return None;
    };
    let code =
        |node: &Node<'_>| node.parsed(|text| Code::parse(text).ok_or("is no country: write it as \"DE\""));
    let codes: Vec<Code> = nodes.iter().filter_map(code).collect();
    Some(Origins { countries: Arc::clone(&file.content), codes: codes.into() })
}

fn named_list(node: &Node<'_>, lists: &[ListFile]) -> Option<NamedList> {
    let name = node.string()?;
    let found = lists.iter().find(|list| *list.name == *name);
    if found.is_none() {
        let hint = did_you_mean(name, lists.iter().map(|list| &*list.name));
        let hint = hint.unwrap_or_else(|| format!("declare it: [list.{name}]"));
        node.report(format!("there is no list {name:?}"), Some(hint));
    }
    found.map(|list| NamedList { name: Arc::clone(&list.name), content: Arc::clone(&list.content) })
}

/// The values of a condition, at least one.
fn values<'a>(table: &Table<'a>, key: &'static str) -> Option<Vec<Node<'a>>> {
    let node = table.get(key)?;
    let values = node.one_or_more();
    if values.is_empty() {
        node.report("is empty: no session could meet it", Some("leave it out".to_owned()));
    }
    Some(values)
}

/// A port as a number, or ports as `"8000-8999"`.
fn ports(node: &Node<'_>) -> Option<RangeInclusive<u16>> {
    if !node.is_string() {
        let port = u16::try_from(node.integer(1..=u32::from(u16::MAX))?).ok()?;
        return Some(port..=port);
    }
    let text = node.string()?;
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let ports = from.trim().parse().ok().zip(to.trim().parse().ok());
    let ports = ports.map(|(from, to)| from..=to).filter(|ports| *ports.start() > 0 && !ports.is_empty());
    if ports.is_none() {
        node.report(format!("{text:?} is no range of ports: write it as \"8000-8999\""), None);
    }
    ports
}

/// The name of a protocol as a ClientHello offers it.
fn protocol(node: &Node<'_>) -> Option<Box<[u8]>> {
    let text = node.string()?;
    if text.is_empty() || text.len() > MAX_PROTOCOL_BYTES {
        let most = MAX_PROTOCOL_BYTES;
        node.report(format!("{text:?} is no name of a protocol: it has 1 to {most} bytes"), None);
    }
    Some(text.as_bytes().into())
}

/// The four keys about names are one condition.
fn domains(table: &Table<'_>) -> Option<Domains> {
    let keys = ["domain", "domain_suffix", "domain_keyword", "domain_regex"];
    let [exact, suffixes, keywords, regexes] = keys.map(|key| values(table, key));
    if [&exact, &suffixes, &keywords, &regexes].iter().all(|values| values.is_none()) {
        return None;
    }
    let mut names = Builder::default();
    for (nodes, reach) in [(&exact, Reach::Itself), (&suffixes, Reach::Whole)] {
        for node in nodes.iter().flatten() {
            let Some(text) = node.string() else { continue };
            let name = match reach {
                Reach::Whole => text.strip_prefix('.').unwrap_or(text),
                Reach::Itself | Reach::Below => text,
            };
            if let Err(error) = names.add(name, reach) {
                node.report(format!("{text:?} {error}"), None);
            }
        }
    }
    let keywords = judged(&keywords, |text| Domains::new(Builder::default(), &[text], &[]).err());
    let regexes = judged(&regexes, |text| Domains::new(Builder::default(), &[], &[text]).err());
    match Domains::new(names, &keywords, &regexes) {
        Ok(domains) => Some(domains),
        Err(error) => {
            // Each for itself is sound: all of them together are too large.
            table.report(format!("the patterns together: {error}"), None);
            None
        }
    }
}

/// Texts that are sound each for itself.
fn judged<E: ToString>(nodes: &Option<Vec<Node<'_>>>, judge: impl Fn(String) -> Option<E>) -> Vec<String> {
    let sound = |node: &Node<'_>| {
        let text = node.string()?;
        match judge(text.to_owned()) {
            Some(error) => {
                node.report(format!("{text:?} {}", error.to_string()), None);
                None
            }
            None => Some(text.to_owned()),
        }
    };
    nodes.iter().flatten().filter_map(sound).collect()
}

/// Servers by name; `*.` stands for any name below.
fn servers(table: &Table<'_>, key: &'static str) -> Option<Arc<NameSet>> {
    let mut names = Builder::default();
    for node in values(table, key)? {
        let Some(text) = node.string() else { continue };
        let (name, reach) = match text.strip_prefix("*.") {
            Some(below) => (below, Reach::Below),
            None => (text, Reach::Itself),
        };
        if let Err(error) = names.add(name, reach) {
            node.report(format!("{text:?} {error}"), None);
        }
    }
    Some(Arc::new(names.build()))
}

/// Joins rules with listeners and targets, and tells what they need to know at each listener.
pub(crate) fn judge(
    raw: Vec<RawRule<'_>>,
    listeners: &[RawListener<'_>],
    graph: &Graph,
) -> (Vec<Rule>, Vec<RulesNeed>) {
    let mut needs = vec![RulesNeed::Nothing; listeners.len()];
    let rules = raw.into_iter().map(|raw| judge_one(raw, listeners, graph, &mut needs)).collect();
    (rules, needs)
}

fn judge_one(
    raw: RawRule<'_>,
    listeners: &[RawListener<'_>],
    graph: &Graph,
    needs: &mut [RulesNeed],
) -> Rule {
    let named = raw.table.get("listener").map(|node| listener_places(&node, listeners));
    let target = raw.target.as_ref().and_then(|node| graph.find(node));
    let is_about = |at: usize| named.as_ref().is_none_or(|named| named.contains(&ListenerIndex(at as u32)));
    // Rules for proxies are about names as well, and are not to make plain listeners wait.
    let is_for_proxies = |condition: &Condition| {
        named.is_none() && matches!(condition, Condition::Domain(_) | Condition::List(_))
    };
    let asks_of_hello = |condition: &Condition| condition.needs_peek() && !is_for_proxies(condition);
    let needs_peek = raw.conditions.iter().any(asks_of_hello)
        || target.is_some_and(|target| graph.path_to_peek(target).is_some());
    for (at, listener) in listeners.iter().enumerate().filter(|(at, _)| is_about(*at)) {
        if listener.protocol == Protocol::Tcp {
            if needs_peek {
                needs[at] = RulesNeed::Peek;
            }
            report_no_destination(&raw, listener, target, named.is_some(), graph);
        }
    }
    let mut conditions = raw.conditions;
    if let Some(named) = named {
        conditions.insert(0, Condition::Listener(named.into()));
    }
    let action = raw.action.unwrap_or(Action::Target(target.unwrap_or(TargetIndex(0))));
    Rule { name: raw.name.into(), conditions, action }
}

fn listener_places(node: &Node<'_>, listeners: &[RawListener<'_>]) -> Vec<ListenerIndex> {
    let place = |node: &Node<'_>| {
        let name = node.string()?;
        let found = listeners.iter().position(|listener| listener.name == name);
        if found.is_none() {
            let hint = did_you_mean(name, listeners.iter().map(|listener| listener.name));
            node.report(format!("there is no listener {name:?}"), hint);
        }
        found.map(|at| ListenerIndex(at as u32))
    };
    let nodes = node.one_or_more();
    if nodes.is_empty() {
        node.report("is empty: no session could meet it", Some("leave it out".to_owned()));
    }
    nodes.iter().filter_map(place).collect()
}

/// A rule that can lead clients who name no destination where one is needed.
fn report_no_destination(
    raw: &RawRule<'_>,
    listener: &RawListener<'_>,
    target: Option<TargetIndex>,
    is_named: bool,
    graph: &Graph,
) {
    let can_match = !raw.conditions.iter().any(Condition::needs_destination)
        && (is_named || !raw.conditions.iter().any(Condition::needs_peek));
    let path = target.and_then(|target| graph.path_to_destination(target));
    if let (Some(node), Some(path), true) = (&raw.target, path, can_match) {
        let (name, way) = (listener.name, path.join(" -> "));
        node.report(
            format!("leads to {way}, and clients of the tcp listener {name:?} name no destination"),
            Some("name the listeners that the rule is for: listener = [\"NAME\"]".to_owned()),
        );
    }
}
