//! The lists that rules go by, with what their files say.

use std::path::Path;
use std::sync::Arc;

use ringweir_flow::rules::Countries;
use ringweir_flow::rules::list::{Format, List};

use super::diagnostic::Place;
use super::reader::{Node, Table};
use super::schema;
use super::targets::is_name;
use crate::model::{CountryFile, ListFile};
use crate::rules::files;

/// The words for how a list is written.
const FORMATS: &[(&str, Format)] = &[("plain", Format::Plain), ("abp", Format::Abp)];

/// Reads every list and its file.
pub(crate) fn read(root: &Table<'_>, folder: &Path) -> Vec<ListFile> {
    let named = root.get("list").and_then(|node| node.named()).unwrap_or_default();
    named.into_iter().filter_map(|(name, node)| list(name, &node, folder)).collect()
}

fn list(name: &str, node: &Node<'_>, folder: &Path) -> Option<ListFile> {
    is_name(name, node);
    let table = node.table(schema::LIST)?;
    let format = table.get("format").map_or(Some(Format::Plain), |node| node.choice(FORMATS));
    let file = table.required("file")?;
    let path = folder.join(file.string()?);
    // Before the file is read: what changes meanwhile shows as a change.
    let stamp = files::stamp(&path);
    let content = format.map_or_else(List::default, |format| {
        files::read_list(&path, format).unwrap_or_else(|mistakes| {
            for mistake in mistakes {
                let shown = path.display().to_string();
                match mistake.line {
                    0 => file.report(format!("{shown} {}", mistake.problem), None),
                    line => {
                        let place = Place { file: shown, line, column: 1 };
                        file.sink().report_at(place, file.path(), mistake.problem, None);
                    }
                }
            }
            List::default()
        })
    });
    let format = format.unwrap_or(Format::Plain);
    Some(ListFile { name: name.into(), path, format, stamp, content: Arc::new(content) })
}

/// The table of countries.
pub(crate) fn countries(root: &Table<'_>, folder: &Path) -> Option<CountryFile> {
    let file = root.get("country")?.table(schema::COUNTRY)?.required("file")?;
    let path = folder.join(file.string()?);
    let stamp = files::stamp(&path);
    let content = files::read_countries(&path).unwrap_or_else(|problem| {
        file.report(format!("{} {problem}", path.display()), None);
        Countries::default()
    });
    Some(CountryFile { path, stamp, content: Arc::new(content) })
}
