//! The daemon under test: a process of its own in a folder of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

use super::http::{Response, exchange};
use super::server::set_patience_unix;
use super::{Engine, PATIENCE};

const BINARY: &str = env!("CARGO_BIN_EXE_ringweir");

/// Stands for the daemon's folder in configurations and arguments.
const FOLDER: &str = "@dir@";

/// How a daemon is started.
pub(crate) struct Setup {
    engine: &'static str,
    tracer: Vec<String>,
    workers: usize,
    descriptors: Option<u64>,
    arguments: Vec<String>,
    folder: Folder,
}

impl Setup {
    pub(crate) fn new(engine: Engine) -> Setup {
        let (tracer, arguments) = (Vec::new(), Vec::new());
        Setup {
            engine: engine.as_arg(),
            tracer,
            workers: 2,
            descriptors: None,
            arguments,
            folder: Folder::new(),
        }
    }

    /// The engine that the machine bears.
    pub(crate) fn on_any_engine(mut self) -> Setup {
        self.engine = "auto";
        self
    }

    /// Every call of a system call fails so, from the beginning. `None`, said aloud, where there is no strace or nobody
    /// may be traced.
    pub(crate) fn without(mut self, call: &str, error: &str) -> Option<Setup> {
        // The tracer is a child of the daemon's, not the other way round, and ends with it.
        let tracer = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e"].map(str::to_owned);
        self.tracer = tracer.into();
        self.tracer.extend([
            format!("trace={call}"),
            "-e".to_owned(),
            format!("inject={call}:error={error}"),
        ]);
        match Command::new(&self.tracer[0]).args(&self.tracer[1..]).arg("true").output() {
            Ok(output) if output.status.success() => Some(self),
            refused => {
                eprintln!("SKIPPED: strace cannot be used: {refused:?}");
                None
            }
        }
    }

    /// How many workers; 2 if nothing is said. One makes distributions exact.
    pub(crate) fn workers(mut self, workers: usize) -> Setup {
        self.workers = workers;
        self
    }

    /// A limit of descriptors, soft and hard, to start under.
    pub(crate) fn descriptors(mut self, limit: u64) -> Setup {
        self.descriptors = Some(limit);
        self
    }

    /// More arguments.
    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Setup {
        self.arguments.extend(arguments.iter().map(|argument| self.folder.fill(argument)));
        self
    }

    /// The folder that `@dir@` stands for.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// `ringweir run` with a configuration; returns when it is ready. `[admin]` is added where it is missing.
    #[track_caller]
    pub(crate) fn start(self, config: &str) -> Daemon {
        let mut daemon = self.spawn_run(config);
        daemon.wait_until_ready();
        daemon
    }

    /// `ringweir forward` with the arguments given; returns when it is ready.
    #[track_caller]
    pub(crate) fn forward(self, arguments: &[&str]) -> Daemon {
        let admin = format!("unix:{}", self.folder.admin().display());
        let filled: Vec<String> = arguments.iter().map(|argument| self.folder.fill(argument)).collect();
        let mut all = vec!["forward".to_owned()];
        all.extend(filled);
        all.extend(["--admin".to_owned(), admin]);
        let mut daemon = self.spawn(&all);
        daemon.wait_until_ready();
        daemon
    }

    /// `ringweir run` with a configuration that it must refuse: its exit code and what it said.
    #[track_caller]
    pub(crate) fn refused(self, config: &str) -> (i32, String) {
        let mut daemon = self.spawn_run(config);
        let status = daemon.wait_exit(PATIENCE);
        (status.code().expect("no signal ended it"), daemon.log.text())
    }

    fn spawn_run(self, config: &str) -> Daemon {
        self.folder.write_config(config);
        let file = self.folder.config().display().to_string();
        self.spawn(&["run".to_owned(), "--config".to_owned(), file])
    }

    fn spawn(self, arguments: &[String]) -> Daemon {
        let mut command = match (self.descriptors, &self.tracer[..]) {
            (None, []) => Command::new(BINARY),
            (None, [tracer, rest @ ..]) => {
                let mut command = Command::new(tracer);
                command.args(rest).arg(BINARY);
                command
            }
            (Some(limit), _) => {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\""), BINARY]);
                command
            }
        };
        let workers = self.workers.to_string();
        command
            .args(arguments)
            .args(["--engine", self.engine, "--workers", &workers])
            .args(&self.arguments)
            .env_remove("RINGWEIR_ADMIN")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{BINARY}: {error}"));
        let log = Log::reading(child.stderr.take().expect("stderr is piped"));
        Daemon { child, log, folder: self.folder, exited: None }
    }
}

/// A running daemon; killed when it is dropped.
pub(crate) struct Daemon {
    child: Child,
    log: Log,
    folder: Folder,
    exited: Option<ExitStatus>,
}

impl Daemon {
    /// A daemon with two workers and nothing special.
    #[track_caller]
    pub(crate) fn start(engine: Engine, config: &str) -> Daemon {
        Setup::new(engine).start(config)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where a listener can be reached over TCP: its first bind, as last announced.
    #[track_caller]
    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        let prefix = format!("name={listener} ");
        let address = self.log.wait_for(PATIENCE, |lines| {
            let announced = lines.iter().rev().find_map(|line| {
                let (_, rest) = line.split_once("listening ")?;
                rest.starts_with(&prefix).then(|| word_after(rest, "address="))?
            });
            announced.and_then(|address| address.parse::<SocketAddr>().ok())
        });
        let Some(mut address) = address else { panic!("{listener} was not announced:\n{}", self.log.text()) };
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        address
    }

    /// A file in the daemon's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    /// The admin endpoint, as `--admin` wants it.
    pub(crate) fn admin(&self) -> String {
        format!("unix:{}", self.folder.admin().display())
    }

    /// Puts another configuration into the daemon's file.
    pub(crate) fn write_config(&self, config: &str) {
        self.folder.write_config(config);
    }

    /// Reloads another configuration through the admin endpoint; the errors when it is refused.
    #[track_caller]
    pub(crate) fn reload(&self, config: &str) -> Result<(), String> {
        self.write_config(config);
        let response = self.ask("POST", "/reload");
        match response.status {
            200 => Ok(()),
            422 => Err(response.text()),
            other => panic!("status {other}: {}", response.text()),
        }
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let response = self.ask("GET", "/status");
        assert_eq!(response.status, 200, "{}", response.text());
        serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {}", response.text()))
    }

    #[track_caller]
    pub(crate) fn metrics(&self) -> String {
        let response = self.ask("GET", "/metrics");
        assert_eq!(response.status, 200, "{}", response.text());
        response.text()
    }

    /// One request to the admin endpoint.
    #[track_caller]
    pub(crate) fn ask(&self, method: &str, path: &str) -> Response {
        self.ask_with(method, path, "")
    }

    /// One request to the admin endpoint with more header lines, each with its line end.
    #[track_caller]
    pub(crate) fn ask_with(&self, method: &str, path: &str, fields: &str) -> Response {
        let admin = self.folder.admin();
        let mut stream = UnixStream::connect(&admin)
            .unwrap_or_else(|error| panic!("{admin:?}: {error}\n{}", self.log.text()));
        set_patience_unix(&stream);
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{fields}Connection: close\r\n\r\n"
        );
        exchange(&mut stream, request.as_bytes())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the daemon runs");
    }

    /// Changes the limit of descriptors of the running daemon.
    pub(crate) fn limit_descriptors(&self, limit: u64) {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).expect("prlimit");
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        assert!(self.log.wait_for_end(within), "not ended within {within:?}:\n{}", self.log.text());
        let status = self.child.wait().expect("a child");
        self.exited = Some(status);
        status
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Waits for a line on stderr.
    #[track_caller]
    pub(crate) fn wait_line(&self, what: &str, matches: impl Fn(&str) -> bool) -> String {
        let found = self.log.wait_for(PATIENCE, |lines| lines.iter().find(|line| matches(line)).cloned());
        found.unwrap_or_else(|| panic!("no line for {what}:\n{}", self.log.text()))
    }

    /// How many lines it has written.
    pub(crate) fn line_count(&self) -> usize {
        self.log.shared.0.lock().unwrap().lines.len()
    }

    /// All it has written.
    pub(crate) fn text(&self) -> String {
        self.log.text()
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        let ready =
            self.log.wait_for(PATIENCE, |lines| lines.iter().any(|line| is_ready(line)).then_some(()));
        assert!(ready.is_some(), "the daemon is not ready:\n{}", self.log.text());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.exited.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let text = self.log.text();
        if thread::panicking() {
            eprintln!("--- the daemon said:\n{text}---");
        } else {
            assert!(!text.contains("panicked at"), "a panic in the daemon:\n{text}");
        }
    }
}

/// Whether a line says that the daemon serves, in either format of the log.
fn is_ready(line: &str) -> bool {
    line.split_whitespace().last() == Some("ready") || line.contains("\"message\":\"ready\"")
}

/// The word that follows `key` in a line of `key=value`.
fn word_after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key))
}

/// A temporary folder, removed when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short: the path of a Unix socket has at most 107 bytes.
        let path = std::env::temp_dir().join(format!("ringweir-e2e-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    fn fill(&self, text: &str) -> String {
        text.replace(FOLDER, &self.0.display().to_string())
    }

    fn admin(&self) -> PathBuf {
        self.0.join("admin.sock")
    }

    fn config(&self) -> PathBuf {
        self.0.join("ringweir.toml")
    }

    /// Replaces the file whole, as an editor or a deployment would.
    fn write_config(&self, config: &str) {
        let mut text = self.fill(config);
        if !text.contains("[admin]") {
            text.push_str(&format!("\n[admin]\nlisten = \"unix:{}\"\n", self.admin().display()));
        }
        let new = self.0.join("ringweir.toml.new");
        fs::write(&new, text).expect("write the configuration");
        fs::rename(&new, self.config()).expect("rename the configuration");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a process writes to stderr, line by line.
struct Log {
    shared: Arc<(Mutex<Written>, Condvar)>,
}

#[derive(Default)]
struct Written {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    fn reading(source: impl Read + Send + 'static) -> Log {
        let shared = Arc::new((Mutex::new(Written::default()), Condvar::new()));
        let writer = Arc::clone(&shared);
        thread::spawn(move || {
            for line in BufReader::new(source).lines() {
                let Ok(line) = line else { break };
                writer.0.lock().unwrap().lines.push(line);
                writer.1.notify_all();
            }
            writer.0.lock().unwrap().ended = true;
            writer.1.notify_all();
        });
        Log { shared }
    }

    /// Waits until `find` finds something; `None` at the deadline, or when nothing more can come.
    fn wait_for<T>(&self, within: Duration, find: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + within;
        let mut written = self.shared.0.lock().unwrap();
        loop {
            if let Some(found) = find(&written.lines) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if written.ended || left.is_zero() {
                return None;
            }
            written = self.shared.1.wait_timeout(written, left).unwrap().0;
        }
    }

    fn wait_for_end(&self, within: Duration) -> bool {
        let written = self.shared.0.lock().unwrap();
        let (written, _) =
            self.shared.1.wait_timeout_while(written, within, |written| !written.ended).unwrap();
        written.ended
    }

    fn text(&self) -> String {
        let written = self.shared.0.lock().unwrap();
        written.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

/// What a command that ends by itself did.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// `ringweir` with a command that runs until it is interrupted.
pub(crate) struct Following(Child);

impl Following {
    pub(crate) fn start(arguments: &[&str]) -> Following {
        let mut command = Command::new(BINARY);
        command.args(arguments).env_remove("RINGWEIR_ADMIN").stdin(Stdio::null());
        Following(command.spawn().unwrap_or_else(|error| panic!("{BINARY}: {error}")))
    }

    /// Interrupts it and waits for its end, which must be an orderly one.
    #[track_caller]
    pub(crate) fn interrupt(&mut self) {
        kill_process(Pid::from_child(&self.0), Signal::INT).expect("it runs");
        let status = self.0.wait().expect("a child");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `ringweir` with a command that ends by itself.
#[track_caller]
pub(crate) fn ringweir(arguments: &[&str]) -> Finished {
    let mut child = Command::new(BINARY)
        .args(arguments)
        .env_remove("RINGWEIR_ADMIN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{BINARY}: {error}"));
    let stdout = Log::reading(child.stdout.take().expect("stdout is piped"));
    let stderr = Log::reading(child.stderr.take().expect("stderr is piped"));
    if !(stdout.wait_for_end(PATIENCE) && stderr.wait_for_end(PATIENCE)) {
        let _ = child.kill();
        let _ = child.wait();
        panic!("`ringweir {arguments:?}` does not end:\n{}{}", stdout.text(), stderr.text());
    }
    let status = child.wait().expect("a child");
    let code = status.code().expect("no signal ended it");
    Finished { code, stdout: stdout.text(), stderr: stderr.text() }
}

/// Writes a file into a folder of its own and runs `ringweir check` on it.
#[track_caller]
pub(crate) fn check(config: &str) -> Finished {
    let folder = Folder::new();
    let path = folder.config();
    fs::write(&path, folder.fill(config)).expect("write the configuration");
    ringweir(&["check", &path.display().to_string()])
}

/// Whether a daemon on io_uring becomes ready here; else why not, in its own words.
pub(crate) fn probe_io_uring() -> Result<(), String> {
    let config = "[[listener]]\nname = \"probe\"\nbind = \"127.0.0.1:0\"\nprotocol = \"socks5\"\ntarget = \"direct\"\n";
    let mut daemon = Setup::new(Engine::IoUring).workers(1).spawn_run(config);
    if daemon.log.wait_for(PATIENCE, |lines| lines.iter().any(|line| is_ready(line)).then_some(())).is_some()
    {
        return Ok(());
    }
    // Only a refusal of io_uring excuses it: a daemon that hangs or fails otherwise fails the test.
    assert!(daemon.log.wait_for_end(Duration::ZERO), "neither ready nor ended:\n{}", daemon.log.text());
    let status = daemon.wait_exit(PATIENCE);
    let text = daemon.log.text();
    assert!(text.contains("io_uring"), "it ended by {status} for another reason:\n{text}");
    Err(text)
}

/// A port that was free a moment ago, for addresses that are not announced.
pub(crate) fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a port");
    socket.local_addr().expect("an address").port()
}
