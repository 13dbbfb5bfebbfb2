//! `ringweir explain`: which rule and which target would serve a session, and why.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use hyper::Method;
use ringweir_flow::pick::Subject;
use ringweir_flow::record::ClientAddr;
use ringweir_flow::rules::{Action, Condition, Facts, Rule, Rules};
use ringweir_flow::snapshot::{
    Group, ListenerIndex, Policy, Snapshot, TargetIndex, TargetKind, Upstream, WorkerIndex,
};
use ringweir_flow::time::Instant;
use ringweir_flow::view::View;
use ringweir_flow::wire::Destination;
use serde::{Deserialize, Serialize};

use crate::assemble::{Knowledge, assemble};
use crate::cli::ExplainArguments;
use crate::{config, escaped, status};

/// A session that might come.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    listener: String,
    client: ClientAddr,
    user: Option<String>,
    to: Option<Destination>,
    sni: Option<String>,
    alpn: Vec<Box<[u8]>>,
    host: Option<String>,
    path: Option<String>,
}

/// What would become of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Explanation {
    /// The rules that were looked at, in their order.
    rules: Vec<Verdict>,
    /// The rule that decides; `None` when the session goes to the target of its listener.
    rule: Option<String>,
    /// `target`, `reject` or `drop`, or `not-allowed` where the listener does not serve such clients.
    action: String,
    /// The target, and below it whom it leads to, as far as that is certain.
    way: Vec<Step>,
}

/// The action where a listener refuses the client for its address, before any rule is looked at.
const NOT_ALLOWED: &str = "not-allowed";

/// What is to be said of one rule.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Verdict {
    rule: String,
    matches: bool,
    why: String,
}

/// A target on the way.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Step {
    target: String,
    kind: String,
    health: String,
    why: String,
}

/// Asks the daemon, or judges by a file.
pub(crate) fn run(arguments: ExplainArguments) -> Result<(), String> {
    let explanation = match &arguments.config {
        Some(file) => {
            let config = config::load(file).map_err(|errors| errors.to_string())?;
            let mut knowledge = Knowledge::default();
            knowledge.rules.configure(&config, 1);
            knowledge.care.reconfigure(&config);
            let snapshot = assemble(&config, &mut knowledge, &[], 1, 1, false);
            let question = Question::from_query(arguments.query().into_iter().collect())?;
            explain(&Arc::new(snapshot), &question)?
        }
        None => {
            let pairs: Vec<String> =
                arguments.query().iter().map(|(key, value)| format!("{key}={}", escaped(value))).collect();
            let path = format!("/explain?{}", pairs.join("&"));
            let text = crate::ask(&arguments.admin, Method::GET, &path)?;
            serde_json::from_str(&text).map_err(|error| format!("the answer cannot be read: {error}"))?
        }
    };
    if arguments.json {
        let text = serde_json::to_string(&explanation).map_err(|error| error.to_string())?;
        return crate::print(&format!("{text}\n"));
    }
    crate::print(&explanation.to_text())
}

impl ExplainArguments {
    fn query(&self) -> Vec<(String, String)> {
        let given = [
            ("listener", Some(self.listener.clone())),
            ("from", self.from.map(|address| address.to_string())),
            ("user", self.user.clone()),
            ("to", self.to.clone()),
            ("sni", self.sni.clone()),
            ("alpn", self.alpn.clone()),
            ("host", self.host.clone()),
            ("path", self.path.clone()),
        ];
        given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

impl Question {
    /// Reads a question as it stands in a query.
    ///
    /// # Errors
    /// What cannot be read, for people.
    pub(crate) fn from_query(mut query: HashMap<String, String>) -> Result<Question, String> {
        let listener = query.remove("listener").ok_or("at which listener? ask for ?listener=NAME\n")?;
        let from = query
            .remove("from")
            .map(|text| IpAddr::from_str(&text).map_err(|_| format!("{text:?} is no address of a client\n")));
        let client = from.transpose()?.map_or(ClientAddr::Unix, |ip| ClientAddr::Ip(SocketAddr::new(ip, 0)));
        let to = query.remove("to").map(|text| destination(&text)).transpose()?;
        let question = Question {
            listener,
            client,
            to,
            user: query.remove("user"),
            sni: query.remove("sni"),
            alpn: query.remove("alpn").map_or_else(Vec::new, |text| protocols(&text)),
            host: query.remove("host"),
            path: query.remove("path"),
        };
        match query.keys().next() {
            Some(key) => Err(format!("{key:?} is not known here\n")),
            None => Ok(question),
        }
    }
}

fn protocols(text: &str) -> Vec<Box<[u8]>> {
    text.split(',').map(|name| name.trim().as_bytes().into()).collect()
}

fn destination(text: &str) -> Result<Destination, String> {
    let refusal = || format!("{text:?} is no destination: write it as host:port\n");
    let (host, port) = text.rsplit_once(':').ok_or_else(refusal)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(refusal)?;
    Destination::from_host(host.as_bytes(), port).map_err(|_| refusal())
}

/// What would become of a session as things stand.
///
/// # Errors
/// When there is no such listener.
pub(crate) fn explain(snapshot: &Arc<Snapshot>, question: &Question) -> Result<Explanation, String> {
    let place = snapshot.listeners.iter().position(|listener| *listener.name == *question.listener);
    let place = place.ok_or_else(|| format!("there is no listener {:?}\n", question.listener))?;
    let listener = ListenerIndex(u32::try_from(place).unwrap_or(u32::MAX));
    let facts = Facts {
        listener,
        user: question.user.as_deref(),
        client: &question.client,
        destination: question.to.as_ref(),
        sni: question.sni.as_deref(),
        alpn: &question.alpn,
        host: question.host.as_deref(),
        path: question.path.as_deref(),
    };
    if snapshot.listener(listener).access.as_ref().is_some_and(|access| !access.admits(&question.client)) {
        let (rules, way) = (Vec::new(), Vec::new());
        return Ok(Explanation { rules, rule: None, action: NOT_ALLOWED.to_owned(), way });
    }
    let none = Rules::default();
    let rules = snapshot.rules.as_deref().unwrap_or(&none);
    let decision = rules.decide(&facts, snapshot.listener(listener).target);
    let verdicts = rules.list().iter().zip(rules.explain(&facts));
    let way = match decision.action {
        Action::Target(target) => way(snapshot, target, listener, question),
        Action::Reject | Action::Drop => Vec::new(),
    };
    Ok(Explanation {
        rules: verdicts.map(|(rule, unmet)| verdict(rule, unmet, &facts)).collect(),
        rule: decision.rule.map(|index| rules.rule(index).name.to_string()),
        action: decision.action.to_string(),
        way,
    })
}

fn verdict(rule: &Rule, unmet: Option<&Condition>, facts: &Facts<'_>) -> Verdict {
    let why = match unmet {
        None if rule.conditions.is_empty() => "it has no condition".to_owned(),
        None => {
            let words: Vec<&str> = rule.conditions.iter().map(Condition::as_str).collect();
            format!("{} {}", words.join(", "), if words.len() == 1 { "holds" } else { "hold" })
        }
        Some(condition) => format!("{}: {}", condition.as_str(), shortcoming(condition, facts)),
    };
    Verdict { rule: rule.name.to_string(), matches: unmet.is_none(), why }
}

/// Why a condition does not hold.
fn shortcoming(condition: &Condition, facts: &Facts<'_>) -> String {
    let other = |what: Option<&str>, unknown: &str| match what {
        Some(what) => format!("{what} is not meant"),
        None => unknown.to_owned(),
    };
    let name = match facts.destination {
        Some(Destination::Name(name, _)) => Some(name.as_str()),
        Some(Destination::Address(_)) | None => None,
    };
    match condition {
        Condition::Listener(_) => "it is for other listeners".to_owned(),
        Condition::User(_) => other(facts.user, "the client is no user"),
        Condition::Source(_) | Condition::SourceCountry(_) => match facts.client {
            ClientAddr::Ip(address) => other(Some(&address.ip().to_string()), ""),
            ClientAddr::Unix => "the client has no address (--from)".to_owned(),
        },
        Condition::Destination(_) | Condition::Country(_) => match facts.destination {
            Some(Destination::Address(address)) => other(Some(&address.ip().to_string()), ""),
            Some(Destination::Name(..)) => "the destination is a name, which is not resolved".to_owned(),
            None => "the client names no destination (--to)".to_owned(),
        },
        Condition::Port(_) => {
            let port = facts.destination.map(|destination| destination.port().to_string());
            other(port.as_deref(), "the client names no destination (--to)")
        }
        Condition::List(lists) => {
            let lists: Vec<&str> = lists.iter().map(|list| &*list.name).collect();
            let address = match facts.destination {
                Some(Destination::Address(address)) => Some(address.ip().to_string()),
                Some(Destination::Name(..)) | None => None,
            };
            match name.or(facts.sni).or(facts.host).or(address.as_deref()) {
                Some(asked) => format!("{asked} is not in {}", lists.join(", ")),
                None => "neither a name nor an address is known (--to)".to_owned(),
            }
        }
        Condition::Domain(_) => other(
            name.or(facts.sni).or(facts.host),
            "no name is known, neither of --to nor by --sni or --host",
        ),
        Condition::Sni(_) => other(facts.sni, "there is no ClientHello that names a server (--sni)"),
        Condition::Alpn(_) => {
            let offered: Vec<_> = facts.alpn.iter().map(|name| String::from_utf8_lossy(name)).collect();
            let offered = (!offered.is_empty()).then(|| offered.join(", "));
            other(offered.as_deref(), "there is no ClientHello that offers protocols (--alpn)")
        }
        Condition::Host(_) => other(facts.host, "there is no request that names a server (--host)"),
        Condition::Path(_) => other(facts.path, "there is no request with a path (--path)"),
    }
}

/// From a target down to whom it leads to, until that is a matter of chance.
fn way(
    snapshot: &Arc<Snapshot>,
    from: TargetIndex,
    listener: ListenerIndex,
    question: &Question,
) -> Vec<Step> {
    let local = match &question.to {
        Some(Destination::Address(to)) => {
            Some(to.ip()).filter(|ip| !snapshot.listener(listener).reach.permits(*ip))
        }
        Some(Destination::Name(..)) | None => None,
    };
    let mut steps = Vec::new();
    let mut next = Some(from);
    // The configuration bounds the depth and has no cycles.
    while let Some(index) = next.take() {
        let target = snapshot.target(index);
        let (kind, why) = match (&target.kind, local) {
            (TargetKind::Upstream(Upstream::Direct), Some(ip)) => {
                ("upstream", format!("it would refuse: {ip} is local, and not in allow_local"))
            }
            (TargetKind::Upstream(_), _) if target.health.is_available() => {
                ("upstream", "it would be tried".to_owned())
            }
            (TargetKind::Upstream(_), _) => ("upstream", "it gets no new sessions".to_owned()),
            (TargetKind::Group(_), _) if !target.health.is_available() => {
                ("group", "it gets no new sessions".to_owned())
            }
            (TargetKind::Group(group), _) => {
                let (member, why) = pick(snapshot, index, group, question);
                next = member;
                ("group", why)
            }
        };
        let health = target.health.as_str().to_owned();
        steps.push(Step { target: target.name.to_string(), kind: kind.to_owned(), health, why });
    }
    steps
}

/// The member that a group leads to, where that is certain, and how it comes to it.
fn pick(
    snapshot: &Arc<Snapshot>,
    index: TargetIndex,
    group: &Group,
    question: &Question,
) -> (Option<TargetIndex>, String) {
    let policy = status::policy_name(group.policy);
    let may = |member: usize| snapshot.target(group.members[member].target).is_available();
    let states: Vec<String> = group
        .members
        .iter()
        .map(|member| snapshot.target(member.target))
        .map(|target| format!("{} {}", target.name, target.health.as_str()))
        .collect();
    let states = states.join(", ");
    let is_certain = match group.policy {
        Policy::Hash(_) | Policy::Failover | Policy::Select => true,
        Policy::RoundRobin
        | Policy::Random
        | Policy::LeastConnections
        | Policy::LeastLatency
        | Policy::Race { .. } => (0..group.members.len()).filter(|member| may(*member)).count() == 1,
    };
    if !is_certain {
        return (None, format!("{policy} picks among those that are up: {states}"));
    }
    // Without what the group remembers: a question is not to be taken for a session.
    let mut group = group.clone();
    group.affinity = None;
    let view = View::new(Arc::clone(snapshot), WorkerIndex(0), 0);
    let subject = Subject { client: &question.client, destination: question.to.as_ref(), peeked: None };
    match view.pick(index, &group, subject, Instant::ZERO, may) {
        Some(member) => {
            let member = group.members[member].target;
            let name = &snapshot.target(member).name;
            (Some(member), format!("{policy} picks {name}: {states}"))
        }
        None => (None, format!("{policy} has nobody to pick: {states}")),
    }
}

impl Explanation {
    fn to_text(&self) -> String {
        let mut text = String::new();
        for verdict in &self.rules {
            let word = if verdict.matches { "matches" } else { "does not match" };
            let _ = writeln!(text, "{} {word}: {}", verdict.rule, verdict.why);
        }
        let decision = match (&self.rule, self.action.as_str()) {
            (None, NOT_ALLOWED) => "the listener serves no clients from there (allow, deny)".to_owned(),
            (None, _) => "no rule decides: the session goes to the target of its listener".to_owned(),
            (Some(rule), "target") => format!("{rule} decides"),
            (Some(rule), action) => format!("{rule} decides: {action}"),
        };
        let _ = writeln!(text, "{decision}");
        for (depth, step) in self.way.iter().enumerate() {
            let indent = "  ".repeat(depth + 1);
            let _ = writeln!(text, "{indent}{} ({}, {}): {}", step.target, step.kind, step.health, step.why);
        }
        text
    }
}
