//! Joins the names of upstreams and groups: every member exists, nothing is its own member, nothing nests too deep,
//! and every upstream knows its check.

use std::collections::HashMap;
use std::sync::Arc;

use ringweir_flow::affinity::Affinity;
use ringweir_flow::outgoing::Outgoing;
use ringweir_flow::pick::Maglev;
use ringweir_flow::snapshot::{Group, MAX_NESTING, Member, Policy, Proxy, Role, TargetIndex};

use super::diagnostic::did_you_mean;
use super::health;
use super::listeners::RawListener;
use super::reader::Node;
use super::rules::RawRule;
use super::targets::{Declared, DeclaredGroup, DeclaredKind};
use crate::model::{Check, Endpoint, HealthSettings, Target, TargetKind, Upstream, Via};

/// How many proxies may follow each other: each costs a round trip, and nobody has named a use for more.
const MAX_CHAIN: usize = 8;

/// How many members one session may try unless configured otherwise.
const MOST_DEFAULT_ATTEMPTS: usize = 8;

/// What exists without being declared.
const BUILT_IN: [(&str, Endpoint); 2] = [("direct", Endpoint::Direct), ("reject", Endpoint::Reject)];

/// The targets, and where each name is.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) targets: Vec<Target>,
    names: HashMap<Arc<str>, TargetIndex>,
}

impl Graph {
    /// The target that a value names; reported when there is none.
    pub(crate) fn find(&self, node: &Node<'_>) -> Option<TargetIndex> {
        find(node, |name| self.names.get(name).copied(), self.names.keys().map(|name| &**name))
    }

    /// The names from a target to an upstream or a group that needs a destination, and that it may be dispatched to, if
    /// there is one.
    pub(crate) fn path_to_destination(&self, from: TargetIndex) -> Option<Vec<&str>> {
        self.path_to(from, &|kind| match kind {
            TargetKind::Upstream(upstream) => upstream.needs_destination(),
            TargetKind::Group(group) => group.needs_destination(),
        })
    }

    /// Likewise to a group that goes by what a client says first.
    pub(crate) fn path_to_peek(&self, from: TargetIndex) -> Option<Vec<&str>> {
        self.path_to(from, &|kind| match kind {
            TargetKind::Upstream(_) => false,
            TargetKind::Group(group) => group.needs_peek(),
        })
    }

    fn path_to(&self, from: TargetIndex, is_it: &dyn Fn(&TargetKind) -> bool) -> Option<Vec<&str>> {
        let mut seen = vec![false; self.targets.len()];
        self.search(from, is_it, &mut seen)
    }

    fn search(
        &self,
        from: TargetIndex,
        is_it: &dyn Fn(&TargetKind) -> bool,
        seen: &mut [bool],
    ) -> Option<Vec<&str>> {
        let at = from.0 as usize;
        if std::mem::replace(&mut seen[at], true) {
            return None;
        }
        let target = &self.targets[at];
        match &target.kind {
            kind if is_it(kind) => Some(vec![&*target.name]),
            TargetKind::Upstream(_) => None,
            TargetKind::Group(group) => group.members.iter().find_map(|member| {
                let mut path = self.search(member.target, is_it, seen)?;
                path.insert(0, &target.name);
                Some(path)
            }),
        }
    }
}

/// Joins what is declared. Built-in targets are there when a member or a listener names them.
pub(crate) fn build(
    declared: Vec<Declared<'_>>,
    listeners: &[RawListener<'_>],
    rules: &[RawRule<'_>],
) -> Graph {
    let mut names: HashMap<Arc<str>, TargetIndex> = HashMap::new();
    for (index, target) in (0u32..).zip(&declared) {
        names.entry(target.name.into()).or_insert(TargetIndex(index));
    }
    let mut built_in = Vec::new();
    for (name, endpoint) in BUILT_IN {
        if !names.contains_key(name) && is_named(name, &declared, listeners, rules) {
            names.insert(name.into(), TargetIndex((declared.len() + built_in.len()) as u32));
            let upstream = Upstream {
                endpoint,
                proxy: None,
                via: Vec::new(),
                plugin: None,
                check: None,
                outgoing: None,
                send_proxy: None,
                room: None,
            };
            let kind = TargetKind::Upstream(upstream);
            built_in.push(Target { name: name.into(), kind, health: HealthSettings::default() });
        }
    }
    let edges = edges(&declared, &names);
    let joint = Joint { declared: &declared, edges: &edges };
    let mut checks = vec![None; declared.len()];
    if joint.is_acyclic() {
        joint.report_depth();
        checks = joint.checks();
    }
    let mut targets: Vec<Target> = declared
        .iter()
        .zip(&edges)
        .zip(checks)
        .enumerate()
        .map(|(index, ((target, edges), check))| {
            let via = via(index, &declared, &names);
            finish(target, edges, check, via, &declared)
        })
        .collect();
    targets.extend(built_in);
    let said: Vec<_> = declared.iter().map(|target| target.health.clone()).collect();
    health::join(&mut targets, &said);
    report_unmeasured(&declared, &targets);
    Graph { targets, names }
}

fn is_named(
    name: &str,
    declared: &[Declared<'_>],
    listeners: &[RawListener<'_>],
    rules: &[RawRule<'_>],
) -> bool {
    let members = declared.iter().flat_map(|target| match &target.kind {
        DeclaredKind::Group(group) => group.members.iter().map(|member| &member.name).collect(),
        DeclaredKind::Upstream(_) => Vec::new(),
    });
    let targets = listeners.iter().filter_map(|listener| listener.target.as_ref());
    let ruled = rules.iter().filter_map(|rule| rule.target.as_ref());
    members.chain(targets).chain(ruled).any(|node| node.is_string() && node.string() == Some(name))
}

/// A member: which target, and where it is written.
type Edge<'d, 'a> = (TargetIndex, &'d Node<'a>);

/// The members of each declared target that exist.
fn edges<'d, 'a>(
    declared: &'d [Declared<'a>],
    names: &HashMap<Arc<str>, TargetIndex>,
) -> Vec<Vec<Edge<'d, 'a>>> {
    let resolve = |node| {
        find(node, |name| names.get(name).copied(), names.keys().map(|name| &**name))
            .map(|target| (target, node))
    };
    let members = |target: &'d Declared<'a>| match &target.kind {
        DeclaredKind::Group(group) => {
            group.members.iter().map(|member| &member.name).filter_map(resolve).collect()
        }
        DeclaredKind::Upstream(_) => Vec::new(),
    };
    declared.iter().map(members).collect()
}

fn find<'n>(
    node: &Node<'_>,
    lookup: impl Fn(&str) -> Option<TargetIndex>,
    known: impl Iterator<Item = &'n str>,
) -> Option<TargetIndex> {
    if !node.is_string() {
        // Lists of members report this themselves; a listener's target does here.
        return node.string().and(None);
    }
    let name = node.string()?;
    let found = lookup(name);
    if found.is_none() {
        let built_in = BUILT_IN.iter().map(|(name, _)| *name);
        let hint = did_you_mean(name, known.chain(built_in));
        let hint = hint.unwrap_or_else(|| format!("declare it: [upstream.{name}] or [group.{name}]"));
        node.report(format!("there is no upstream or group {name:?}"), Some(hint));
    }
    found
}

/// Only checks measure members that do not serve.
fn report_unmeasured(declared: &[Declared<'_>], targets: &[Target]) {
    for (declared, target) in declared.iter().zip(targets) {
        let TargetKind::Group(group) = &target.kind else { continue };
        let unmeasured = group.members.iter().map(|member| &targets[member.target.0 as usize]).find(
            |member| matches!(&member.kind, TargetKind::Upstream(upstream) if upstream.check.is_none()),
        );
        if let (Some(_), Some(member)) = (target.health.tolerance, unmeasured) {
            let hint = "only checks measure members that do not serve: give the group one".to_owned();
            let complaint = format!("has order = \"latency\", and its member {:?} has no check", member.name);
            declared.node.report(complaint, Some(hint));
        }
    }
}

/// The proxies on the way to an upstream, the one that is connected to first, and what is special about connections to
/// each.
fn via(
    index: usize,
    declared: &[Declared<'_>],
    names: &HashMap<Arc<str>, TargetIndex>,
) -> Vec<(Via, Option<Arc<Outgoing>>)> {
    let mut way = Vec::new();
    let mut path = vec![index];
    let mut at = index;
    while let Some(node) = &declared[at].via {
        // What is wrong further on is reported there.
        let is_own = at == index;
        let lookup = |name: &str| names.get(name).copied();
        let name = if node.is_string() { node.string() } else { None };
        let is_built_in = name.is_some_and(|name| BUILT_IN.iter().any(|(known, _)| *known == name));
        let found = match name {
            // It stands behind everything that is declared.
            _ if is_built_in => Some(TargetIndex(u32::MAX)),
            _ if is_own => find(node, lookup, names.keys().map(|name| &**name)),
            name => name.and_then(lookup),
        };
        let Some(target) = found else { break };
        let next = declared.get(target.0 as usize);
        let Some((next, proxy, endpoint)) = next.and_then(|next| match (&next.kind, &next.proxy) {
            (DeclaredKind::Upstream(endpoint), Some(proxy)) => Some((next, proxy, endpoint)),
            (DeclaredKind::Upstream(_) | DeclaredKind::Group(_), _) => None,
        }) else {
            if is_own {
                let hint = "it takes an upstream of kind \"socks5\", \"http\" or \"shadowsocks\"".to_owned();
                node.report("names no proxy", Some(hint));
            }
            break;
        };
        at = target.0 as usize;
        if path.contains(&at) {
            if at == index && path.iter().min() == Some(&index) {
                let names: Vec<&str> = path.iter().chain([&at]).map(|at| declared[*at].name).collect();
                declared[index].node.report(format!("via is a cycle: {}", names.join(" -> ")), None);
            }
            break;
        }
        if way.len() == MAX_CHAIN {
            node.report(format!("leads over more than {MAX_CHAIN} proxies"), None);
            break;
        }
        let is_sealed = |proxy: &Proxy| matches!(proxy, Proxy::Shadowsocks(_));
        let mut sealed = way.iter().map(|(via, _): &(Via, _)| &via.proxy).chain(&declared[index].proxy);
        if is_sealed(proxy) && sealed.any(is_sealed) {
            node.report("leads through Shadowsocks twice: once is supported", None);
            break;
        }
        path.push(at);
        let via = Via { name: next.name.into(), endpoint: endpoint.clone(), proxy: proxy.clone() };
        way.push((via, next.outgoing.clone()));
    }
    way.reverse();
    way
}

fn finish(
    target: &Declared<'_>,
    edges: &[Edge<'_, '_>],
    check: Option<Arc<Check>>,
    via: Vec<(Via, Option<Arc<Outgoing>>)>,
    declared: &[Declared<'_>],
) -> Target {
    let kind = match &target.kind {
        DeclaredKind::Upstream(endpoint) => TargetKind::Upstream(Upstream {
            endpoint: endpoint.clone(),
            proxy: target.proxy.clone(),
            check,
            send_proxy: target.send_proxy,
            room: target.room,
            // Of the connection that is made, whomever it is to.
            outgoing: via.first().map_or(&target.outgoing, |(_, outgoing)| outgoing).clone(),
            plugin: match via.first() {
                None => target.plugin.clone(),
                Some((via, _)) => {
                    declared.iter().find(|next| *next.name == *via.name).and_then(|next| next.plugin.clone())
                }
            },
            via: via.into_iter().map(|(via, _)| via).collect(),
        }),
        DeclaredKind::Group(group) => TargetKind::Group(finish_group(group, edges, declared)),
    };
    Target { name: target.name.into(), kind, health: HealthSettings::default() }
}

fn finish_group(group: &DeclaredGroup<'_>, edges: &[Edge<'_, '_>], declared: &[Declared<'_>]) -> Group {
    let member = |(target, node): &Edge<'_, '_>| {
        let declared_member = group.members.iter().find(|member| std::ptr::eq(&member.name, *node));
        // What is built in has no declaration and the default weight.
        let weight = declared_member.and_then(|member| member.weight);
        let weight = weight.or_else(|| Some(declared.get(target.0 as usize)?.weight)).unwrap_or(1);
        let role = declared_member.map_or(Role::Primary, |member| member.role);
        Member { target: *target, weight, role }
    };
    let all = edges.len().clamp(1, MOST_DEFAULT_ATTEMPTS) as u32;
    let members: Arc<[Member]> = edges.iter().map(member).collect();
    let maglev = matches!(group.policy, Policy::Hash(_)).then(|| {
        let names = edges.iter().map(|(_, node)| node.string().unwrap_or_default());
        Arc::new(Maglev::new(names.zip(members.iter().map(|member| member.weight))))
    });
    let attempts = group.attempts.unwrap_or(all);
    let mut finished = Group::new(group.policy, members, attempts, group.attempt_timeout);
    finished.commit = group.commit;
    finished.affinity = group.affinity.map(|settings| Arc::new(Affinity::new(settings)));
    finished.maglev = maglev;
    finished.on_down = group.on_down;
    finished
}

/// The declared targets with their members.
struct Joint<'d, 'a> {
    declared: &'d [Declared<'a>],
    edges: &'d [Vec<Edge<'d, 'a>>],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    Never,
    Open,
    Done,
}

impl Joint<'_, '_> {
    fn members(&self, index: usize) -> impl Iterator<Item = (usize, &Node<'_>)> {
        // Built-in targets lie behind the declared ones and lead nowhere further.
        let count = self.declared.len();
        self.edges[index]
            .iter()
            .map(|(target, node)| (target.0 as usize, *node))
            .filter(move |(target, _)| *target < count)
    }

    /// Whether no group is its own member; each cycle is reported once, with the path it takes.
    fn is_acyclic(&self) -> bool {
        let mut visits = vec![Visit::Never; self.declared.len()];
        let mut is_acyclic = true;
        for start in 0..self.declared.len() {
            is_acyclic &= self.visit(start, &mut visits, &mut Vec::new());
        }
        is_acyclic
    }

    fn visit(&self, index: usize, visits: &mut [Visit], path: &mut Vec<usize>) -> bool {
        if visits[index] == Visit::Done {
            return true;
        }
        visits[index] = Visit::Open;
        path.push(index);
        let mut is_acyclic = true;
        for (member, node) in self.members(index) {
            if visits[member] == Visit::Open {
                let from = path.iter().position(|at| *at == member).unwrap_or(0);
                let cycle = path[from..].iter().copied().chain([member]);
                node.report(format!("is a cycle: {}", self.path_text(cycle)), None);
                is_acyclic = false;
            } else {
                is_acyclic &= self.visit(member, visits, path);
            }
        }
        path.pop();
        visits[index] = Visit::Done;
        is_acyclic
    }

    /// Reports the groups that are the first to be too deep; what holds them is too deep because of them.
    fn report_depth(&self) {
        let mut depths = vec![None; self.declared.len()];
        for index in 0..self.declared.len() {
            let path = self.deepest(index, &mut depths);
            if path.len() == MAX_NESTING + 1 {
                let path = self.path_text(path.into_iter());
                let message = format!("nests deeper than {MAX_NESTING} groups: {path}");
                self.declared[index].node.report(message, None);
            }
        }
    }

    /// The longest chain of groups that begins here.
    fn deepest(&self, index: usize, known: &mut [Option<Vec<usize>>]) -> Vec<usize> {
        if let Some(path) = &known[index] {
            return path.clone();
        }
        let path = match &self.declared[index].kind {
            DeclaredKind::Upstream(_) => Vec::new(),
            DeclaredKind::Group(_) => {
                let below = self.members(index).map(|(member, _)| self.deepest(member, known));
                let mut path = below.max_by_key(Vec::len).unwrap_or_default();
                path.insert(0, index);
                path
            }
        };
        known[index] = Some(path.clone());
        path
    }

    fn path_text(&self, path: impl Iterator<Item = usize>) -> String {
        let names: Vec<&str> = path.map(|index| self.declared[index].name).collect();
        names.join(" -> ")
    }

    /// The check of each target: its own, or that of the nearest group above it that names one.
    fn checks(&self) -> Vec<Option<Arc<Check>>> {
        let mut checks: Vec<_> = self.declared.iter().map(|target| target.check.clone()).collect();
        // From which group a check was handed down.
        let mut from: Vec<Option<usize>> = vec![None; self.declared.len()];
        for group in 0..self.declared.len() {
            if let (DeclaredKind::Group(_), Some(check)) =
                (&self.declared[group].kind, &self.declared[group].check)
            {
                self.hand_down(group, (group, check), &mut checks, &mut from);
            }
        }
        checks
    }

    fn hand_down(
        &self,
        to_members_of: usize,
        (giver, check): (usize, &Arc<Check>),
        checks: &mut [Option<Arc<Check>>],
        from: &mut [Option<usize>],
    ) {
        for (member, _) in self.members(to_members_of) {
            let target = &self.declared[member];
            if target.check.is_some() {
                continue;
            }
            match &target.kind {
                DeclaredKind::Group(_) => self.hand_down(member, (giver, check), checks, from),
                DeclaredKind::Upstream(Endpoint::Direct | Endpoint::Reject) => {}
                DeclaredKind::Upstream(Endpoint::Address(_) | Endpoint::Name(..) | Endpoint::Unix(_)) => {
                    if let (Some(before), Some(first)) = (&checks[member], from[member])
                        && before != check
                    {
                        let (first, second) = (self.declared[first].name, self.declared[giver].name);
                        target.node.report(
                            format!("group {first:?} and group {second:?} want different checks for it"),
                            Some(format!("name one here: check = {:?}", &*before.name)),
                        );
                    }
                    checks[member] = Some(Arc::clone(check));
                    from[member] = Some(giver);
                }
            }
        }
    }
}
