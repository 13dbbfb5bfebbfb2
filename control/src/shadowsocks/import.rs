//! `ringweir import`: servers from a link, a file or a URL become upstreams.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Table;
use zeroize::Zeroizing;

use super::tables::{judge, names, write};
use super::{Fault, Server, documents, links};
use crate::check::fetch;
use crate::cli::ImportArguments;
use crate::config;
use crate::model::ResolverSettings;
use crate::resolve::Names;

/// The most that is read: thousands of servers.
const MAX_SOURCE_BYTES: u64 = 1024 * 1024;

/// How long a server of documents may take in all.
const FETCH_LIMIT: Duration = Duration::from_secs(20);

/// Takes servers over.
///
/// # Errors
/// Everything that is wrong with them, by its place; no password is shown.
pub(crate) fn run(arguments: &ImportArguments) -> Result<(), String> {
    let source = &arguments.source;
    let (place, text) = if links::is_link(source) {
        ("the link".to_owned(), Zeroizing::new(source.clone()))
    } else if source.starts_with("http://") || source.starts_with("https://") {
        (source.clone(), fetched(source)?)
    } else {
        (source.clone(), file(source)?)
    };
    let (servers, faults) = servers(&place, &text)?;
    if !faults.is_empty() {
        let list = faults.join("\n");
        if !arguments.skip || servers.is_empty() {
            return Err(list);
        }
        // Nothing can be done when even stderr is gone.
        let _ = writeln!(io::stderr(), "{list}");
    }
    if servers.is_empty() {
        return Err(format!("{place}: there is no server in it"));
    }
    if let Some(warning) = programs(&servers) {
        // As above.
        let _ = writeln!(io::stderr(), "{warning}");
    }
    match &arguments.append {
        Some(path) => append(path, &servers, arguments.group.as_deref()),
        None => {
            let text = tables(&servers, &HashSet::new(), arguments.group.as_deref())?;
            crate::print(&text)
        }
    }
}

/// What a source's text comes to: the tables of its servers, as they are printed, and what is wrong with its other
/// entries, each with its place.
///
/// # Errors
/// Why there is nothing to take over.
pub fn convert(text: &str) -> Result<(String, Vec<String>), String> {
    let (servers, faults) = servers("the source", text)?;
    match servers.is_empty() {
        true => Err(faults.join("\n")),
        false => Ok((tables(&servers, &HashSet::new(), None)?, faults)),
    }
}

/// Which programs the servers want run here: whoever wrote the source has chosen them.
fn programs(servers: &[Server]) -> Option<String> {
    let plugins = servers.iter().filter_map(|server| server.plugin.as_ref());
    let names: BTreeSet<String> = plugins.map(|plugin| format!("{:?}", plugin.name)).collect();
    let list = Vec::from_iter(names).join(", ");
    (!list.is_empty()).then(|| format!("plugins that ringweir will run as programs: {list}"))
}

/// What a source says: its servers, and what is wrong, each with its place.
fn servers(place: &str, text: &str) -> Result<(Vec<Server>, Vec<String>), String> {
    let entries: Vec<(String, Result<Server, Fault>)> = if text.trim_start().starts_with(['{', '[']) {
        let entries = documents::parse(text).map_err(|error| format!("{place} {error}"))?;
        entries.into_iter().map(|(server, found)| (format!("{place}: {server}"), found)).collect()
    } else {
        let lines: Vec<(usize, &str)> = (1..).zip(text.lines().map(str::trim)).collect();
        let is_one = lines.len() == 1;
        let is_said = |(_, line): &(usize, &str)| !line.is_empty() && !line.starts_with('#');
        let entry = |(number, line): (usize, &str)| {
            let place = if is_one { place.to_owned() } else { format!("{place}: line {number}") };
            (place, links::parse(line))
        };
        lines.into_iter().filter(is_said).map(entry).collect()
    };
    let (mut servers, mut faults) = (Vec::new(), Vec::new());
    for (place, found) in entries {
        match found {
            Ok(server) => servers.push(server),
            Err(fault) => faults.push(format!("{place}: {fault}")),
        }
    }
    Ok((servers, faults))
}

/// The tables of servers, by names of which none is taken.
fn tables(servers: &[Server], taken: &HashSet<String>, group: Option<&str>) -> Result<String, String> {
    let mut taken = taken.clone();
    taken.extend(group.map(str::to_owned));
    let names = names(servers, &taken);
    let text = write(servers, &names, group);
    judge(&text, &names[0])?;
    Ok(text)
}

/// Puts them at the end of a configuration, which is replaced whole if it is sound with them.
fn append(path: &Path, servers: &[Server], group: Option<&str>) -> Result<(), String> {
    let told = |error: io::Error| format!("{}: {error}", path.display());
    // A link to the file stays one.
    let path = fs::canonicalize(path).map_err(told)?;
    let before = Zeroizing::new(fs::read_to_string(&path).map_err(told)?);
    let (file, folder) = (path.display().to_string(), path.parent().unwrap_or(Path::new("")).to_path_buf());
    config::parse(&before, &file, &folder).map_err(|errors| errors.to_string())?;
    let root: Table = before.parse().map_err(|error| format!("{file}: {error}"))?;
    let sections = ["upstream", "group"].into_iter().filter_map(|key| root.get(key)?.as_table());
    let taken: HashSet<String> = sections.flat_map(|section| section.keys().cloned()).collect();
    if let Some(group) = group.filter(|group| taken.contains(*group)) {
        return Err(format!("{file}: the name {group:?} is taken"));
    }
    let new = tables(servers, &taken, group)?;
    let gap = if before.ends_with('\n') { "\n" } else { "\n\n" };
    let whole = Zeroizing::new(format!("{}{gap}{}\n", *before, new.trim_end()));
    config::parse(&whole, &file, &folder).map_err(|errors| errors.to_string())?;
    replace(&path, whole.as_bytes()).map_err(told)?;
    let count = servers.len();
    crate::print(&format!("{file}: {count} upstream{} added\n", if count == 1 { "" } else { "s" }))
}

/// Replaces a file whole; whoever could not read it before cannot now.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}.new", std::process::id()));
    let aside = PathBuf::from(aside);
    let written = write_like(path, &aside, bytes).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // What was made aside is of no use to anybody.
        let _ = fs::remove_file(&aside);
    }
    written
}

/// A file beside another, of the same owner and with the same permissions.
#[cfg(unix)]
fn write_like(model: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};

    let model = fs::metadata(model)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (model.uid(), model.gid()) {
        fchown(&file, Some(model.uid()), Some(model.gid()))?;
    }
    file.set_permissions(model.permissions())?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(not(unix))]
fn write_like(_model: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn file(path: &str) -> Result<Zeroizing<String>, String> {
    let told = |error: io::Error| format!("{path}: {error}");
    let mut text = Zeroizing::new(String::new());
    let source: Box<dyn io::Read> = match path {
        "-" => Box::new(io::stdin()),
        path => Box::new(fs::File::open(path).map_err(told)?),
    };
    source.take(MAX_SOURCE_BYTES + 1).read_to_string(&mut text).map_err(told)?;
    if text.len() as u64 > MAX_SOURCE_BYTES {
        return Err(format!("{path}: has more than {MAX_SOURCE_BYTES} bytes"));
    }
    Ok(text)
}

fn fetched(url: &str) -> Result<Zeroizing<String>, String> {
    let request = config::get(url).map_err(|error| format!("{url} {error}"))?;
    let settings = ResolverSettings { servers: Vec::new(), timeout: config::DEFAULT_RESOLVE };
    let bytes = crate::runtime()?.block_on(async {
        let names = Arc::new(Names::new(&settings)?);
        fetch(request, names, FETCH_LIMIT, MAX_SOURCE_BYTES as usize).await
    });
    let text = String::from_utf8(bytes.map_err(|error| format!("{url}: {error}"))?);
    text.map(Zeroizing::new).map_err(|_| format!("{url}: is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# mine\n[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:1080\"\nprotocol = \"mixed\"\n\
                          target = \"a\"\n[upstream.a]\naddress = \"127.0.0.1:1\"";
    const LINK: &str = "ss://aes-256-gcm:x@h.example:1#a";

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("ringweir-import-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn import(source: &str, append: &Path, group: Option<&str>) -> Result<(), String> {
        let (source, append, group) = (source.to_owned(), Some(append.to_owned()), group.map(str::to_owned));
        run(&ImportArguments { source, append, group, skip: false })
    }

    #[cfg(unix)]
    #[test]
    fn a_configuration_is_added_to_or_stays_as_it_is() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let folder = folder("append");
        let (path, link) = (folder.join("r.toml"), folder.join("link.toml"));
        fs::write(&path, BEFORE).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        import(LINK, &link, Some("all")).unwrap();
        let after = fs::read_to_string(&path).unwrap();
        assert!(after.starts_with(BEFORE) && after.contains("[upstream.a-2]"), "{after}");
        assert!(after.contains("[group.all]"), "{after}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        // There is a group of that name now.
        let error = import(LINK, &path, Some("all")).unwrap_err();
        assert!(error.ends_with("the name \"all\" is taken"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), after);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing is left beside it");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn every_line_that_is_wrong_is_named_and_nothing_is_taken_over() {
        let folder = folder("lines");
        let (list, path) = (folder.join("list"), folder.join("r.toml"));
        fs::write(&path, BEFORE).unwrap();
        fs::write(&list, format!("# mine\n{LINK}\n\nss://rc4-md5:SeCrEt@h:1\nvmess://x\n")).unwrap();
        let error = import(list.to_str().unwrap(), &path, None).unwrap_err();
        assert!(error.contains("line 4: the method \"rc4-md5\"") && error.contains("line 5: "), "{error}");
        assert!(!error.contains("SeCrEt"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn programs_that_a_source_wants_run_are_told() {
        let told = |text: &str| programs(&servers("it", text).unwrap().0);
        assert_eq!(told(LINK), None);
        let link = |plugin: &str| format!("ss://aes-256-gcm:SeCrEt@h:1/?plugin={plugin}\n");
        let links = [link("poweroff"), link("/bin/x%1b%3BSeCrEt"), link("poweroff%3Ba"), link("")].concat();
        let warning = told(&links).unwrap();
        assert!(warning.ends_with(r#": "/bin/x\u{1b}", "poweroff""#), "{warning}");
    }

    #[test]
    fn more_than_is_read_is_refused() {
        let folder = folder("large");
        let path = folder.join("large");
        fs::write(&path, "#".repeat(MAX_SOURCE_BYTES as usize + 1)).unwrap();
        assert!(file(path.to_str().unwrap()).unwrap_err().contains("more than"));
        fs::remove_dir_all(folder).unwrap();
    }
}
