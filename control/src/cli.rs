//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::{LONGEST, SHORTEST_INTERVAL, parse_bind};
use crate::model::{BindAddress, Config, EngineKind, LogFormat, MAX_WORKERS, Workers};

/// Forwards TCP and Unix stream connections: balancer, SOCKS5 and HTTP proxy.
#[derive(Debug, Parser)]
#[command(name = "ringweir", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "\
Examples:
  ringweir run                                    a SOCKS5 and HTTP proxy on 127.0.0.1:1080
  ringweir run --config /etc/ringweir.toml        what the file says
  ringweir check /etc/ringweir.toml               every mistake in the file at once
  ringweir forward --listen :8080 --to 10.0.0.1:80 --to 10.0.0.2:80
  ringweir status                                 who is up, who serves how much
  ringweir events                                 what has happened to targets
  ringweir histogram                              how long things take: percentiles
  ringweir drain tokyo                            no new sessions there

Signals: HUP reloads the file; USR1 writes the histograms; TERM or INT drains, a second one ends at once.")]
pub struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve what a configuration file says, or be a local proxy without one
    Run(Run),
    /// Serve one forwarding without a file
    #[command(after_help = "\
Examples:
  ringweir forward --listen :8080 --to 10.0.0.1:80
  ringweir forward --listen 127.0.0.1:5432 --to unix:/run/postgresql/.s.PGSQL.5432
  ringweir forward --listen :443 --to a.example:443 --to b.example:443 --policy failover --check 5s")]
    Forward(ForwardCommand),
    /// Say whether a configuration file is sound, and everything that is wrong in it
    Check {
        /// The file
        file: PathBuf,
    },
    /// Show listeners, targets, their health and their figures
    Status {
        #[command(flatten)]
        admin: AdminArgument,
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// Show how long sessions take and how much they move: percentiles by listener and target
    #[command(after_help = "\
Examples:
  ringweir histogram                                      a table
  ringweir histogram --hlog today.hlog                    everything since the start, for HdrHistogram's tools
  ringweir histogram --hlog - --interval 10s              what comes, every 10 seconds, until interrupted")]
    Histogram {
        #[command(flatten)]
        admin: AdminArgument,
        /// For machines
        #[arg(long, conflicts_with = "hlog")]
        json: bool,
        /// Write HdrHistogram's interval log to this file instead, or to stdout for -
        #[arg(long, value_name = "FILE")]
        hlog: Option<PathBuf>,
        /// Write what is recorded from now on, so often, e.g. 10s, until interrupted
        #[arg(long, value_name = "TIME", requires = "hlog", value_parser = parse_interval)]
        interval: Option<Duration>,
    },
    /// Show what has happened to targets: up, down, ejected, returned, replaced, switched; and outages
    Events {
        #[command(flatten)]
        admin: AdminArgument,
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// Let the daemon read its file again; it is applied whole or refused whole
    Reload {
        #[command(flatten)]
        admin: AdminArgument,
    },
    /// Say which member of a group with policy = "select" serves new sessions
    Select {
        /// Group
        group: String,
        /// Its member
        target: String,
        #[command(flatten)]
        admin: AdminArgument,
    },
    /// Probe an upstream now, by its check or else by a connect, and show each stage's time
    Probe {
        /// Upstream
        target: String,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgument,
    },
    /// Say which rule and which target would serve a session, and why
    #[command(after_help = "\
Examples:
  ringweir explain --listener proxy --to www.example:443
  ringweir explain --listener proxy --from 10.0.0.9 --user ann --to 192.0.2.1:80
  ringweir explain --config ringweir.toml --listener web --sni a.example")]
    Explain(ExplainArguments),
    /// Print the hash of a password, for users of listeners; reads it from the terminal, or the first line of stdin
    #[command(after_help = "\
The parameters default to OWASP's minimum for argon2id. More of them makes guessing costlier, and each first login.

Examples:
  ringweir hash-password
  pass show proxy/ann | ringweir hash-password --memory 64 --passes 3")]
    HashPassword(Cost),
    /// Send no new sessions to a target; running ones go on
    Drain {
        /// Upstream or group
        target: String,
        #[command(flatten)]
        admin: AdminArgument,
    },
    /// Take a drain back
    Undrain {
        /// Upstream or group
        target: String,
        #[command(flatten)]
        admin: AdminArgument,
    },
    /// Take a target out of service and probe it no more; running sessions go on
    Disable {
        /// Upstream or group
        target: String,
        #[command(flatten)]
        admin: AdminArgument,
    },
    /// Put a disabled target back, also one that the configuration disables
    Enable {
        /// Upstream or group
        target: String,
        #[command(flatten)]
        admin: AdminArgument,
    },
    /// Turn Shadowsocks servers into upstreams: a link, a file of links, a document of SIP008 from a file or a URL
    #[command(after_help = "\
Examples:
  ringweir import 'ss://...' > tokyo.toml                     one upstream
  ringweir import https://provider.example/sip008 --group exits --append /etc/ringweir.toml
  ringweir import /etc/shadowsocks-libev/config.json          what another program was told")]
    Import(ImportArguments),
    /// Print the link of a Shadowsocks upstream or listener, and a QR code of it
    #[command(after_help = "\
Examples:
  ringweir share tokyo                                        the upstream of that name
  ringweir share tunnel --host vpn.example --user ann         the listener of that name, for ann")]
    Share(ShareArguments),
    /// Become a plugin that ends with the daemon that has started it
    #[command(hide = true)]
    PluginExec {
        /// The process id of that daemon
        parent: i32,
        /// What to become
        program: String,
    },
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Where servers come from, and where they go.
#[derive(Clone, Debug, Args)]
pub(crate) struct ImportArguments {
    /// An ss:// link, an http(s) URL, or a file; - is stdin
    #[arg(value_name = "LINK|URL|FILE")]
    pub(crate) source: String,
    /// Make a group of this name of them all
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<String>,
    /// Add them to this configuration instead of printing them; it stays as it is if it would not be sound
    #[arg(long, value_name = "FILE")]
    pub(crate) append: Option<PathBuf>,
    /// Take what is sound, and tell what is not, where all would be refused
    #[arg(long)]
    pub(crate) skip: bool,
}

/// Whose link is wanted.
#[derive(Clone, Debug, Args)]
pub(crate) struct ShareArguments {
    /// Upstream or listener
    pub(crate) target: String,
    /// The configuration
    #[arg(long, short, value_name = "FILE", default_value = "/etc/ringweir.toml")]
    pub(crate) config: PathBuf,
    /// Of a listener: the name or address at which clients reach it
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// Of a listener with users: for whom
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Of a listener with a plugin: what its clients use, as NAME;OPTIONS
    #[arg(long, value_name = "PLUGIN")]
    pub(crate) plugin: Option<String>,
    /// The link alone
    #[arg(long)]
    pub(crate) no_qr: bool,
}

/// What a hash costs whoever makes it.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Cost {
    /// Memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 19)]
    pub(crate) memory: u32,
    /// How often it is gone through
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) passes: u32,
    /// Lanes that could be computed at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) lanes: u32,
}

/// A session that might come.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExplainArguments {
    /// Where the client connects
    #[arg(long, value_name = "NAME")]
    pub(crate) listener: String,
    /// The client's address
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) from: Option<IpAddr>,
    /// As whom it authenticates
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Where it wants to go, host:port
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) to: Option<String>,
    /// The server that its TLS ClientHello names
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<String>,
    /// The protocols that its TLS ClientHello offers (ALPN), with commas between
    #[arg(long, value_name = "NAME,…")]
    pub(crate) alpn: Option<String>,
    /// The server that its HTTP request names
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// The path of its HTTP request
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// Judge by this file instead of asking the daemon; nothing is known of anybody's health then
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// For machines
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) admin: AdminArgument,
}

#[derive(Debug, Default, Args)]
pub(crate) struct Run {
    /// The configuration, in TOML; without it a SOCKS5 and HTTP proxy on 127.0.0.1:1080
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

#[derive(Debug, Args)]
pub(crate) struct ForwardCommand {
    #[command(flatten)]
    pub(crate) forward: Forward,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

/// One forwarding.
#[derive(Clone, Debug, Args)]
pub(crate) struct Forward {
    /// Where clients connect: 127.0.0.1:8080, [::1]:8080, :8080 (all addresses) or unix:/path; may be repeated
    #[arg(long, short, value_name = "ADDRESS", required = true)]
    pub(crate) listen: Vec<String>,
    /// Where to: host:port or unix:/path; may be repeated
    #[arg(long, short, value_name = "ENDPOINT", required = true)]
    pub(crate) to: Vec<String>,
    /// How one of several endpoints is picked
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) policy: PolicyArgument,
    /// Check the endpoints by connecting to them, so often, e.g. 5s
    #[arg(long, value_name = "INTERVAL")]
    pub(crate) check: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyArgument {
    /// In turn, smoothly by weight
    #[default]
    RoundRobin,
    /// By a weighted draw
    Random,
    /// The one with the fewest sessions per weight
    LeastConnections,
    /// The first that is up
    Failover,
}

impl PolicyArgument {
    /// The word in configurations.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            PolicyArgument::RoundRobin => "round-robin",
            PolicyArgument::Random => "random",
            PolicyArgument::LeastConnections => "least-connections",
            PolicyArgument::Failover => "failover",
        }
    }
}

/// What the command line says over the file.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Overrides {
    /// Which engine runs the sessions
    #[arg(long, value_enum, value_name = "ENGINE")]
    engine: Option<EngineArgument>,
    /// How many workers; as many as cores if nothing is said
    #[arg(long, value_name = "N", value_parser = worker_count)]
    workers: Option<usize>,
    /// How log lines look
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormatArgument>,
    /// Write a line for each finished session
    #[arg(long)]
    log_sessions: bool,
    /// Where the admin endpoint listens: unix:/path or 127.0.0.1:port, or none
    #[arg(long, env = "RINGWEIR_ADMIN", value_name = "ADDRESS", value_parser = admin_bind)]
    admin: Option<AdminBind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineArgument {
    /// io_uring where it can be had, else tokio
    Auto,
    /// io_uring or nothing
    IoUring,
    /// tokio
    Tokio,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormatArgument {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum AdminBind {
    Off,
    At(BindAddress),
}

/// Where a running daemon is asked.
#[derive(Clone, Debug, Args)]
pub(crate) struct AdminArgument {
    /// The daemon's admin endpoint: unix:/path or 127.0.0.1:port; the default one if nothing is said
    #[arg(long, env = "RINGWEIR_ADMIN", value_name = "ADDRESS", value_parser = parse_address)]
    pub(crate) admin: Option<BindAddress>,
    /// The token, where the endpoint asks for one
    #[arg(long, env = "RINGWEIR_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
}

impl Overrides {
    /// Puts what was said in place of what the file says.
    pub(crate) fn apply(&self, config: &mut Config) {
        if let Some(engine) = self.engine {
            config.engine.kind = match engine {
                EngineArgument::Auto => EngineKind::Auto,
                EngineArgument::IoUring => EngineKind::IoUring,
                EngineArgument::Tokio => EngineKind::Tokio,
            };
        }
        if let Some(workers) = self.workers {
            config.engine.workers = Workers::Count(workers);
        }
        if let Some(format) = self.log_format {
            config.log.format = match format {
                LogFormatArgument::Text => LogFormat::Text,
                LogFormatArgument::Json => LogFormat::Json,
            };
        }
        config.log.sessions |= self.log_sessions;
        match &self.admin {
            Some(AdminBind::Off) => config.admin.listen = None,
            Some(AdminBind::At(address)) => config.admin.listen = Some(address.clone()),
            None => {}
        }
    }

    /// Whether somebody asked for an admin endpoint at a certain address.
    pub(crate) fn names_admin(&self) -> bool {
        matches!(self.admin, Some(AdminBind::At(_)))
    }
}

fn worker_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=MAX_WORKERS).contains(&count) => Ok(count),
        Ok(_) | Err(_) => Err(format!("a number from 1 to {MAX_WORKERS} is wanted")),
    }
}

fn admin_bind(text: &str) -> Result<AdminBind, String> {
    if text == "none" {
        return Ok(AdminBind::Off);
    }
    let address = parse_address(text)?;
    // The file has the token that others would need; the command line has none.
    if address.is_local() {
        Ok(AdminBind::At(address))
    } else {
        Err("only a Unix socket or a loopback address, others need a token in the file".to_owned())
    }
}

/// An interval of half a second or more: each asks the daemon for everything.
fn parse_interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if (SHORTEST_INTERVAL..=LONGEST).contains(&time) => Ok(time),
        Ok(_) => Err(format!("a time from {SHORTEST_INTERVAL:?} to 1 year is wanted")),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_address(text: &str) -> Result<BindAddress, String> {
    parse_bind(text).map_err(|error| format!("{text:?} {error}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_admin_endpoint_for_everybody_is_not_opened_from_the_command_line() {
        assert_eq!(admin_bind("none"), Ok(AdminBind::Off));
        assert!(admin_bind("127.0.0.1:9180").is_ok());
        assert!(admin_bind("0.0.0.0:9180").is_err());
        assert!(admin_bind(":9180").is_err());
    }
}
