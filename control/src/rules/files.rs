//! The files that rules go by: read in full or not at all, and looked at for changes while the daemon runs.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use maxminddb::{MaxMindDbError, PathElement, Reader, WithinOptions};
use ringweir_flow::rules::list::{Format, List, MAX_LIST_BYTES, Mistake};
use ringweir_flow::rules::{Code, Countries};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

/// How often files are looked at: soon enough for whoever waits for it, and one stat(2) each.
const LOOK: Duration = Duration::from_secs(1);

/// The largest table of countries: those with cities have some hundred megabytes.
const MAX_COUNTRY_BYTES: usize = 256 << 20;

/// The most networks of one: several times those of the largest.
const MAX_NETWORKS: usize = 16_000_000;

/// Where MaxMind's tables keep the two letters.
const COUNTRY_CODE: [PathElement<'static>; 2] = [PathElement::Key("country"), PathElement::Key("iso_code")];

/// By what a change of a file shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    inode: u64,
}

/// The stamp of a file; `None` while there is none.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp { bytes: metadata.len(), modified: metadata.modified().ok(), inode: inode(&metadata) })
}

#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_metadata: &fs::Metadata) -> u64 {
    0
}

/// A file of rules.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    /// That of what was read last.
    pub(crate) stamp: Option<Stamp>,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A list of this name.
    List(Arc<str>, Format),
    /// The table of countries.
    Countries,
}

/// What a file says.
#[derive(Debug)]
pub(crate) enum Content {
    List(Arc<List>),
    Countries(Arc<Countries>),
}

/// A file has changed: what it says now, or why that cannot be used.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
    pub(crate) content: Result<Content, String>,
}

/// Looks at files for as long as it lives.
#[derive(Debug)]
pub(crate) struct Watcher(AbortHandle);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watcher {
    /// Starts to look; nothing where there is nothing to look at.
    pub(crate) fn start(mut files: Vec<Watched>, changes: mpsc::Sender<Change>) -> Option<Watcher> {
        if files.is_empty() {
            return None;
        }
        let task = tokio::spawn(async move {
            let mut look = interval(LOOK);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                look.tick().await;
                // Disks may be slow, and a large list takes a while: not on the thread that checks targets.
                let looked = spawn_blocking(move || {
                    let found: Vec<Change> = files.iter_mut().filter_map(look_at).collect();
                    (files, found)
                });
                let Ok((again, found)) = looked.await else { return };
                files = again;
                for change in found {
                    if changes.send(change).await.is_err() {
                        return;
                    }
                }
            }
        });
        Some(Watcher(task.abort_handle()))
    }
}

fn look_at(file: &mut Watched) -> Option<Change> {
    let now = stamp(&file.path);
    if now == file.stamp {
        return None;
    }
    file.stamp = now;
    let content = match &file.kind {
        Kind::List(_, format) => {
            read_list(&file.path, *format).map(|list| Content::List(Arc::new(list))).map_err(|mistakes| {
                let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                lines.join("; ")
            })
        }
        Kind::Countries => {
            read_countries(&file.path).map(|countries| Content::Countries(Arc::new(countries)))
        }
    };
    Some(Change { kind: file.kind.clone(), path: file.path.clone(), content })
}

/// Reads a table of countries in MaxMind's format. Every network is taken out once: a session then meets a sorted array,
/// whatever stands in the file.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn read_countries(path: &Path) -> Result<Countries, String> {
    let broken = |error: MaxMindDbError| format!("is no sound MaxMind file: {error}");
    let reader = Reader::from_source(read(path, MAX_COUNTRY_BYTES)?).map_err(broken)?;
    // Those without data count as well: a tree that leads in circles has no end of them.
    let options = WithinOptions::default().include_networks_without_data();
    let mut networks = Vec::new();
    for (index, found) in reader.networks(options).map_err(broken)?.enumerate() {
        if index == MAX_NETWORKS {
            return Err(format!("has more than {MAX_NETWORKS} networks"));
        }
        let found = found.map_err(broken)?;
        let code: Option<&str> = found.decode_path(&COUNTRY_CODE).map_err(broken)?;
        if let Some(code) = code.and_then(Code::parse) {
            let network = found.network().map_err(broken)?;
            let network = IpNet::new(network.ip(), network.prefix()).map_err(|error| error.to_string())?;
            networks.push((network, code));
        }
    }
    if networks.is_empty() {
        return Err("says nothing of countries".to_owned());
    }
    Ok(Countries::new(networks))
}

/// Reads a list.
///
/// # Errors
/// Mistakes with their lines; one of line 0 when the file cannot be read.
pub(crate) fn read_list(path: &Path, format: Format) -> Result<List, Vec<Mistake>> {
    let unread = |problem| vec![Mistake { line: 0, problem }];
    let bytes = read(path, MAX_LIST_BYTES).map_err(unread)?;
    List::read(&bytes, format)
}

/// A whole file of no more than so many bytes.
pub(crate) fn read(path: &Path, max_bytes: usize) -> Result<Vec<u8>, String> {
    let unread = |error: std::io::Error| format!("cannot be read: {error}");
    // Opening a pipe waits for whoever writes to it.
    if !fs::metadata(path).map_err(unread)?.is_file() {
        return Err("is no file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unread)?;
    file.take(max_bytes as u64 + 1).read_to_end(&mut bytes).map_err(unread)?;
    if bytes.len() > max_bytes {
        return Err(format!("is longer than {max_bytes} bytes"));
    }
    Ok(bytes)
}
