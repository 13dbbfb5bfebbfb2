//! What control makes of failures, findings and time, from one snapshot to the next.

use std::path::Path;

use ringweir_flow::health::{Evidence, Outcome, TrialPhase};
use ringweir_flow::snapshot::WorkerIndex;
use tokio::time::advance;

use super::*;
use crate::assemble::{Knowledge, assemble};

/// A daemon without sockets: what is known, and the snapshot that is served.
struct World {
    config: Config,
    knowledge: Knowledge,
    snapshot: Snapshot,
}

/// Two upstreams in a round-robin group, and what else the group has.
fn pool(more: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n\
         [upstream.a]\naddress = \"10.0.0.1:1\"\n[upstream.b]\naddress = \"10.0.0.2:1\"\n\
         [upstream.c]\naddress = \"10.0.0.3:1\"\n\
         [group.pool]\npassive = {{ failures = 3, eject = \"30s\" }}\n{more}\n\
         [check.alive]\nschedule = [\"1s\"]\n"
    )
}

const TWO: &str = "members = [\"a\", \"b\"]\n";

fn parse(text: &str) -> Config {
    crate::config::parse(text, "f", Path::new("")).unwrap()
}

impl World {
    fn new(text: &str) -> World {
        let config = parse(text);
        let mut knowledge = Knowledge::default();
        knowledge.care.reconfigure(&config);
        let snapshot = assemble(&config, &mut knowledge, &[], 1, 1, false);
        World { config, knowledge, snapshot }
    }

    fn care(&mut self) -> &mut Care {
        &mut self.knowledge.care
    }

    /// As the daemon does.
    fn publish(&mut self) {
        let assemble =
            |knowledge: &mut Knowledge, config: &Config| assemble(config, knowledge, &[], 1, 1, false);
        let mut next = assemble(&mut self.knowledge, &self.config);
        if self.knowledge.care.release_the_needed(&next) {
            next = assemble(&mut self.knowledge, &self.config);
        }
        if self.knowledge.care.handle_change((&self.snapshot, &next), &self.config, |_, _| None) {
            next = assemble(&mut self.knowledge, &self.config);
        }
        self.snapshot = next;
    }

    fn reload(&mut self, text: &str) {
        self.config = parse(text);
        self.knowledge.retain(&self.config);
        self.knowledge.care.reconfigure(&self.config);
        self.publish();
    }

    fn target(&self, name: &str) -> &ringweir_flow::snapshot::Target {
        self.snapshot.targets.iter().find(|target| &*target.name == name).unwrap()
    }

    fn health(&self, name: &str) -> Health {
        self.target(name).health
    }

    /// Checks find this of a target.
    fn find(&mut self, name: &str, health: Health) {
        self.knowledge.health.insert(name.into(), health);
        self.publish();
    }

    /// So many sessions in a row fail there, and a worker calls.
    fn fail(&mut self, name: &str, times: usize) -> bool {
        let counters = Arc::clone(&self.target(name).counters);
        for _ in 0..times {
            Outcomes::of(&counters).record(WorkerIndex(0), Outcome::ConnectFailed);
        }
        let is_changed = self.knowledge.care.handle_raised(&name.into(), &self.snapshot);
        self.publish();
        is_changed
    }

    /// Lets the next moment come that control waits for; how long that took.
    async fn wait(&mut self) -> Duration {
        let (at, now) = (self.care().poll_timeout().expect("something is due"), Clock::now());
        advance(at - now).await;
        if self.care().handle_timeout() {
            self.publish();
        }
        Clock::now() - now
    }

    /// The weights and roles of the pool's members, by name.
    fn members(&self) -> Vec<(&str, u32, Role)> {
        let TargetKind::Group(group) = &self.target("pool").kind else { unreachable!() };
        let members = group.members.iter();
        members
            .map(|member| (&*self.snapshot.target(member.target).name, member.weight, member.role))
            .collect()
    }

    fn events(&mut self, name: &str) -> Vec<(&'static str, Option<String>)> {
        let entries = self.care().history.entries().into_iter().filter(|entry| entry.target == name);
        entries.map(|entry| (entry.event.as_str(), entry.why)).collect()
    }

    fn words(&mut self, name: &str) -> Vec<&'static str> {
        self.events(name).into_iter().map(|(word, _)| word).collect()
    }
}

fn finding(name: &str, took_ms: u64, evidence: Evidence) -> Finding {
    let error = (evidence == Evidence::Silence).then(|| "no answer".to_owned());
    let took = Duration::from_millis(took_ms);
    let health = if error.is_none() { Health::Up } else { Health::Down };
    Finding { target: name.into(), error, took, stages: Vec::new(), evidence, health }
}

#[tokio::test(start_paused = true)]
async fn failures_eject_time_brings_a_trial_and_one_session_the_return() {
    let mut world = World::new(&pool(TWO));
    assert!(!world.fail("a", 2), "not enough");
    assert!(world.fail("a", 1));
    assert_eq!((world.health("a"), world.health("pool")), (Health::Ejected, Health::Unknown));
    let (since, why) = world.care().standing("a");
    assert_eq!((since, why.as_deref()), (Duration::ZERO, Some("connects failed; for 30 s")));
    assert_eq!(world.wait().await, Duration::from_secs(30));
    assert_eq!(world.health("a"), Health::Trial);
    let trial = world.target("a").trial.clone().unwrap();
    assert!(trial.take() && trial.handle(Outcome::ConnectFailed));
    assert!(world.fail("a", 0), "the trial is decided");
    assert_eq!(world.wait().await, Duration::from_secs(60), "twice as long");
    let trial = world.target("a").trial.clone().unwrap();
    assert!(trial.take() && trial.handle(Outcome::Connected));
    assert!(world.fail("a", 0));
    assert_eq!(world.health("a"), Health::Unknown);
    assert_eq!(world.words("a"), ["ejected", "trial", "ejected", "trial", "returned"]);
    assert_eq!(world.care().ejections("a"), 2);
}

#[tokio::test(start_paused = true)]
async fn who_was_ejected_is_let_back_when_nobody_else_is_left() {
    let mut world = World::new(&pool(TWO));
    assert!(world.fail("a", 3));
    assert!(!world.fail("b", 3), "the last one never is");
    assert_eq!(world.health("a"), Health::Ejected);
    world.find("b", Health::Down);
    assert_eq!((world.health("a"), world.health("pool")), (Health::Unknown, Health::Unknown));
    assert_eq!(world.words("a"), ["ejected", "returned"]);
}

#[tokio::test(start_paused = true)]
async fn ejections_and_counts_live_through_reloads() {
    let mut world = World::new(&pool(TWO));
    world.fail("a", 3);
    advance(Duration::from_secs(10)).await;
    world.reload(&pool(&format!("{TWO}policy = \"random\"\n")));
    assert_eq!(world.health("a"), Health::Ejected);
    let (since, why) = world.care().standing("a");
    assert_eq!((since, why.as_deref()), (Duration::from_secs(10), Some("connects failed; for 30 s")));
    assert_eq!((world.care().ejections("a"), world.care().history.counts("a")["ejected"]), (1, 1));
    assert_eq!(world.wait().await, Duration::from_secs(20), "its time goes on");
    let trial = world.target("a").trial.clone().unwrap();
    assert!(trial.take());
    world.reload(&pool(TWO));
    assert_eq!(world.target("a").trial.as_ref().unwrap().phase(), TrialPhase::Taken, "no second session");
    world.reload(&pool(&format!("{TWO}[upstream.d]\naddress = \"10.0.0.4:1\"\n")));
    assert_eq!(world.care().standing("d").0, Duration::ZERO, "who is new is new");
    let without = pool("members = [\"b\"]\n").replace("[upstream.a]\naddress = \"10.0.0.1:1\"\n", "");
    world.reload(&without);
    assert!(world.care().history.counts("a").is_empty());
    world.reload(&pool(TWO));
    assert_eq!(
        (world.health("a"), world.care().ejections("a")),
        (Health::Unknown, 0),
        "a stranger by its name"
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_stays_the_same_while_its_terms_do() {
    let mut world = World::new(&pool(TWO));
    let before = world.target("a").watch.clone().unwrap();
    world.reload(&pool(&format!("{TWO}policy = \"random\"\n")));
    assert!(Arc::ptr_eq(&before, world.target("a").watch.as_ref().unwrap()));
    world.reload(&pool(TWO).replace("failures = 3", "failures = 7"));
    assert_eq!(world.target("a").watch.as_ref().unwrap().failures(), 7);
    world.fail("a", 7);
    assert_eq!(world.health("a"), Health::Ejected);
    world.reload(&pool(TWO).replace("{ failures = 3, eject = \"30s\" }", "false"));
    assert!(world.target("a").watch.is_none());
    assert_eq!(world.health("a"), Health::Unknown, "nobody is out for what is no longer looked at");
}

#[test]
fn what_workers_raise_arrives_by_name() {
    let (care, mut inbox) = Care::new();
    Bell(care.notices()).raise(&"a".into());
    assert!(matches!(inbox.try_recv(), Ok(Notice::Raised(name)) if &*name == "a"));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_comes_back_grows_step_by_step_through_a_reload() {
    let text = pool(&format!("{TWO}slow_start = \"100s\"\n"));
    let mut world = World::new(&text);
    world.find("a", Health::Up);
    assert_eq!(world.members(), [("a", 1, Role::Primary), ("b", 1, Role::Primary)], "it is no return");
    world.find("a", Health::Down);
    world.find("a", Health::Up);
    let weights = |world: &World| world.members().iter().map(|(_, weight, _)| *weight).collect::<Vec<_>>();
    assert_eq!(weights(&world), [1, 10]);
    let mut waited = world.wait().await + world.wait().await;
    assert_eq!(weights(&world), [3, 10]);
    world.reload(&text);
    assert_eq!(weights(&world), [3, 10], "it grows on");
    for _ in 3..10 {
        waited += world.wait().await;
    }
    assert_eq!(weights(&world), [1, 1]);
    assert!(waited >= Duration::from_secs(100) && waited < Duration::from_millis(100_100), "{waited:?}");
    assert!(world.care().poll_timeout().is_none(), "nothing is waited for any more");
}

/// Answers the one probe that is asked for.
fn probe(world: &mut World, error: Option<&str>) -> (String, bool) {
    let wanted = world.knowledge.care.spares_to_probe(&world.snapshot);
    let [(group, spare)] = &wanted[..] else { panic!("{wanted:?}") };
    let is_changed = world.care().handle_probed(group, spare, error.map(str::to_owned));
    if is_changed {
        world.publish();
    }
    (spare.to_string(), is_changed)
}

#[tokio::test(start_paused = true)]
async fn a_spare_takes_a_place_once_it_was_probed_and_keeps_it_through_a_reload() {
    let text = pool("members = [\"a\", \"b\"]\nactive = 1\n");
    let mut world = World::new(&text);
    assert_eq!(world.members(), [("a", 1, Role::Primary), ("b", 1, Role::Backup)]);
    assert!(world.knowledge.care.spares_to_probe(&world.snapshot).is_empty());
    world.find("a", Health::Down);
    assert_eq!(probe(&mut world, Some("refused")), ("b".to_owned(), false));
    assert!(world.knowledge.care.spares_to_probe(&world.snapshot).is_empty(), "it is passed over");
    assert_eq!(world.wait().await, FORGIVE_AFTER);
    assert_eq!(probe(&mut world, None), ("b".to_owned(), true));
    assert_eq!(world.members(), [("a", 1, Role::Backup), ("b", 1, Role::Primary)]);
    world.reload(&text);
    world.find("a", Health::Up);
    assert_eq!(world.members(), [("a", 1, Role::Backup), ("b", 1, Role::Primary)], "who came back waits");
    assert_eq!(world.care().reserve("pool"), ["a"]);
    // While the place was empty the reserve stood in.
    let replaced = ("replaced", Some("b in the place of a".to_owned()));
    let to_backups = ("switched", Some("to its backups".to_owned()));
    let back = ("switched", Some("back from its backups".to_owned()));
    assert_eq!(world.events("pool")[..3], [to_backups, replaced, back]);
}

#[tokio::test(start_paused = true)]
async fn the_order_by_latency_follows_probes_and_lives_through_a_reload() {
    let text = pool(&format!("{TWO}policy = \"failover\"\norder = \"latency\"\ncheck = \"alive\"\n"));
    let mut world = World::new(&text);
    let probed = |world: &mut World, name: &str, took_ms: u64, evidence: Evidence| {
        let finding = finding(name, took_ms, evidence);
        let is_changed = world.knowledge.care.handle_probe(&finding, &world.config);
        if is_changed {
            world.publish();
        }
        is_changed
    };
    assert!(!probed(&mut world, "a", 200, Evidence::Answer));
    assert!(!probed(&mut world, "b", 160, Evidence::Answer), "within the tolerance");
    assert!(probed(&mut world, "a", 600, Evidence::Answer), "300 ms of late");
    let first = |world: &World| world.members()[0].0.to_owned();
    assert_eq!(first(&world), "b");
    world.reload(&text);
    assert_eq!(first(&world), "b");
    assert_eq!(world.events("pool"), [("switched", Some("from a to b".to_owned()))]);
    assert!(probed(&mut world, "b", 3000, Evidence::Silence), "what is not known overtakes nobody");
    assert_eq!(first(&world), "a");
}

#[tokio::test(start_paused = true)]
async fn members_that_fall_silent_all_at_once_keep_their_health() {
    let mut world = World::new(&pool(&format!("{TWO}check = \"alive\"\n")));
    let tell = |world: &mut World, name: &str, evidence: Evidence| {
        let finding = finding(name, 1, evidence);
        world.knowledge.care.handle_probe(&finding, &world.config);
        world.find(name, finding.health);
    };
    for name in ["a", "b"] {
        tell(&mut world, name, Evidence::Answer);
    }
    for name in ["a", "b"] {
        tell(&mut world, name, Evidence::Silence);
    }
    assert_eq!([world.health("a"), world.health("b")], [Health::Up; 2]);
    advance(Duration::from_secs(5)).await;
    assert_eq!(world.care().outage(), (Some(Duration::from_secs(5)), 1));
    world.reload(&pool(&format!("{TWO}check = \"alive\"\n")));
    assert_eq!(world.care().outage(), (Some(Duration::from_secs(5)), 1), "a reload ends nothing");
    world.care().retain_probed(|_| true);
    tell(&mut world, "a", Evidence::Answer);
    assert_eq!((world.care().outage().0, world.health("b")), (None, Health::Up), "b was not asked yet");
    tell(&mut world, "b", Evidence::Silence);
    assert_eq!(world.health("b"), Health::Down);
    // One of two is disabled, and the other one silent: that is no outage, and who is back begins anew.
    world.care().retain_probed(|name| name == "a");
    tell(&mut world, "a", Evidence::Silence);
    assert_eq!((world.health("a"), world.care().outage()), (Health::Down, (None, 1)));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_ejected_for_an_outage_of_our_own() {
    let mut world = World::new(&pool(&format!("{TWO}check = \"alive\"\n")));
    let tell = |world: &mut World, name: &str, evidence: Evidence| {
        world.knowledge.care.handle_probe(&finding(name, 1, evidence), &world.config);
        world.publish();
    };
    for name in ["a", "b"] {
        tell(&mut world, name, Evidence::Answer);
    }
    assert!(world.fail("a", 3), "sessions notice before probes do");
    tell(&mut world, "a", Evidence::Silence);
    assert_eq!(world.health("a"), Health::Ejected);
    tell(&mut world, "b", Evidence::Silence);
    assert_eq!([world.health("a"), world.health("b")], [Health::Unknown; 2]);
    assert!(!world.fail("b", 3) && !world.fail("a", 3), "it is still the network");
    tell(&mut world, "a", Evidence::Answer);
    assert!(!world.fail("b", 1), "b was not asked since");
    assert!(world.fail("a", 1));
    assert_eq!(
        world.care().poll_timeout(),
        Some(Clock::now() + Duration::from_secs(30)),
        "for the first time"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failover_tells_whom_it_switches_to() {
    let mut world = World::new(&pool("members = [\"a\", \"b\"]\npolicy = \"failover\"\n"));
    world.find("b", Health::Up);
    assert_eq!(world.words("pool"), ["up"]);
    world.find("a", Health::Down);
    world.find("b", Health::Down);
    assert_eq!(world.words("pool"), ["up", "switched", "down"], "nobody is left: down, and no switch");
    assert_eq!(world.care().standing("pool").1.as_deref(), Some("no member is left"));
    world.find("b", Health::Up);
    assert_eq!(world.words("pool"), ["up", "switched", "down", "up"], "as it was");
    world.find("a", Health::Up);
    assert_eq!(world.events("pool").pop(), Some(("switched", Some("from b to a".to_owned()))));
    // Whether it is sound again is not known before the trial has ended.
    world.fail("a", 3);
    assert_eq!(world.wait().await, Duration::from_secs(30));
    assert_eq!(world.events("pool").pop(), Some(("switched", Some("from a to b".to_owned()))));
    let trial = world.target("a").trial.clone().unwrap();
    assert!(trial.take() && trial.handle(Outcome::Connected));
    world.fail("a", 0);
    assert_eq!(world.events("pool").pop(), Some(("switched", Some("from b to a".to_owned()))));
    world.reload(&pool("members = [\"b\", \"a\"]\npolicy = \"failover\"\n"));
    assert_eq!(world.events("pool").pop(), Some(("switched", Some("from a to b".to_owned()))));
    let known = world.events("pool").len();
    world.reload(&pool("members = [\"b\", \"a\"]\npolicy = \"random\"\n"));
    assert_eq!(world.events("pool").len(), known, "another policy is no switch");
}

#[tokio::test(start_paused = true)]
async fn backups_that_come_in_and_go_are_told_of() {
    let text = pool("members = [\"a\", \"b\", { target = \"c\", backup = true }]\n");
    let mut world = World::new(&text);
    world.find("a", Health::Down);
    assert!(world.events("pool").is_empty(), "b serves still");
    let serving = |world: &World| serving::serving(&world.snapshot, &world.target("pool").kind);
    assert_eq!(serving(&world), ["b"]);
    world.find("b", Health::Down);
    assert_eq!(world.events("pool"), [("switched", Some("to its backups".to_owned()))]);
    assert_eq!(serving(&world), ["c"]);
    world.find("b", Health::Up);
    assert_eq!(
        world.events("pool")[1..],
        [("up", None), ("switched", Some("back from its backups".to_owned()))]
    );
    let out = serving::members_out(&world.snapshot, &world.target("pool").kind);
    assert_eq!(out, BTreeMap::from([("a".to_owned(), Health::Down)]));
}

#[tokio::test(start_paused = true)]
async fn a_selection_is_a_switch_whatever_its_health() {
    let mut world = World::new(&pool(&format!("{TWO}policy = \"select\"\n")));
    world.find("b", Health::Down);
    world.knowledge.selected.insert("pool".into(), "b".into());
    world.publish();
    world.publish();
    assert_eq!(world.events("pool"), [("switched", Some("from a to b".to_owned()))]);
    assert!(serving::serving(&world.snapshot, &world.target("pool").kind).is_empty(), "it is down");
}
