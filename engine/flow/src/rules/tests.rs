use proptest::prelude::*;

use super::names::{Builder, Reach};
use super::*;

const OTHERWISE: TargetIndex = TargetIndex(99);

fn rule(conditions: Vec<Condition>, action: Action) -> Rule {
    Rule { name: "r".into(), conditions: conditions.into(), action, hits: Arc::new(RuleCounters::new(1)) }
}

fn suffixes(names: &[&str]) -> Condition {
    let mut builder = Builder::default();
    names.iter().for_each(|name| builder.add(name, Reach::Whole).unwrap());
    Condition::Domain(Arc::new(Domains::new(builder, &[], &[]).unwrap()))
}

fn names(names: &[&str]) -> Arc<NameSet> {
    let mut builder = Builder::default();
    names.iter().for_each(|name| builder.add(name, Reach::Itself).unwrap());
    Arc::new(builder.build())
}

fn protocols(names: &[&str]) -> Vec<Box<[u8]>> {
    names.iter().map(|name| name.as_bytes().into()).collect()
}

fn networks(texts: &[&str]) -> Arc<Networks> {
    Arc::new(texts.iter().map(|text| text.parse::<ipnet::IpNet>().unwrap()).collect())
}

const UNIX: ClientAddr = ClientAddr::Unix;

fn nothing() -> Facts<'static> {
    let listener = ListenerIndex(0);
    Facts {
        listener,
        user: None,
        client: &UNIX,
        destination: None,
        sni: None,
        alpn: &[],
        host: None,
        path: None,
    }
}

fn to(host: &str, port: u16) -> Destination {
    Destination::from_host(host.as_bytes(), port).unwrap()
}

#[test]
fn the_first_rule_whose_conditions_all_hold_decides() {
    let rules = Rules::new(vec![
        rule(vec![suffixes(&["a.example"]), Condition::Port([443..=443].into())], Action::Reject),
        rule(vec![suffixes(&["a.example", "b.example"])], Action::Target(TargetIndex(1))),
        rule(vec![Condition::User(["ann".into()].into())], Action::Drop),
    ]);
    let decide = |host: &str, port, user| {
        let destination = to(host, port);
        let decision = rules.decide(&Facts { destination: Some(&destination), user, ..nothing() }, OTHERWISE);
        (decision.rule.map(|index| index.0), decision.action)
    };
    assert_eq!(decide("x.a.example", 443, None), (Some(0), Action::Reject));
    assert_eq!(decide("x.a.example", 80, Some("ann")), (Some(1), Action::Target(TargetIndex(1))));
    assert_eq!(decide("c.example", 80, Some("ann")), (Some(2), Action::Drop));
    assert_eq!(decide("c.example", 80, Some("bob")), (None, Action::Target(OTHERWISE)));
    assert_eq!(decide("192.0.2.1", 443, None), (None, Action::Target(OTHERWISE)));
}

#[test]
fn what_is_not_known_meets_no_condition_and_a_rule_without_conditions_always_matches() {
    let unmet = [
        Condition::User(["ann".into()].into()),
        Condition::Source(networks(&["0.0.0.0/0", "::/0"])),
        Condition::Destination(networks(&["0.0.0.0/0", "::/0"])),
        Condition::Port([0..=65535].into()),
        suffixes(&["example"]),
        Condition::Sni(names(&["a.example"])),
        Condition::Alpn(protocols(&["h2"]).into()),
        Condition::Host(names(&["a.example"])),
        Condition::Path(["".into()].into()),
    ];
    for condition in unmet {
        let rules = Rules::new(vec![rule(vec![condition.clone()], Action::Drop)]);
        assert_eq!(rules.decide(&nothing(), OTHERWISE).rule, None, "{}", condition.as_str());
        assert_eq!(rules.explain(&nothing())[0].map(Condition::as_str), Some(condition.as_str()));
    }
    let always = Rules::new(vec![rule(vec![], Action::Drop)]);
    assert_eq!(always.decide(&nothing(), OTHERWISE).action, Action::Drop);
    assert!(matches!(always.explain(&nothing())[..], [None]));
}

#[test]
fn names_come_from_the_request_then_from_the_hello_then_from_the_host_field() {
    let rules = Rules::new(vec![rule(vec![suffixes(&["a.example"])], Action::Drop)]);
    let hits = |facts: &Facts<'_>| rules.decide(facts, OTHERWISE).rule.is_some();
    assert!(hits(&Facts { sni: Some("A.example"), ..nothing() }));
    assert!(hits(&Facts { host: Some("x.a.example"), ..nothing() }));
    assert!(!hits(&Facts { sni: Some("b.example"), host: Some("a.example"), ..nothing() }));
    let elsewhere = to("b.example", 443);
    assert!(!hits(&Facts { destination: Some(&elsewhere), sni: Some("a.example"), ..nothing() }));
    let exact = Rules::new(vec![rule(vec![Condition::Sni(names(&["a.example"]))], Action::Drop)]);
    let facts = Facts { destination: Some(&elsewhere), sni: Some("a.example"), ..nothing() };
    assert!(exact.decide(&facts, OTHERWISE).rule.is_some());
}

#[test]
fn one_protocol_of_those_offered_is_enough_and_is_compared_byte_for_byte() {
    let rules =
        Rules::new(vec![rule(vec![Condition::Alpn(protocols(&["h2", "acme-tls/1"]).into())], Action::Drop)]);
    let hits = |offered: &[&str]| {
        let offered = protocols(offered);
        rules.decide(&Facts { alpn: &offered, ..nothing() }, OTHERWISE).rule.is_some()
    };
    assert!(hits(&["http/1.1", "h2"]) && hits(&["acme-tls/1"]));
    for other in [&[][..], &["http/1.1"], &["H2"], &["h2c"], &["h"]] {
        assert!(!hits(other), "{other:?}");
    }
}

#[test]
fn sources_ports_paths_and_listeners_are_told_apart() {
    let client = ClientAddr::Ip("[::ffff:192.0.2.9]:1".parse().unwrap());
    let destination = to("192.0.2.1", 8080);
    let facts = Facts {
        client: &client,
        destination: Some(&destination),
        path: Some("/api/v1"),
        listener: ListenerIndex(3),
        ..nothing()
    };
    let holds = |condition: Condition| {
        Rules::new(vec![rule(vec![condition], Action::Drop)]).decide(&facts, OTHERWISE).rule.is_some()
    };
    assert!(holds(Condition::Source(networks(&["192.0.2.0/24"]))));
    assert!(!holds(Condition::Source(networks(&["198.51.100.0/24"]))));
    assert!(holds(Condition::Destination(networks(&["192.0.2.0/31"]))));
    assert!(holds(Condition::Port([1..=2, 8000..=8080].into())) && !holds(Condition::Port([1..=2].into())));
    assert!(holds(Condition::Path(["/x".into(), "/api/".into()].into())));
    assert!(!holds(Condition::Path(["/API".into()].into())));
    assert!(holds(Condition::Listener([ListenerIndex(3)].into())));
    assert!(!holds(Condition::Listener([ListenerIndex(0)].into())));
}

#[derive(Clone, Debug)]
struct Plain {
    suffix: Option<String>,
    ports: Option<RangeInclusive<u16>>,
    user: Option<String>,
    source: Option<u8>,
}

proptest! {
    /// A naive matcher over the same rules says the same.
    #[test]
    fn decisions_are_those_of_a_naive_matcher(
        plain in prop::collection::vec(
            (
                prop::option::of("[ab](\\.[ab]){0,2}"),
                prop::option::of((0u16..6, 0u16..3)),
                prop::option::of("[xy]"),
                prop::option::of(0u8..4),
            ),
            0..12,
        ),
        name in "[ab](\\.[ab]){0,3}",
        port in 1u16..8,
        user in prop::option::of("[xyz]"),
        source in 0u8..4,
    ) {
        let plain: Vec<Plain> = plain
            .into_iter()
            .map(|(suffix, ports, user, source)| {
                Plain { suffix, ports: ports.map(|(from, more)| from..=from + more), user, source }
            })
            .collect();
        let rules = Rules::new(plain.iter().map(|plain| {
            let mut conditions = Vec::new();
            conditions.extend(plain.suffix.as_ref().map(|name| suffixes(&[name])));
            conditions.extend(plain.ports.clone().map(|range| Condition::Port([range].into())));
            conditions.extend(plain.user.as_ref().map(|user| Condition::User([user.as_str().into()].into())));
            conditions.extend(plain.source.map(|net| Condition::Source(networks(&[&format!("10.{net}.0.0/16")]))));
            rule(conditions, Action::Drop)
        }).collect());
        let client = ClientAddr::Ip(format!("10.{source}.1.1:5").parse().unwrap());
        let destination = to(&name, port);
        let facts = Facts { user: user.as_deref(), client: &client, destination: Some(&destination), ..nothing() };
        let expected = plain.iter().position(|rule| {
            rule.suffix.as_ref().is_none_or(|suffix| name == *suffix || name.ends_with(&format!(".{suffix}")))
                && rule.ports.as_ref().is_none_or(|range| range.contains(&port))
                && rule.user.as_ref().is_none_or(|wanted| user.as_ref() == Some(wanted))
                && rule.source.is_none_or(|wanted| wanted == source)
        });
        let decided = rules.decide(&facts, OTHERWISE).rule;
        prop_assert_eq!(decided.map(|index| usize::from(index.0)), expected);
        prop_assert_eq!(rules.explain(&facts).len(), expected.map_or(plain.len(), |at| at + 1));
    }
}
