//! Active health checks: one task for each checked upstream, probes bounded in number and in time.

mod exec;
mod fetch;
mod http;
mod reach;
mod sealed;
mod talk;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::health::{Evidence, Judgement, Verdict, VerdictTerms};
use ringweir_flow::snapshot::Health;
use ringweir_flow::time::Instant;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

pub(crate) use self::fetch::fetch;
use self::reach::reach;
use crate::model::{Check, CheckKind, Upstream};
use crate::resolve::Names;

/// How many probes are in flight at once, over all targets.
pub(crate) const MAX_PROBES: usize = 64;

/// Waits are drawn from this much around the scheduled ones, so that probes of many targets do not march in step.
pub(crate) const JITTER: f64 = 0.1;

/// What a probe found, and what follows from it.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) target: Arc<str>,
    /// `None` when the probe succeeded.
    pub(crate) error: Option<String>,
    /// How long the probe took.
    pub(crate) took: Duration,
    /// How far it came, and when.
    pub(crate) stages: Vec<StageTime>,
    /// What it shows of the network.
    pub(crate) evidence: Evidence,
    /// The health from now on.
    pub(crate) health: Health,
}

/// A running check; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    upstream: Upstream,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    /// Whether a new configuration asks for the very same.
    pub(crate) fn is_same(&self, upstream: &Upstream) -> bool {
        self.upstream == *upstream
    }
}

/// Starts to check a target. The first probe goes out at once.
pub(crate) fn start(
    target: Arc<str>,
    check: Arc<Check>,
    upstream: Upstream,
    names: Arc<Names>,
    probes: Arc<Semaphore>,
    findings: mpsc::Sender<Finding>,
) -> Running {
    let mut prober = Prober::new(Arc::clone(&target), Arc::clone(&check), upstream.clone(), names);
    let task = tokio::spawn(async move {
        let origin = tokio::time::Instant::now();
        let terms = VerdictTerms { fall: check.fall, rise: check.rise, double_check: check.double_check };
        let mut verdict = Verdict::new(terms);
        let mut step = 0;
        loop {
            let (report, evidence) = {
                // The semaphore is never closed.
                let _permit = probes.acquire().await;
                prober.probe_for_evidence().await
            };
            let judgement = verdict.handle(report.error.is_none(), moment(origin));
            if judgement == Judgement::Doubted {
                continue;
            }
            let finding = Finding {
                target: Arc::clone(&target),
                error: report.error,
                took: report.took,
                stages: report.stages,
                evidence,
                health: verdict.health(),
            };
            if findings.send(finding).await.is_err() {
                return;
            }
            // After a change the schedule starts again: news wants to be confirmed soon.
            step = if judgement == Judgement::Changed { 0 } else { step + 1 };
            let wait = check.schedule[step.min(check.schedule.len() - 1)];
            sleep(jittered(wait)).await;
        }
    });
    Running { upstream, task }
}

/// Probes one target, again and again.
pub(crate) struct Prober {
    target: Arc<str>,
    check: Arc<Check>,
    upstream: Upstream,
    names: Arc<Names>,
    /// The addresses that were found last.
    known: Vec<SocketAddr>,
}

/// What one probe found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// `None` when it succeeded.
    pub(crate) error: Option<String>,
    /// How long it took.
    pub(crate) took: Duration,
    /// How far it came, and when.
    pub(crate) stages: Vec<StageTime>,
}

/// A probe that somebody asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Probe {
    pub(crate) target: String,
    /// The name of the check.
    pub(crate) check: String,
    #[serde(flatten)]
    pub(crate) report: Report,
}

impl Probe {
    /// For people: each stage, and when it was over.
    pub(crate) fn to_table(&self) -> String {
        let mut text = format!("{} by check {}\n", self.target, self.check);
        for time in &self.report.stages {
            text.push_str(&format!("  {:<10} {:>10.3} ms\n", time.stage.as_str(), time.at_ms));
        }
        let took_ms = millis(self.report.took);
        match &self.report.error {
            None => text.push_str(&format!("  {:<10} {took_ms:>10.3} ms\n", "ok")),
            Some(error) => text.push_str(&format!("  {:<10} {took_ms:>10.3} ms: {error}\n", "failed")),
        }
        text
    }
}

/// When a stage of a probe was over, from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageTime {
    pub(crate) stage: Stage,
    pub(crate) at_ms: f64,
}

/// What a probe goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// The target's name has its addresses.
    Resolve,
    /// The connection is open.
    Connect,
    /// A proxy on the way has said yes.
    Proxy,
    /// The connection is encrypted.
    Tls,
    /// The target has answered.
    FirstByte,
}

impl Stage {
    /// The word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Stage::Resolve => "resolve",
            Stage::Connect => "connect",
            Stage::Proxy => "proxy",
            Stage::Tls => "tls",
            Stage::FirstByte => "first-byte",
        }
    }
}

/// The stages of the probe that is under way.
struct Stages {
    begun: tokio::time::Instant,
    over: Vec<StageTime>,
    contact: Contact,
}

/// Whom a probe has met on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Contact {
    /// What is connected to is on this machine.
    is_local: bool,
    /// It leads on to another, as proxies do.
    leads_on: bool,
    /// What is connected to refused, which is an answer as well.
    has_refused: bool,
}

impl Stages {
    fn mark(&mut self, stage: Stage) {
        self.over.push(StageTime { stage, at_ms: millis(self.begun.elapsed()) });
    }

    fn has_passed(&self, stage: Stage) -> bool {
        self.over.iter().any(|time| time.stage == stage)
    }

    /// What the probe shows of the network: whether anything came back over it.
    fn evidence(&self, is_well: bool) -> Evidence {
        let Contact { is_local, leads_on, has_refused } = self.contact;
        let is_open = self.has_passed(Stage::Connect);
        match (is_local, leads_on) {
            (false, _) if is_open || has_refused => Evidence::Answer,
            (false, _) => Evidence::Silence,
            (true, false) => Evidence::Neither,
            (true, true) if is_well || self.has_passed(Stage::FirstByte) => Evidence::Answer,
            // The proxy runs, and gets through to nobody.
            (true, true) if is_open => Evidence::Silence,
            (true, true) => Evidence::Neither,
        }
    }
}

/// Milliseconds with three decimals.
pub(crate) fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

impl Prober {
    /// Knows nothing yet.
    pub(crate) fn new(target: Arc<str>, check: Arc<Check>, upstream: Upstream, names: Arc<Names>) -> Prober {
        Prober { target, check, upstream, names, known: Vec::new() }
    }

    /// For a probe beside any schedule: as the upstream's check says, or else by a connect.
    pub(crate) fn once(target: Arc<str>, upstream: Upstream, names: Arc<Names>) -> Prober {
        let check = upstream.check.clone().unwrap_or_else(|| Arc::new(Check::connect()));
        Prober::new(target, check, upstream, names)
    }

    /// The same, for no longer than `limit`.
    pub(crate) fn within(mut self, limit: Duration) -> Prober {
        let check = Arc::make_mut(&mut self.check);
        check.timeout = check.timeout.min(limit);
        self
    }

    /// Probes once for somebody who wants to see how it went.
    pub(crate) async fn probe_for_show(&mut self) -> Probe {
        let report = self.probe().await;
        Probe { target: self.target.to_string(), check: self.check.name.to_string(), report }
    }

    /// Probes once, for no longer than the check says.
    pub(crate) async fn probe(&mut self) -> Report {
        self.probe_for_evidence().await.0
    }

    /// Probes once, and tells as well what that shows of the network.
    async fn probe_for_evidence(&mut self) -> (Report, Evidence) {
        let (check, begun) = (Arc::clone(&self.check), tokio::time::Instant::now());
        let mut stages = Stages { begun, over: Vec::new(), contact: Contact::default() };
        let probe = async {
            match &check.kind {
                CheckKind::Tcp => reach(self, None, &mut stages).await.map(drop),
                CheckKind::Http(http) => http::probe(self, http, &mut stages).await,
                CheckKind::Talk(talk) => talk::probe(self, talk, &mut stages).await,
                CheckKind::Exec(exec) => exec::probe(self, exec).await,
            }
        };
        let result = timeout(check.timeout, probe).await;
        let result = result.unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout)));
        let evidence = match check.kind {
            // Whom a program asks is its own affair.
            CheckKind::Exec(_) => Evidence::Neither,
            CheckKind::Tcp | CheckKind::Http(_) | CheckKind::Talk(_) => stages.evidence(result.is_ok()),
        };
        (Report { error: result.err(), took: begun.elapsed(), stages: stages.over }, evidence)
    }
}

/// The time as state machines are told it.
fn moment(origin: tokio::time::Instant) -> Instant {
    Instant::ZERO + origin.elapsed()
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_answer_and_what_is_local_says_nothing() {
        let evidence = |contact: Contact, passed: &[Stage], is_well: bool| {
            let mut stages = Stages { begun: tokio::time::Instant::now(), over: Vec::new(), contact };
            passed.iter().for_each(|stage| stages.mark(*stage));
            stages.evidence(is_well)
        };
        let remote = Contact::default();
        assert_eq!(evidence(remote, &[], false), Evidence::Silence);
        assert_eq!(evidence(Contact { has_refused: true, ..remote }, &[], false), Evidence::Answer);
        assert_eq!(evidence(remote, &[Stage::Connect], false), Evidence::Answer);
        let local = Contact { is_local: true, ..remote };
        assert_eq!(evidence(local, &[Stage::Connect], true), Evidence::Neither);
        let proxy = Contact { leads_on: true, ..local };
        assert_eq!(evidence(proxy, &[], false), Evidence::Neither, "it does not run itself");
        assert_eq!(evidence(proxy, &[Stage::Connect], false), Evidence::Silence);
        let answered = [Stage::Connect, Stage::Proxy, Stage::FirstByte];
        assert_eq!(evidence(proxy, &answered, false), Evidence::Answer, "a bad status is one");
    }

    #[test]
    fn waits_stay_within_the_jitter() {
        let wait = Duration::from_secs(10);
        for _ in 0..1000 {
            let drawn = jittered(wait);
            assert!(drawn >= Duration::from_secs(9) && drawn <= Duration::from_secs(11));
        }
    }
}
