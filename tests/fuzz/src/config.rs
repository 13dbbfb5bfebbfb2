//! What operators write, and what others give them: configurations, links and documents. A mistake is told with its
//! place, and what `import` writes can be read.

use std::path::Path;

use ringweir_control::config::parse;
use ringweir_control::convert_import;
use toml::{Table, Value};

/// Where files of a configuration would be: nowhere.
const FOLDER: &str = "/nonexistent/ringweir-fuzz";

pub(crate) fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Err(errors) = parse(&text, "fuzz.toml", Path::new(FOLDER)) else { return };
    assert!(!errors.0.is_empty(), "refused for nothing");
    for error in &errors.0 {
        assert!(error.place.line >= 1 && error.place.column >= 1 && !error.message.is_empty(), "{error:?}");
        // The end of the text is a place, too.
        assert!(error.place.line <= text.split('\n').count(), "{error:?}");
    }
    let told = errors.to_string();
    assert!(told.lines().any(|line| line.starts_with("fuzz.toml:")), "{told}");
}

pub(crate) fn import(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok((tables, _)) = convert_import(&text) else { return };
    let root: Table = tables.parse().unwrap();
    let name = root["upstream"].as_table().and_then(|upstreams| upstreams.keys().next()).unwrap().clone();
    let listener = [("name", "in"), ("bind", "127.0.0.1:1"), ("protocol", "mixed"), ("target", &name)];
    let listener = Table::from_iter(listener.map(|(key, value)| (key.to_owned(), value.into())));
    let listeners = Table::from_iter([("listener".to_owned(), Value::Array(vec![listener.into()]))]);
    if let Err(errors) = parse(&format!("{tables}\n{listeners}"), "import.toml", Path::new(FOLDER)) {
        panic!("{errors}\n{tables}");
    }
}
