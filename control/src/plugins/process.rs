//! One run of a plugin.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::supervise::Teller;
use super::{Happening, Spec};

/// How long it has to end after SIGTERM.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How often it is tried whether it listens: at first, and when it has not for a while.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_secs(1);
const A_WHILE: Duration = Duration::from_secs(5);

/// How much of a line is logged, and how many lines a second of each of its outputs.
const MAX_LINE_BYTES: usize = 1024;
const MAX_LINES: u32 = 20;

/// How long its last lines are waited for: whatever it has started itself may hold its outputs open.
const LAST_LINES: Duration = Duration::from_millis(200);

/// How a run came to its end.
pub(super) enum Ended {
    /// It was told to.
    Stopped,
    /// By itself, or it could not be run at all.
    Exited(String),
}

/// Runs it until it ends, or until the other end of `stop` is dropped.
pub(super) async fn run(spec: &Spec, teller: &Teller, stop: &mut oneshot::Receiver<()>) -> Ended {
    let cannot = |error: io::Error| Ended::Exited(format!("cannot be run: {error}"));
    let local = match spec.local {
        Some(local) => local,
        None => match free_address().await {
            Ok(local) => local,
            Err(error) => return cannot(error),
        },
    };
    let mut child = match spawn(spec, local) {
        Ok(child) => child,
        Err(error) => return cannot(error),
    };
    teller.tell(Happening::Started { pid: child.id().unwrap_or(0) });
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let logging = async { tokio::join!(log(stdout, spec, teller), log(stderr, spec, teller)) };
    let mut logging = std::pin::pin!(logging);
    let living = async {
        // A server's is dialled by clients alone: to try it would be to be one.
        if spec.local.is_none() {
            listens(local).await;
        }
        teller.tell(Happening::Ready { local });
        std::future::pending::<()>().await;
    };
    let mut living = std::pin::pin!(living);
    let mut has_logged = false;
    loop {
        tokio::select! {
            status = child.wait() => {
                if !has_logged {
                    // What comes too late is nobody's to read.
                    let _ = timeout(LAST_LINES, &mut logging).await;
                }
                return Ended::Exited(status.map_or_else(|error| error.to_string(), |status| status.to_string()));
            }
            _ = &mut *stop => {
                end(&mut child).await;
                return Ended::Stopped;
            }
            () = &mut living => {}
            _ = &mut logging, if !has_logged => has_logged = true,
        }
    }
}

/// An address of this machine alone that nobody has.
async fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()
}

fn spawn(spec: &Spec, local: SocketAddr) -> io::Result<Child> {
    let mut command = launcher(&spec.program);
    let (host, port) = &spec.remote;
    command
        .env("SS_REMOTE_HOST", host)
        .env("SS_REMOTE_PORT", port.to_string())
        .env("SS_LOCAL_HOST", local.ip().to_string())
        .env("SS_LOCAL_PORT", local.port().to_string())
        .env_remove("SS_PLUGIN_OPTIONS")
        // What is for us alone.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("RINGWEIR_TOKEN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(options) = &spec.options {
        command.env("SS_PLUGIN_OPTIONS", options);
    }
    #[cfg(unix)]
    command.process_group(0);
    command.spawn()
}

/// Ringweir itself, which becomes the program (see `exec`); the name is good for a binary that was replaced as well.
#[cfg(all(target_os = "linux", not(test)))]
fn launcher(program: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("ringweir").arg("plugin-exec").arg(std::process::id().to_string()).arg("--").arg(program);
    command
}

#[cfg(not(all(target_os = "linux", not(test))))]
fn launcher(program: &str) -> Command {
    Command::new(program)
}

/// Waits until somebody listens there.
async fn listens(local: SocketAddr) {
    let begun = Instant::now();
    while TcpStream::connect(local).await.is_err() {
        sleep(if begun.elapsed() < A_WHILE { SOON } else { LATER }).await;
    }
}

/// Asks it to end, and ends it when it does not.
async fn end(child: &mut Child) {
    signal_group(child, Ending::Asked);
    if timeout(LAST_WORDS, child.wait()).await.is_err() {
        signal_group(child, Ending::Forced);
        // It cannot refuse.
        let _ = child.wait().await;
    }
}

#[derive(Clone, Copy)]
enum Ending {
    Asked,
    Forced,
}

/// To it and whatever it has started.
#[cfg(unix)]
fn signal_group(child: &mut Child, ending: Ending) {
    use rustix::process::{Pid, Signal, kill_process_group};

    let signal = match ending {
        Ending::Asked => Signal::TERM,
        Ending::Forced => Signal::KILL,
    };
    if let Some(id) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
        // It fails only when nobody of the group is left.
        let _ = kill_process_group(id, signal);
    }
}

/// There is one way only.
#[cfg(not(unix))]
fn signal_group(child: &mut Child, _ending: Ending) {
    // It fails only when it has ended.
    let _ = child.start_kill();
}

/// Puts what it says into our log, line by line; all is read, so that it is not held up.
async fn log(pipe: Option<impl AsyncRead + Unpin>, spec: &Spec, teller: &Teller) {
    let Some(mut pipe) = pipe else { return };
    let (mut line, mut piece) = (Vec::new(), [0; 4096]);
    let mut budget = Budget { since: Instant::now(), said: 0, left_out: 0 };
    while let Ok(bytes @ 1..) = pipe.read(&mut piece).await {
        for byte in &piece[..bytes] {
            match byte {
                b'\n' => {
                    budget.say(&line, spec, teller);
                    line.clear();
                }
                byte if line.len() < MAX_LINE_BYTES => line.push(*byte),
                _ => {}
            }
        }
    }
    budget.say(&line, spec, teller);
}

/// How many lines were logged in this second, and how many were not since one was.
struct Budget {
    since: Instant,
    said: u32,
    left_out: u64,
}

impl Budget {
    fn say(&mut self, line: &[u8], spec: &Spec, teller: &Teller) {
        if line.is_empty() {
            return;
        }
        if self.since.elapsed() >= Duration::from_secs(1) {
            (self.since, self.said) = (Instant::now(), 0);
        }
        if self.said == MAX_LINES {
            self.left_out += 1;
            return;
        }
        self.said += 1;
        let left_out = Some(std::mem::take(&mut self.left_out)).filter(|count| *count > 0);
        let said = String::from_utf8_lossy(line);
        tracing::info!(plugin = %spec.program, of = teller.owner.as_str(), left_out, said = said.trim_end(), "plugin");
    }
}
