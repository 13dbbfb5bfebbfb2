//! Reads the configuration: TOML text to a [`Config`] that cannot be wrong, or every mistake in it at once.

mod address;
mod checks;
mod diagnostic;
mod graph;
mod health;
mod listeners;
mod lists;
mod reader;
mod rules;
mod schema;
mod sealed;
mod secrets;
mod sections;
mod sockets;
mod targets;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use toml::de::DeTable;

pub use address::{AddressError, parse_bind, parse_endpoint};
pub(crate) use checks::get;
pub use diagnostic::{ConfigErrors, Diagnostic, Place};
pub(crate) use reader::LONGEST;
pub use schema::known_keys;
pub(crate) use sections::{DEFAULT_ADMIN, DEFAULT_RESOLVE, SHORTEST_INTERVAL};

use crate::model::Config;
use diagnostic::Sink;
use reader::Table;

/// Reads and judges a configuration file. Paths in it are relative to its folder.
///
/// # Errors
/// Every mistake in it, or the one that it cannot be read.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let file = path.display().to_string();
    match fs::read_to_string(path) {
        Ok(text) => parse(&text, &file, path.parent().unwrap_or(Path::new(""))),
        Err(error) => {
            let place = Place { file, line: 1, column: 1 };
            let message = format!("cannot be read: {error}");
            Err(ConfigErrors(vec![Diagnostic { place, key: String::new(), message, hint: None }]))
        }
    }
}

/// Judges a configuration: `file` names it in messages, `folder` is where relative paths in it start.
///
/// # Errors
/// Every mistake in it.
pub fn parse(text: &str, file: &str, folder: &Path) -> Result<Config, ConfigErrors> {
    let sink = Sink::new(file, text);
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    for error in &syntax_errors {
        sink.report(&error.span().unwrap_or(0..0), "", error.message(), None);
    }
    // A tree with holes would only be blamed for what the syntax errors hide.
    if !sink.is_empty() {
        return Err(sink.into_errors());
    }
    let root = Table::open(&sink, document.get_ref(), 0..0, String::new(), schema::ROOT);
    let config = config(&root, folder);
    if sink.is_empty() { Ok(config) } else { Err(sink.into_errors()) }
}

/// Reads every section. A value that was reported is replaced by a default so that reading goes on; the result is
/// thrown away then.
fn config(root: &Table<'_>, folder: &Path) -> Config {
    let (timeouts, drain) = sections::timeouts(root);
    let checks = checks::checks(root, folder);
    let declared = targets::declared(root, &checks, folder);
    let raw = listeners::read(root, timeouts, folder);
    let lists = lists::read(root, folder);
    let countries = lists::countries(root, folder);
    let ruled = rules::read(root, rules::Files { lists: &lists, countries: countries.as_ref() });
    let graph = graph::build(declared, &raw, &ruled);
    let (rules, needs) = rules::judge(ruled, &raw, &graph);
    let listeners = listeners::judge(raw, &graph, &needs);
    if listeners.is_empty() && root.get("listener").is_none() {
        let hint = "declare a [[listener]] with name, bind and target".to_owned();
        root.report("nothing would be served: there is no listener", Some(hint));
    }
    Config {
        engine: sections::engine(root),
        admin: sections::admin(root, folder),
        log: sections::log(root),
        drain,
        excuse_outages: sections::excuse_outages(root),
        state: sections::state(root, folder),
        histograms: sections::histograms(root, folder),
        resolver: sections::resolver(root),
        listeners,
        rules,
        lists,
        countries,
        targets: graph.targets,
    }
}
