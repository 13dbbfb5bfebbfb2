//! The interval log that the daemon writes itself: at SIGUSR1, at regular intervals, at a reload and at the end.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ringweir_flow::snapshot::Snapshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::hlog::Log;
use super::{Moment, Source, Tally, all_series, log_report};
use crate::model::HistogramFile;

/// Why the file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub(crate) struct WriteError {
    path: PathBuf,
    error: io::Error,
}

/// Writes the file when it is due, on threads where a slow disk keeps nobody waiting.
#[derive(Debug)]
pub(crate) struct Keeper {
    since: Moment,
    file: Option<HistogramFile>,
    next_at: Option<Instant>,
    journal: Arc<Mutex<Journal>>,
    writing: Option<JoinHandle<()>>,
}

impl Keeper {
    /// For a daemon that starts now.
    pub(crate) fn new(file: Option<HistogramFile>) -> Keeper {
        let since = Moment::now();
        let journal = Arc::new(Mutex::new(Journal { since, written: HashMap::new() }));
        let mut keeper = Keeper { since, file, next_at: None, journal, writing: None };
        keeper.schedule();
        keeper
    }

    /// Where the figures since the start are read.
    pub(crate) fn source(&self, snapshot: &Arc<Snapshot>) -> Source {
        Source { snapshot: Arc::clone(snapshot), since: self.since }
    }

    /// When [`Keeper::handle_due`] is to be called.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.next_at
    }

    /// The next interval is over.
    pub(crate) fn handle_due(&mut self, snapshot: &Arc<Snapshot>) {
        self.schedule();
        if let Some(file) = &self.file {
            let path = file.path.clone();
            self.write(path, snapshot);
        }
    }

    /// Somebody wants the figures now: in the file, or in the log where there is none.
    pub(crate) fn handle_request(&mut self, snapshot: &Arc<Snapshot>) {
        match &self.file {
            Some(file) => {
                let path = file.path.clone();
                tracing::info!("histograms are asked for, they go to {}", path.display());
                self.write(path, snapshot);
            }
            None => {
                let source = self.source(snapshot);
                tokio::task::spawn_blocking(move || log_report(&source));
            }
        }
    }

    /// A reload ends the interval: what it takes away, and the file that was written so far, still get theirs.
    pub(crate) fn handle_reload(&mut self, file: Option<HistogramFile>, before: &Arc<Snapshot>) {
        if let Some(old) = &self.file {
            let path = old.path.clone();
            self.write(path, before);
        }
        if self.file != file {
            self.file = file;
            self.schedule();
        }
    }

    /// The daemon ends: the last interval.
    pub(crate) fn finish(self, snapshot: &Snapshot) {
        if let Some(file) = &self.file {
            write(&self.journal, &file.path, snapshot);
        }
    }

    fn schedule(&mut self) {
        let interval = self.file.as_ref().and_then(|file| file.interval);
        self.next_at = interval.map(|interval| Instant::now() + interval);
    }

    fn write(&mut self, path: PathBuf, snapshot: &Arc<Snapshot>) {
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            let path = path.display();
            tracing::warn!("{path}: histograms are still being written; the next interval will be longer");
            return;
        }
        let (journal, snapshot) = (Arc::clone(&self.journal), Arc::clone(snapshot));
        self.writing = Some(tokio::task::spawn_blocking(move || write(&journal, &path, &snapshot)));
    }
}

fn write(journal: &Mutex<Journal>, path: &Path, snapshot: &Snapshot) {
    let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
    match journal.write(path, snapshot) {
        Ok(series) => tracing::debug!("{}: histograms are written, series={series}", path.display()),
        Err(error) => tracing::warn!("histograms cannot be written: {error}"),
    }
}

/// What was written so far: the next interval is what came since.
#[derive(Debug)]
struct Journal {
    since: Moment,
    written: HashMap<String, Tally>,
}

impl Journal {
    /// Appends an interval and begins the next. When it fails, the next one will hold this one too. Tells how many
    /// series there were; those of which nothing new was recorded are left out.
    fn write(&mut self, path: &Path, snapshot: &Snapshot) -> Result<usize, WriteError> {
        let fail = |error| WriteError { path: path.to_owned(), error };
        let (mut file, length) = open(path).map_err(fail)?;
        let now = Moment::now();
        let mut log = Log::new();
        if length == 0 {
            log.header(self.since.wall);
        }
        let (mut written, mut series_count) = (HashMap::new(), 0);
        for series in all_series(snapshot) {
            let (tag, tally) = (series.tag(), series.tally());
            let new = self.written.get(&tag).map_or_else(|| tally.clone(), |before| tally.since(before));
            if !new.is_empty() {
                log.interval(&tag, self.since.wall, self.since.until(now), &new);
                series_count += 1;
            }
            written.insert(tag, tally);
        }
        if let Err(error) = file.write_all(&log.into_bytes()) {
            // Half a line would spoil what follows. When even this fails, nothing more can be done.
            let _ = file.set_len(length);
            return Err(fail(error));
        }
        *self = Journal { since: now, written };
        Ok(series_count)
    }
}

/// The file and its length. It is opened anew for each interval, so that it may be moved away at any time.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // A pipe without a reader would be waited for.
        options.mode(0o640).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    Ok((file, metadata.len()))
}
