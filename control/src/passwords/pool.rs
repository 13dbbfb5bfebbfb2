//! A few threads that verify passwords, and the bounded queue before them.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use ringweir_flow::record::ClientAddr;
use ringweir_flow::verify::{Fingerprint, Question, Verdict, Verifier};

/// The most threads: each takes a hash's memory, and time that workers could use.
const MAX_THREADS: usize = 4;

/// One thread for so many cores.
const CORES_PER_THREAD: usize = 4;

/// The most passwords that wait at once: about three seconds of one thread at the default cost.
const MAX_WAITING: usize = 128;

/// The most of them that come from one source, so that others can still get in while one guesses.
const MAX_WAITING_PER_SOURCE: usize = 32;
const _: () = assert!(MAX_WAITING_PER_SOURCE < MAX_WAITING);

/// How much the threads yield to workers, of 19.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

type Answer = Box<dyn FnOnce(Verdict) + Send>;

/// Verifies passwords with [`verify`](super::verify). The threads start when they are needed, and end with the pool.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    max_threads: usize,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    verify: fn(&[u8], &str) -> Verdict,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// Who waits for which password, those that are being verified included.
    answers: HashMap<Fingerprint, Vec<Answer>>,
    /// How many of the queue are whose.
    sources: HashMap<Option<IpAddr>, usize>,
    threads: usize,
    idle: usize,
    is_over: bool,
}

struct Job {
    question: Question,
    source: Option<IpAddr>,
}

impl Pool {
    pub(crate) fn new() -> Pool {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Pool::with((cores / CORES_PER_THREAD).clamp(1, MAX_THREADS), super::verify)
    }

    fn with(max_threads: usize, verify: fn(&[u8], &str) -> Verdict) -> Pool {
        let (state, work) = (Mutex::default(), Condvar::new());
        Pool { shared: Arc::new(Shared { state, work, verify }), max_threads }
    }

    /// A thread more, if all are busy and there may be one.
    fn start_thread(&self, state: &mut State) {
        if state.idle > 0 || state.threads >= self.max_threads {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let name = format!("verify-{}", state.threads);
        match thread::Builder::new().name(name).spawn(move || shared.run()) {
            Ok(_) => state.threads += 1,
            Err(error) => tracing::warn!(%error, "no thread can be started to verify passwords"),
        }
    }
}

impl Verifier for Pool {
    fn verify(&self, question: Question, answer: Answer) {
        let source = source_of(&question.client);
        let mut state = self.shared.lock();
        // Browsers open many connections at once: the same password is verified once for all of them.
        if let Some(answers) = state.answers.get_mut(&question.fingerprint) {
            answers.push(answer);
            return;
        }
        let of_source = state.sources.get(&source).copied().unwrap_or(0);
        if state.queue.len() < MAX_WAITING && of_source < MAX_WAITING_PER_SOURCE {
            self.start_thread(&mut state);
            if state.threads > 0 {
                state.answers.insert(question.fingerprint, vec![answer]);
                *state.sources.entry(source).or_default() += 1;
                state.queue.push_back(Job { question, source });
                self.shared.work.notify_one();
                return;
            }
        }
        drop(state);
        answer(Verdict::Overloaded);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        // Refused only where it would change nothing.
        #[cfg(target_os = "linux")]
        let _ = rustix::process::nice(NICENESS);
        while let Some(Job { question, .. }) = self.next() {
            let verdict = (self.verify)(&question.password, &question.hash);
            let answers = self.lock().answers.remove(&question.fingerprint).unwrap_or_default();
            for answer in answers {
                answer(verdict);
            }
        }
    }

    /// Waits for something to do; `None` when the pool is over.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.is_over {
                return None;
            }
            if let Some(job) = state.queue.pop_front() {
                if let Some(count) = state.sources.get_mut(&job.source) {
                    *count -= 1;
                    if *count == 0 {
                        state.sources.remove(&job.source);
                    }
                }
                return Some(job);
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// What a panic elsewhere has left is sound: each entry stands for itself.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// IPv6 clients have whole networks to come from: a /64 is one source. All of Unix sockets are one.
fn source_of(client: &ClientAddr) -> Option<IpAddr> {
    match client {
        ClientAddr::Unix => None,
        ClientAddr::Ip(address) => Some(match address.ip().to_canonical() {
            v4 @ IpAddr::V4(_) => v4,
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use ringweir_flow::time::Instant;
    use ringweir_flow::users::Users;

    use super::*;
    use crate::passwords::tests::cheap;

    /// Longer than anything here takes, so that what hangs fails.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn question(users: &Users, password: &str, client: &str) -> Question {
        let client = ClientAddr::Ip(client.parse().unwrap());
        let login = users.verify(b"ann", password.as_bytes()).unwrap_err();
        users.ask(login, client, Instant::ZERO).unwrap().0
    }

    fn ask(pool: &Pool, question: Question) -> Receiver<Verdict> {
        let (give, answer) = channel();
        pool.verify(question, Box::new(move |verdict| give.send(verdict).unwrap()));
        answer
    }

    fn users(hash: &str) -> Users {
        let mut users = Users::default();
        users.insert_hashed(b"ann", hash);
        users
    }

    #[test]
    fn passwords_are_verified_on_other_threads() {
        let pool = Pool::new();
        let users = users(&cheap("secret"));
        for (password, verdict) in [("secret", Verdict::Right), ("wrong", Verdict::Wrong)] {
            let answer = ask(&pool, question(&users, password, "192.0.2.1:1"));
            assert_eq!(answer.recv_timeout(PATIENCE), Ok(verdict));
        }
    }

    /// Holds the threads of a pool for as long as the test holds it.
    static HELD: Mutex<()> = Mutex::new(());

    fn wait(password: &[u8], _hash: &str) -> Verdict {
        let _held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if password == b"secret" { Verdict::Right } else { Verdict::Wrong }
    }

    #[test]
    fn the_queue_is_bounded_in_all_and_by_source_and_the_same_password_stands_there_once() {
        let pool = Pool::with(1, wait);
        let users = users("#");
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ask(&pool, question(&users, "secret", "192.0.2.1:1"));
        let again = ask(&pool, question(&users, "secret", "192.0.2.1:2"));
        while !pool.shared.lock().queue.is_empty() {
            thread::yield_now();
        }
        let mut waiting = Vec::new();
        for source in 0..MAX_WAITING / MAX_WAITING_PER_SOURCE {
            for guess in 0..MAX_WAITING_PER_SOURCE {
                let client = format!("[2001:db8:0:{source}::{guess:x}]:1");
                waiting.push(ask(&pool, question(&users, &format!("{source} {guess}"), &client)));
            }
            let client = format!("[2001:db8:0:{source}::ffff]:1");
            let refused = ask(&pool, question(&users, "one more", &client));
            assert_eq!(refused.try_recv(), Ok(Verdict::Overloaded), "source {source} has its share");
        }
        let refused = ask(&pool, question(&users, "another", "198.51.100.1:1"));
        assert_eq!(refused.try_recv(), Ok(Verdict::Overloaded), "all places are taken");
        drop(held);
        assert_eq!([first, again].map(|answer| answer.recv_timeout(PATIENCE)), [Ok(Verdict::Right); 2]);
        for answer in waiting {
            assert_eq!(answer.recv_timeout(PATIENCE), Ok(Verdict::Wrong));
        }
        let state = pool.shared.lock();
        assert!(state.queue.is_empty() && state.sources.is_empty() && state.answers.is_empty());
        assert_eq!(state.threads, 1);
    }
}
