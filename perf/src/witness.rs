//! What the forwarder and the machine spent, read from /proc at both ends of the measured window.

use crate::error::LoadError;
use serde::Serialize;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Ticks a second in /proc/PID/stat and /proc/stat: USER_HZ, 100 on every architecture Linux still builds for.
const TICKS_PER_SECOND: f64 = 100.0;

/// utime and stime, counted from the state letter that follows the name in /proc/PID/stat (proc(5)).
const UTIME_AFTER_NAME: usize = 11;
const STIME_AFTER_NAME: usize = 12;

/// Both counts of a process differ by a tick at each end, and the thread that runs now is not up to date.
const TOLERATED_DIFFERENCE_SECONDS: f64 = 0.03;

/// The spending so far of the watched processes and of every core.
pub(crate) struct Sample {
    threads: HashMap<u32, Thread>,
    process_ticks: u64,
    cores: Vec<CoreTicks>,
}

/// A thread's CPU time so far.
struct Thread {
    ns: u64,
    name: String,
}

#[derive(Clone, Copy)]
struct CoreTicks {
    busy: u64,
    softirq: u64,
    steal: u64,
}

/// What was spent between two samples, in seconds of CPU.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Spending {
    /// The figure to use: threads, unless some ended within the window; then the processes'.
    pub(crate) cpu_seconds: f64,
    /// Sum over all threads alive at the end (io-wq included), from schedstat, exact.
    pub(crate) threads_seconds: f64,
    /// utime + stime of the processes, ended threads included, in steps of 10 ms.
    pub(crate) processes_seconds: f64,
    /// Threads alive at the start and gone at the end.
    pub(crate) threads_ended: usize,
    /// Threads alive at the end.
    pub(crate) threads: usize,
    /// Those of them that spent anything, the busiest first: how work is spread over workers.
    pub(crate) by_thread: Vec<ThreadSpending>,
    /// Each core of the machine, whoever used it.
    pub(crate) cores: Vec<CoreSpending>,
}

/// One thread's share.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ThreadSpending {
    pub(crate) tid: u32,
    /// As the thread calls itself; empty where it has ended meanwhile.
    pub(crate) name: String,
    pub(crate) seconds: f64,
}

/// One core's time, in seconds, in steps of 10 ms.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CoreSpending {
    /// user, nice, system, irq and softirq.
    pub(crate) busy_seconds: f64,
    /// Of these, softirq.
    pub(crate) softirq_seconds: f64,
    /// Taken away by the hypervisor.
    pub(crate) steal_seconds: f64,
}

impl Sample {
    /// Reads the counters of `pids` and of the machine.
    pub(crate) fn take(pids: &[u32]) -> Result<Sample, LoadError> {
        let mut threads = HashMap::new();
        let mut process_ticks = 0;
        for &pid in pids {
            read_threads(pid, &mut threads).map_err(|source| LoadError::Unwatchable { pid, source })?;
            process_ticks +=
                read_process_ticks(pid).map_err(|source| LoadError::Unwatchable { pid, source })?;
        }
        let stat = fs::read_to_string("/proc/stat").map_err(LoadError::system("read /proc/stat"))?;
        Ok(Sample { threads, process_ticks, cores: parse_cores(&stat) })
    }

    /// What was spent from `self` to `later`.
    pub(crate) fn until(&self, later: &Sample) -> Spending {
        let by_thread = self.threads_until(later);
        let threads_seconds = by_thread.iter().map(|thread| thread.seconds).sum();
        let processes_seconds = seconds_from_ticks(later.process_ticks.saturating_sub(self.process_ticks));
        let threads_ended = self.threads.keys().filter(|tid| !later.threads.contains_key(tid)).count();
        let short_lived = processes_seconds - threads_seconds > TOLERATED_DIFFERENCE_SECONDS;
        let cores = self.cores.iter().zip(&later.cores).map(|(from, to)| CoreSpending {
            busy_seconds: seconds_from_ticks(to.busy.saturating_sub(from.busy)),
            softirq_seconds: seconds_from_ticks(to.softirq.saturating_sub(from.softirq)),
            steal_seconds: seconds_from_ticks(to.steal.saturating_sub(from.steal)),
        });
        Spending {
            cpu_seconds: if short_lived { processes_seconds } else { threads_seconds },
            threads_seconds,
            processes_seconds,
            threads_ended,
            threads: later.threads.len(),
            by_thread,
            cores: cores.collect(),
        }
    }

    fn threads_until(&self, later: &Sample) -> Vec<ThreadSpending> {
        let spent = later.threads.iter().map(|(&tid, thread)| {
            let before = self.threads.get(&tid).map_or(0, |thread| thread.ns);
            let seconds = seconds_from_ns(thread.ns.saturating_sub(before));
            ThreadSpending { tid, name: thread.name.clone(), seconds }
        });
        let mut by_thread: Vec<ThreadSpending> = spent.filter(|thread| thread.seconds > 0.0).collect();
        by_thread.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
        by_thread
    }
}

#[expect(clippy::cast_precision_loss, reason = "a window's nanoseconds fit 53 bits")]
fn seconds_from_ns(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[expect(clippy::cast_precision_loss, reason = "a machine's ticks fit 53 bits")]
fn seconds_from_ticks(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND
}

fn read_threads(pid: u32, threads: &mut HashMap<u32, Thread>) -> std::io::Result<()> {
    for entry in fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))? {
        let path = entry?.path();
        let tid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        // A thread may end between the listing and the reading: it is then counted by its process alone.
        let Ok(schedstat) = fs::read_to_string(path.join("schedstat")) else { continue };
        let ns = schedstat.split_ascii_whitespace().next().and_then(|field| field.parse().ok());
        if let (Some(tid), Some(ns)) = (tid, ns) {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default().trim_end().to_owned();
            threads.insert(tid, Thread { ns, name });
        }
    }
    Ok(())
}

fn read_process_ticks(pid: u32) -> std::io::Result<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    parse_process_ticks(&stat)
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "stat has no utime and stime"))
}

/// The name stands in parentheses and may hold any byte, more parentheses included.
fn parse_process_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    let utime: u64 = fields.get(UTIME_AFTER_NAME)?.parse().ok()?;
    let stime: u64 = fields.get(STIME_AFTER_NAME)?.parse().ok()?;
    Some(utime + stime)
}

/// The lines cpu0, cpu1, …: user nice system idle iowait irq softirq steal (proc(5)).
fn parse_cores(stat: &str) -> Vec<CoreTicks> {
    stat.lines()
        .filter_map(|line| line.strip_prefix("cpu"))
        .filter(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        .map(|rest| {
            let ticks: Vec<u64> =
                rest.split_ascii_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
            let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
            CoreTicks { busy: at(0) + at(1) + at(2) + at(5) + at(6), softirq: at(6), steal: at(7) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 120 0 0 0 31 11 0 0 20 0 1 0 100";
        assert_eq!(parse_process_ticks(stat), Some(42));
    }

    #[test]
    fn cores_are_read_without_the_sum_line() {
        let cores =
            parse_cores("cpu  9 9 9 9 9 9 9 9\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 1 0 0 0 0 0 0 0\nintr 5\n");
        assert_eq!(cores.len(), 2);
        assert_eq!((cores[0].busy, cores[0].softirq, cores[0].steal), (19, 7, 8));
        assert_eq!(cores[1].busy, 1);
    }

    #[test]
    fn work_of_this_process_is_seen() {
        let pid = std::process::id();
        let before = Sample::take(&[pid]).expect("this process is watchable");
        let mut sum = 0_u64;
        loop {
            sum = (0..1_000_000).fold(sum, |sum, term| std::hint::black_box(sum ^ term));
            let spending = before.until(&Sample::take(&[pid]).expect("this process is watchable"));
            if spending.threads_seconds > 0.05 {
                let busiest = spending.by_thread.first().expect("a thread has spent that time");
                assert!(busiest.seconds > 0.0 && !busiest.name.is_empty(), "{busiest:?}");
                break;
            }
        }
        assert!(sum < u64::MAX);
    }
}
