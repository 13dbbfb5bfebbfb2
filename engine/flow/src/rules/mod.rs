//! Rules: who may go where, and over which target. They stand in order, and the first whose conditions all hold decides.

mod countries;
mod domains;
pub mod list;
pub mod names;
mod networks;

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

pub use self::countries::{Code, Countries, Origins};
pub use self::domains::{BadPattern, Domains};
use self::list::List;
use self::names::{Name, NameSet};
pub use self::networks::Networks;
use crate::account::{Counter, PerWorker};
use crate::record::ClientAddr;
use crate::snapshot::{ListenerIndex, TargetIndex, WorkerIndex};
use crate::wire::Destination;

/// The most rules. Every session is held against them one after the other until one matches.
pub const MAX_RULES: usize = 10_000;

/// The rules of a snapshot, in their order.
#[derive(Clone, Debug, Default)]
pub struct Rules(Box<[Rule]>);

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name in logs, status and metrics.
    pub name: Arc<str>,
    /// What must hold, all of it; nothing holds always.
    pub conditions: Box<[Condition]>,
    /// What becomes of the session then.
    pub action: Action,
    /// How often it has decided, kept across snapshots as long as its name lives.
    pub hits: Arc<RuleCounters>,
}

/// What each worker counts for one rule.
pub type RuleCounters = PerWorker<RuleCell>;

/// What one worker counts for one rule.
#[derive(Debug, Default)]
pub struct RuleCell {
    /// Sessions that it has decided.
    pub hits: Counter,
}

/// What becomes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is dispatched there.
    Target(TargetIndex),
    /// The client is told in its protocol's way that it may not.
    Reject,
    /// The connection is closed without a word.
    Drop,
}

/// A condition. Of several values one is enough.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Where the client connected.
    Listener(Arc<[ListenerIndex]>),
    /// As whom it authenticated.
    User(Arc<[Arc<str>]>),
    /// Where it comes from; nobody who came over a Unix socket comes from a network.
    Source(Arc<Networks>),
    /// Where it wants to go, where it says so by an address: names are not resolved for it.
    Destination(Arc<Networks>),
    /// To which port.
    Port(Arc<[RangeInclusive<u16>]>),
    /// To which name; where it names no destination, that of the ClientHello or of the Host field.
    Domain(Arc<Domains>),
    /// The server that a TLS ClientHello names.
    Sni(Arc<NameSet>),
    /// The protocols of which a TLS ClientHello offers one (ALPN), byte for byte.
    Alpn(Arc<[Box<[u8]>]>),
    /// The server that an HTTP request names.
    Host(Arc<NameSet>),
    /// How the path of an HTTP request begins.
    Path(Arc<[Arc<str>]>),
    /// To which country, where it asks for an address.
    Country(Origins),
    /// From which country it comes.
    SourceCountry(Origins),
    /// A list that the name is in, or the address that it asks for.
    List(Arc<[NamedList]>),
}

/// A list, by the name that the configuration has for it.
#[derive(Clone, Debug)]
pub struct NamedList {
    /// Its name.
    pub name: Arc<str>,
    /// What it says.
    pub content: Arc<List>,
}

/// What is known of a session when its request is complete.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Where the client connected.
    pub listener: ListenerIndex,
    /// As whom it authenticated, if it did.
    pub user: Option<&'a str>,
    /// Who connected.
    pub client: &'a ClientAddr,
    /// What it asked for, where its protocol says so.
    pub destination: Option<&'a Destination>,
    /// The server that its TLS ClientHello names.
    pub sni: Option<&'a str>,
    /// The protocols that its TLS ClientHello offers (ALPN).
    pub alpn: &'a [Box<[u8]>],
    /// The server that its HTTP request names, without a port.
    pub host: Option<&'a str>,
    /// The path of its HTTP request.
    pub path: Option<&'a str>,
}

/// Which rule decided, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Which rule it was; `None` when no rule matched.
    pub rule: Option<RuleIndex>,
    /// What becomes of the session.
    pub action: Action,
}

/// A position among [`Rules`]; means nothing in another snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleIndex(pub u16);

impl Rules {
    /// Rules in their order.
    ///
    /// # Panics
    /// When there are more than [`MAX_RULES`].
    pub fn new(rules: Vec<Rule>) -> Rules {
        assert!(rules.len() <= MAX_RULES, "the configuration bounds the number of rules");
        Rules(rules.into())
    }

    /// All of them.
    pub fn list(&self) -> &[Rule] {
        &self.0
    }

    /// One of them.
    pub fn rule(&self, index: RuleIndex) -> &Rule {
        &self.0[usize::from(index.0)]
    }

    /// The decision of the first rule that matches; where none does, the session goes to `otherwise`, the target of its
    /// listener.
    pub fn decide(&self, facts: &Facts<'_>, otherwise: TargetIndex) -> Decision {
        let known = Known::new(facts);
        let found = self.0.iter().position(|rule| rule.first_unmet(&known).is_none());
        match found {
            Some(at) => Decision { rule: Some(RuleIndex(at as u16)), action: self.0[at].action },
            None => Decision { rule: None, action: Action::Target(otherwise) },
        }
    }

    /// Of each rule up to the one that decides, the first condition that does not hold; `None` for the one that decides,
    /// which is the last.
    pub fn explain(&self, facts: &Facts<'_>) -> Vec<Option<&Condition>> {
        let known = Known::new(facts);
        let mut verdicts = Vec::new();
        for rule in &self.0 {
            let unmet = rule.first_unmet(&known);
            verdicts.push(unmet);
            if unmet.is_none() {
                break;
            }
        }
        verdicts
    }

    /// Counts what was decided. Only the owning worker may call this.
    pub fn count(&self, decision: Decision, worker: WorkerIndex) {
        if let Some(index) = decision.rule {
            self.rule(index).hits.cell(worker).hits.add(1);
        }
    }
}

impl Rule {
    fn first_unmet(&self, known: &Known<'_>) -> Option<&Condition> {
        self.conditions.iter().find(|condition| !condition.holds(known))
    }
}

/// Facts in the form in which conditions ask for them.
struct Known<'a> {
    facts: &'a Facts<'a>,
    address: Option<IpAddr>,
    port: Option<u16>,
    asked: Option<Name>,
    sni: Option<Name>,
    host: Option<Name>,
}

impl<'a> Known<'a> {
    fn new(facts: &'a Facts<'a>) -> Known<'a> {
        let (address, asked) = match facts.destination {
            Some(Destination::Address(address)) => (Some(address.ip().to_canonical()), None),
            Some(Destination::Name(name, _)) => (None, Some(Name::new(name.as_str()))),
            None => (None, None),
        };
        Known {
            facts,
            address,
            port: facts.destination.map(Destination::port),
            asked,
            sni: facts.sni.map(Name::new),
            host: facts.host.map(Name::new),
        }
    }

    /// The name that the session is about.
    fn name(&self) -> Option<&Name> {
        self.asked.as_ref().or(self.sni.as_ref()).or(self.host.as_ref())
    }
}

impl Condition {
    fn holds(&self, known: &Known<'_>) -> bool {
        let facts = known.facts;
        match self {
            Condition::Listener(listeners) => listeners.contains(&facts.listener),
            Condition::User(users) => facts.user.is_some_and(|user| users.iter().any(|one| &**one == user)),
            Condition::Source(networks) => match facts.client {
                ClientAddr::Ip(address) => networks.contains(address.ip()),
                ClientAddr::Unix => false,
            },
            Condition::Destination(networks) => {
                known.address.is_some_and(|address| networks.contains(address))
            }
            Condition::Port(ports) => {
                known.port.is_some_and(|port| ports.iter().any(|range| range.contains(&port)))
            }
            Condition::Domain(domains) => known.name().is_some_and(|name| domains.contains(name)),
            Condition::Sni(names) => known.sni.as_ref().is_some_and(|name| names.contains(name)),
            Condition::Alpn(protocols) => facts.alpn.iter().any(|offered| protocols.contains(offered)),
            Condition::Host(names) => known.host.as_ref().is_some_and(|name| names.contains(name)),
            Condition::Path(prefixes) => {
                facts.path.is_some_and(|path| prefixes.iter().any(|prefix| path.starts_with(&**prefix)))
            }
            Condition::Country(origins) => known.address.is_some_and(|address| origins.contain(address)),
            Condition::SourceCountry(origins) => match facts.client {
                ClientAddr::Ip(address) => origins.contain(address.ip()),
                ClientAddr::Unix => false,
            },
            Condition::List(lists) => {
                lists.iter().any(|list| list.content.contains(known.name(), known.address))
            }
        }
    }

    /// The word for it in configurations.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Condition::Listener(_) => "listener",
            Condition::User(_) => "user",
            Condition::Source(_) => "source",
            Condition::Destination(_) => "destination",
            Condition::Port(_) => "port",
            Condition::Domain(_) => "domain",
            Condition::Sni(_) => "sni",
            Condition::Alpn(_) => "alpn",
            Condition::Host(_) => "host",
            Condition::Path(_) => "path",
            Condition::Country(_) => "country",
            Condition::SourceCountry(_) => "source_country",
            Condition::List(_) => "list",
        }
    }

    /// Whether only sessions that ask for a destination can meet it.
    pub const fn needs_destination(&self) -> bool {
        match self {
            Condition::User(_) | Condition::Destination(_) | Condition::Port(_) | Condition::Country(_) => {
                true
            }
            Condition::Listener(_)
            | Condition::Source(_)
            | Condition::Domain(_)
            | Condition::Sni(_)
            | Condition::Alpn(_)
            | Condition::Host(_)
            | Condition::Path(_)
            | Condition::SourceCountry(_)
            | Condition::List(_) => false,
        }
    }

    /// Whether it can be met at a plain listener only where what clients say first is looked at.
    pub const fn needs_peek(&self) -> bool {
        match self {
            Condition::Domain(_)
            | Condition::Sni(_)
            | Condition::Alpn(_)
            | Condition::Host(_)
            | Condition::Path(_)
            | Condition::List(_) => true,
            Condition::Listener(_)
            | Condition::User(_)
            | Condition::Source(_)
            | Condition::Destination(_)
            | Condition::Country(_)
            | Condition::SourceCountry(_)
            | Condition::Port(_) => false,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Target(_) => f.write_str("target"),
            Action::Reject => f.write_str("reject"),
            Action::Drop => f.write_str("drop"),
        }
    }
}

#[cfg(test)]
mod tests;
