//! Servers as tables of a configuration.

use std::collections::HashSet;
use std::path::Path;

use toml::{Table, Value};

use super::Server;
use crate::config;

/// The longest name, with room for a number at its end.
const MAX_NAME_BYTES: usize = 120;

/// Names that the configuration gives to what is built in.
const BUILT_IN: [&str; 2] = ["direct", "reject"];

/// A name for each server, made of its tag or else of its address; none is one of `taken`.
pub(super) fn names(servers: &[Server], taken: &HashSet<String>) -> Vec<String> {
    let mut taken = taken.clone();
    taken.extend(BUILT_IN.map(str::to_owned));
    let mut names = Vec::with_capacity(servers.len());
    for server in servers {
        let base = server.tag.as_deref().map(name).filter(|name| !name.is_empty());
        let base = base.unwrap_or_else(|| name(&server.address.to_string()));
        let mut chosen = base.clone();
        let mut number = 1;
        while !taken.insert(chosen.clone()) {
            number += 1;
            chosen = format!("{base}-{number}");
        }
        names.push(chosen);
    }
    names
}

/// What of a text may stand in a name; a hyphen for what may not.
fn name(text: &str) -> String {
    let is_unfit = |character: char| {
        character.is_whitespace() || character.is_control() || matches!(character, '"' | '\'' | '\\')
    };
    let words: Vec<&str> = text.split(is_unfit).filter(|word| !word.is_empty()).collect();
    let mut name = words.join("-");
    name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
    name
}

/// An `[upstream.NAME]` for each server, in their order, and a `[group.GROUP]` over all.
pub(super) fn write(servers: &[Server], names: &[String], group: Option<&str>) -> String {
    let mut text = String::new();
    for (server, name) in servers.iter().zip(names) {
        let value = |text: &str| Value::String(text.to_owned());
        let mut keys = Table::from_iter([
            ("kind".to_owned(), value("shadowsocks")),
            ("address".to_owned(), value(&server.address.to_string())),
            ("method".to_owned(), value(server.method.as_str())),
            ("password".to_owned(), value(&server.password)),
        ]);
        if let Some(plugin) = &server.plugin {
            keys.insert("plugin".to_owned(), value(&plugin.name));
            if let Some(options) = &plugin.options {
                keys.insert("plugin_opts".to_owned(), value(options));
            }
        }
        text.push_str(&section("upstream", name, keys));
    }
    if let Some(group) = group {
        let members = Value::Array(names.iter().map(|name| Value::String(name.clone())).collect());
        text.push_str(&section("group", group, Table::from_iter([("members".to_owned(), members)])));
    }
    text
}

fn section(kind: &str, name: &str, keys: Table) -> String {
    let named = Table::from_iter([(name.to_owned(), Value::Table(keys))]);
    let root = Table::from_iter([(kind.to_owned(), Value::Table(named))]);
    format!("{root}\n")
}

/// Whether a configuration would take these tables.
///
/// # Errors
/// Everything that is wrong with them.
pub(super) fn judge(text: &str, first: &str) -> Result<(), String> {
    let listener = Table::from_iter([
        ("name".to_owned(), Value::String("import".to_owned())),
        ("bind".to_owned(), Value::String("127.0.0.1:1".to_owned())),
        ("protocol".to_owned(), Value::String("mixed".to_owned())),
        ("target".to_owned(), Value::String(first.to_owned())),
    ]);
    let listeners = Value::Array(vec![Value::Table(listener)]);
    let whole = format!("{text}{}", Table::from_iter([("listener".to_owned(), listeners)]));
    config::parse(&whole, "import", Path::new("")).map(drop).map_err(|errors| errors.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(tag: &str) -> Server {
        Server::new("aes-256-gcm", "p\"a'ss\\\n", "a.example", 1).unwrap().with_tag(tag)
    }

    #[test]
    fn names_are_valid_unique_and_not_those_that_are_taken() {
        let long = "ü".repeat(200);
        let tags = ["Tokyo 1", "Tokyo 1", "Tokyo-1-2", "", "direct", " \"' ", "東京", &long, &long];
        let servers = tags.map(server);
        let names = names(&servers, &HashSet::from(["東京".to_owned()]));
        assert_eq!(names[..4], ["Tokyo-1", "Tokyo-1-2", "Tokyo-1-2-2", "a.example:1"]);
        assert_eq!(names[4..7], ["direct-2", "a.example:1-2", "東京-2"]);
        let text = write(&servers, &names, Some("all"));
        judge(&text, "all").unwrap();
        let read: Table = text.parse().unwrap();
        assert_eq!(read["upstream"]["Tokyo-1"]["password"].as_str(), Some("p\"a'ss\\\n"));
        assert_eq!(read["group"]["all"]["members"].as_array().map(Vec::len), Some(tags.len()));
    }
}
