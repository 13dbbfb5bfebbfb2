//! Our own outage: while (nearly) nobody answers any more, the last good view is kept, for a network that is down says
//! nothing about those who are behind it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::health::{Evidence, News, Outage};
use ringweir_flow::time::Instant;

use crate::check::JITTER;
use crate::model::{Check, Config, TargetKind};

/// The window where nobody is probed, and nothing will be told.
const NO_CHECKS: Duration = Duration::from_secs(60);

/// What probes show of the network.
#[derive(Debug)]
pub(crate) struct Network {
    outage: Outage,
    is_watched: bool,
    /// Targets whose silence is not held against them, until a probe of their own after the outage.
    excused: HashSet<Arc<str>>,
    outages: u64,
}

impl Default for Network {
    fn default() -> Network {
        Network { outage: Outage::new(NO_CHECKS), is_watched: true, excused: HashSet::new(), outages: 0 }
    }
}

impl Network {
    /// Another configuration.
    pub(crate) fn reconfigure(&mut self, config: &Config, is_known: impl Fn(&str) -> bool) {
        self.is_watched = config.excuse_outages;
        let checks = config.targets.iter().filter_map(|target| match &target.kind {
            TargetKind::Upstream(upstream) => upstream.check.as_deref(),
            TargetKind::Group(_) => None,
        });
        self.outage.reconfigure(checks.map(longest_round).max().unwrap_or(NO_CHECKS));
        self.excused.retain(|name| self.is_watched && is_known(name));
    }

    /// Forgets those who are probed no more.
    pub(crate) fn retain(&mut self, is_probed: impl Fn(&str) -> bool) -> News {
        self.excused.retain(|name| is_probed(name));
        self.outage.retain(is_probed)
    }

    /// A probe has shown this. What follows may change the view of every target, also when it is no news.
    pub(crate) fn handle(&mut self, target: &Arc<str>, evidence: Evidence, now: Instant) -> News {
        if !self.is_watched {
            return News::None;
        }
        let news = self.outage.handle(target, evidence, now);
        match news {
            News::Began => self.outages += 1,
            News::Ended | News::None => {}
        }
        news
    }

    /// Those among `names` who are silent for the sake of the outage are excused from now on; the one that was probed
    /// after it is not.
    pub(crate) fn excuse<'a>(&mut self, probed: &str, names: impl Iterator<Item = &'a Arc<str>>) {
        if self.is_out() {
            let concerned = names.filter(|name| self.outage.concerns(name));
            self.excused.extend(concerned.cloned());
        } else {
            self.excused.remove(probed);
        }
    }

    /// Whether what checks found of a target is not held against it.
    pub(crate) fn excuses(&self, target: &str) -> bool {
        self.excused.contains(target)
    }

    /// How long before it was noticed it may have begun.
    pub(crate) fn window(&self) -> Duration {
        self.outage.window()
    }

    /// Since when it lasts, if it does.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.outage.since()
    }

    /// How many there were.
    pub(crate) fn outages(&self) -> u64 {
        self.outages
    }

    fn is_out(&self) -> bool {
        self.is_watched && self.outage.since().is_some()
    }
}

/// How long it takes at most from one finding of a check to the next.
fn longest_round(check: &Check) -> Duration {
    let wait = check.schedule.iter().max().copied().unwrap_or_default();
    let probes = if check.double_check { 2 } else { 1 };
    wait.mul_f64(1.0 + JITTER) + check.timeout * probes
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn network(more: &str) -> (Network, Vec<Arc<str>>) {
        let text = format!(
            "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\ntarget = \"pool\"\n\
             [upstream.a]\naddress = \"10.0.0.1:1\"\n[upstream.b]\naddress = \"10.0.0.2:1\"\n\
             [group.pool]\nmembers = [\"a\", \"b\"]\ncheck = \"alive\"\n\
             [check.alive]\nschedule = [\"1s\", \"10s\"]\ntimeout = \"3s\"\n{more}"
        );
        let config = crate::config::parse(&text, "f", Path::new("")).unwrap();
        let mut network = Network::default();
        network.reconfigure(&config, |_| true);
        (network, vec!["a".into(), "b".into()])
    }

    fn tell(
        network: &mut Network,
        names: &[Arc<str>],
        probed: usize,
        evidence: Evidence,
        seconds: u64,
    ) -> News {
        let news = network.handle(&names[probed], evidence, Instant::ZERO + Duration::from_secs(seconds));
        network.excuse(&names[probed], names.iter());
        news
    }

    #[test]
    fn everybody_is_excused_until_a_probe_of_their_own_after_it() {
        let (mut network, names) = network("");
        for probed in 0..2 {
            assert_eq!(tell(&mut network, &names, probed, Evidence::Answer, 0), News::None);
        }
        assert_eq!(tell(&mut network, &names, 0, Evidence::Silence, 10), News::None);
        assert!(!network.excuses("a"));
        assert_eq!(tell(&mut network, &names, 1, Evidence::Silence, 20), News::Began);
        assert!(network.excuses("a") && network.excuses("b") && network.since().is_some());
        assert_eq!(tell(&mut network, &names, 0, Evidence::Answer, 30), News::Ended);
        assert!(!network.excuses("a") && network.excuses("b"), "b was not asked since");
        assert_eq!(tell(&mut network, &names, 1, Evidence::Silence, 31), News::None);
        assert!(!network.excuses("b"), "that is its own fault");
        assert_eq!(network.outages(), 1);
    }

    #[test]
    fn the_window_is_the_longest_round_and_the_watch_can_be_left_out() {
        let (mut round, names) = network("");
        for probed in 0..2 {
            tell(&mut round, &names, probed, Evidence::Answer, 0);
        }
        tell(&mut round, &names, 0, Evidence::Silence, 100);
        // 10 s and a tenth, and 3 s: later than that a had its own fault.
        assert_eq!(tell(&mut round, &names, 1, Evidence::Silence, 115), News::None);
        let (mut unwatched, names) = network("[health]\nexcuse_outages = false\n");
        for (probed, evidence) in [(0, Evidence::Answer), (1, Evidence::Answer), (0, Evidence::Silence)] {
            tell(&mut unwatched, &names, probed, evidence, 0);
        }
        assert_eq!(tell(&mut unwatched, &names, 1, Evidence::Silence, 0), News::None);
        assert!(!unwatched.excuses("a"));
    }
}
