//! Many sessions that do nothing: what they cost, and whether they all still live.

use crate::drive::Context;
use crate::error::LoadError;
use crate::exchange::{Exchange, Message, Progress};
use crate::loads::open;
use serde::Serialize;
use std::collections::HashSet;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

/// Connects under way at once: below every listener's usual backlog (511 for nginx).
const OPENING_AT_ONCE: usize = 128;

/// A session that has not answered this long after the last one that did never will.
const SILENCE: Duration = Duration::from_secs(3);

/// What became of the sessions.
#[derive(Debug, Serialize)]
pub(crate) struct IdleReport {
    scenario: &'static str,
    to: String,
    /// Sessions asked for.
    connections: usize,
    /// Those that answered at first.
    opened: usize,
    /// Of these, those that answered again after the wait.
    alive: usize,
    wall_seconds: f64,
}

/// A line on stdout as soon as the sessions stand.
#[derive(Serialize)]
struct Held {
    held: usize,
}

/// Opens the sessions, says so, waits for a line on stdin, and asks each session once more.
pub(crate) fn run(
    context: &mut Context,
    connections: usize,
    size_bytes: usize,
) -> Result<IdleReport, LoadError> {
    let began = Instant::now();
    let mut crowd = Crowd { message: Message::new(size_bytes), members: Vec::new() };
    let opened = crowd.open_all(context, connections)?;
    let mut out = std::io::stdout();
    let held = serde_json::to_string(&Held { held: opened.len() });
    let held =
        held.map_err(|error| LoadError::Unwritable { what: "held".into(), reason: error.to_string() })?;
    writeln!(out, "{held}").map_err(LoadError::system("write to stdout"))?;
    out.flush().map_err(LoadError::system("write to stdout"))?;
    std::io::stdin().lock().read_line(&mut String::new()).map_err(LoadError::system("read stdin"))?;
    let alive = crowd.ask_all(context, &opened)?;
    Ok(IdleReport {
        scenario: "idle",
        to: context.dialer.to().to_string(),
        connections,
        opened: opened.len(),
        alive: alive.len(),
        wall_seconds: began.elapsed().as_secs_f64(),
    })
}

struct Crowd {
    message: Message,
    members: Vec<Exchange>,
}

impl Crowd {
    /// Returns the indices of those that answered.
    fn open_all(&mut self, context: &mut Context, connections: usize) -> Result<HashSet<usize>, LoadError> {
        let mut answered = HashSet::new();
        let mut waiting = HashSet::new();
        let mut last_answer = Instant::now();
        loop {
            while waiting.len() < OPENING_AT_ONCE && self.members.len() < connections {
                let index = self.members.len();
                let mut member = open(context, index, Instant::now())?;
                if member.begin(&mut self.message, Instant::now()).is_ok() {
                    waiting.insert(index);
                }
                self.members.push(member);
            }
            if waiting.is_empty() && self.members.len() == connections {
                return Ok(answered);
            }
            if self.gather(context, &mut waiting, &mut answered)? > 0 {
                last_answer = Instant::now();
            } else if last_answer.elapsed() > SILENCE {
                return Ok(answered);
            }
        }
    }

    /// One more echo on each of `asked`; returns those that answered.
    fn ask_all(
        &mut self,
        context: &mut Context,
        asked: &HashSet<usize>,
    ) -> Result<HashSet<usize>, LoadError> {
        let mut answered = HashSet::new();
        let mut waiting = HashSet::new();
        for &index in asked {
            if self.members[index].begin(&mut self.message, Instant::now()).is_ok() {
                waiting.insert(index);
            }
        }
        let mut last_answer = Instant::now();
        while !waiting.is_empty() && last_answer.elapsed() <= SILENCE {
            if self.gather(context, &mut waiting, &mut answered)? > 0 {
                last_answer = Instant::now();
            }
        }
        Ok(answered)
    }

    /// One turn of events; returns how many answered in it.
    fn gather(
        &mut self,
        context: &mut Context,
        waiting: &mut HashSet<usize>,
        answered: &mut HashSet<usize>,
    ) -> Result<usize, LoadError> {
        let before = answered.len();
        for event in 0..context.poller.wait(Some(SILENCE))? {
            let (index, flags) = context.poller.event(event);
            if !waiting.contains(&index) {
                continue;
            }
            match self.members[index].handle_ready(&mut self.message, flags) {
                Ok(Progress::Waiting) => {}
                Ok(Progress::Complete) => {
                    waiting.remove(&index);
                    answered.insert(index);
                }
                // A session that died is one that does not answer: it is missing from the count.
                Err(_) => {
                    waiting.remove(&index);
                }
            }
        }
        Ok(answered.len() - before)
    }
}
