//! A reload: the files are read on a thread of their own, for long lists take a while, and what they say is applied on
//! that of the daemon. Meanwhile targets are checked and questions answered.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use tokio::sync::oneshot;

use super::{Daemon, Phase, remove_socket_file};
use crate::model::{Config, TargetKind};
use crate::signals::{self, ServiceState};
use crate::{bind, config, passwords, plugins, resolve};

/// Where whoever wants a reload hears what came of it.
type Reply = oneshot::Sender<Result<String, String>>;

/// The reading of the configuration.
#[derive(Debug, Default)]
pub(super) enum Reading {
    #[default]
    Idle,
    UnderWay {
        result: oneshot::Receiver<Result<Config, String>>,
        /// Who waits for it.
        asked: Vec<Reply>,
        again: Again,
    },
}

/// Whether somebody has asked since a reading began: the files may have changed behind it.
#[derive(Debug)]
pub(super) enum Again {
    No,
    Wanted(Vec<Reply>),
}

impl Reading {
    fn begin(file: PathBuf, asked: Vec<Reply>) -> Result<Reading, (Vec<Reply>, String)> {
        let (done, result) = oneshot::channel();
        let read = move || {
            // Nobody waits for it where the daemon ends.
            let _ = done.send(config::load(&file).map_err(|errors| errors.to_string()));
        };
        // None of the runtime's: its end would wait for a file that hangs.
        match thread::Builder::new().name("reload".to_owned()).spawn(read) {
            Ok(_) => Ok(Reading::UnderWay { result, asked, again: Again::No }),
            Err(error) => Err((asked, format!("no thread can be had to read it: {error}\n"))),
        }
    }

    /// What was read; never, where nothing is being read.
    pub(super) async fn finished(&mut self) -> Result<Config, String> {
        match self {
            Reading::Idle => std::future::pending().await,
            Reading::UnderWay { result, .. } => {
                result.await.unwrap_or_else(|_| Err("it broke off while it was read\n".to_owned()))
            }
        }
    }
}

impl Daemon {
    /// Somebody wants the configuration read again.
    pub(super) fn handle_reload(&mut self, reply: Option<Reply>) {
        match &mut self.reading {
            Reading::Idle => self.begin_reading(reply.into_iter().collect()),
            Reading::UnderWay { again: Again::Wanted(waiting), .. } => {
                // Those who have left make room: there are no more than connections of the admin endpoint.
                waiting.retain(|waiting| !waiting.is_closed());
                waiting.extend(reply);
            }
            Reading::UnderWay { again: again @ Again::No, .. } => {
                *again = Again::Wanted(reply.into_iter().collect());
            }
        }
    }

    fn begin_reading(&mut self, asked: Vec<Reply>) {
        signals::notify(ServiceState::Reloading);
        let begun = match &self.settings.file {
            Some(file) => Reading::begin(file.clone(), asked),
            None => {
                let why = "there is no configuration file to read: the daemon was started without one\n";
                Err((asked, why.to_owned()))
            }
        };
        match begun {
            Ok(reading) => self.reading = reading,
            Err((asked, why)) => self.tell(asked, Err(why)),
        }
    }

    /// The configuration has been read.
    pub(super) async fn handle_read(&mut self, read: Result<Config, String>) {
        let Reading::UnderWay { asked, again, .. } = std::mem::take(&mut self.reading) else { return };
        let result = self.apply(read).await;
        self.tell(asked, result);
        if let Again::Wanted(waiting) = again {
            self.begin_reading(waiting);
        }
    }

    fn tell(&mut self, asked: Vec<Reply>, result: Result<String, String>) {
        match &result {
            Ok(text) => {
                self.reloads.applied += 1;
                tracing::info!("{text}");
            }
            Err(errors) => {
                self.reloads.refused += 1;
                tracing::error!("the configuration is refused, the old one serves on: {errors}");
            }
        }
        signals::notify(ServiceState::Ready);
        for reply in asked {
            // Whoever asked may have left.
            let _ = reply.send(result.clone());
        }
    }

    async fn apply(&mut self, read: Result<Config, String>) -> Result<String, String> {
        if self.phase != Phase::Serving {
            return Err("the daemon is ending\n".to_owned());
        }
        let mut config = read?;
        self.settings.overrides.apply(&mut config);
        passwords::keep_known(&mut config, &self.config);
        bind::try_upstreams(&config).map_err(|error| format!("{error}\n"))?;
        plugins::try_out(&config).map_err(|error| format!("{error}\n"))?;
        let (binds, opened, next_bind) = bind::open_all(&config, &self.binds, self.workers, self.next_bind)
            .map_err(|error| format!("{error}\n"))?;
        self.forget_addresses(&config);
        resolve::locate(&config, &self.names, &mut self.knowledge).await;
        let later = self.needs_restart(&config);
        self.retire_listeners(&config);
        self.histograms.handle_reload(config.histograms.clone(), &self.snapshot);
        let before = std::mem::replace(&mut self.binds, binds);
        self.next_bind = next_bind;
        self.config = config;
        self.knowledge.retain(&self.config);
        self.knowledge.rules.configure(&self.config, self.workers);
        self.knowledge.care.reconfigure(&self.config);
        self.knowledge.plugins.configure(&self.config, &self.binds);
        self.watch_targets();
        self.watch_files();
        self.publish(opened);
        self.announce(&before);
        let gone = before.iter().filter(|bind| !self.binds.iter().any(|kept| kept.id == bind.id));
        gone.for_each(remove_socket_file);
        let mut text = format!("the configuration is applied, snapshot {}\n", self.snapshot.generation);
        let later =
            later.into_iter().map(str::to_owned).chain(bind::with_old_sockets(&self.config, &self.binds));
        for what in later {
            text.push_str(&format!("{what} takes effect at the next start only\n"));
        }
        Ok(text)
    }

    /// Keeps the counters of listeners that are about to go, while they have sessions.
    fn retire_listeners(&mut self, new: &Config) {
        self.retired.retain(|counters| counters.sum(|cell| &cell.active) > 0);
        let gone =
            self.snapshot.listeners.iter().filter(|old| new.listeners.iter().all(|one| one.name != old.name));
        self.retired.extend(gone.map(|listener| Arc::clone(&listener.counters)));
    }

    /// The addresses of an upstream that is written otherwise now are those of somebody else.
    fn forget_addresses(&mut self, new: &Config) {
        let endpoint = |config: &Config, name: &str| {
            config.targets.iter().find(|target| &*target.name == name).and_then(|target| match &target.kind {
                TargetKind::Upstream(upstream) => Some(upstream.endpoint.clone()),
                TargetKind::Group(_) => None,
            })
        };
        let old = &self.config;
        self.knowledge.addresses.retain(|name, _| endpoint(old, name) == endpoint(new, name));
    }
}
