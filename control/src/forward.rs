//! Configurations that nobody wrote: of the one-liners, and of a daemon without a file. They are made as TOML and read
//! like any other, so that the same rules hold and the same errors are told.

use std::path::Path;

use toml::{Table, Value};

use crate::cli::Forward;
use crate::config::{self, ConfigErrors};
use crate::model::Config;

/// What `ringweir run` serves without a file.
const DEFAULT: &str = r#"
[[listener]]
name = "proxy"
bind = "127.0.0.1:1080"
protocol = "mixed"
target = "direct"
"#;

/// A SOCKS5 and HTTP proxy for this machine.
///
/// # Errors
/// None that a user could cause.
pub(crate) fn without_file() -> Result<Config, ConfigErrors> {
    config::parse(DEFAULT, "built-in configuration", Path::new(""))
}

/// What `ringweir forward` serves.
///
/// # Errors
/// Whatever is wrong with the addresses.
pub(crate) fn from_arguments(forward: &Forward) -> Result<Config, ConfigErrors> {
    let text = |text: &str| Value::String(text.to_owned());
    let list = |texts: &[String]| Value::Array(texts.iter().map(|one| text(one)).collect());
    let mut root = Table::new();
    let mut upstreams = Table::new();
    let mut members = Vec::new();
    for (number, to) in (1..).zip(&forward.to) {
        let name = format!("to-{number}");
        upstreams.insert(name.clone(), Value::Table(Table::from_iter([("address".to_owned(), text(to))])));
        members.push(name);
    }
    root.insert("upstream".to_owned(), Value::Table(upstreams));
    let mut group = Table::from_iter([
        ("policy".to_owned(), text(forward.policy.as_str())),
        ("members".to_owned(), list(&members)),
    ]);
    if let Some(interval) = &forward.check {
        let check = Table::from_iter([("schedule".to_owned(), list(std::slice::from_ref(interval)))]);
        let checks = Table::from_iter([("every".to_owned(), Value::Table(check))]);
        root.insert("check".to_owned(), Value::Table(checks));
        group.insert("check".to_owned(), text("every"));
    }
    root.insert(
        "group".to_owned(),
        Value::Table(Table::from_iter([("pool".to_owned(), Value::Table(group))])),
    );
    let listener = Table::from_iter([
        ("name".to_owned(), text("forward")),
        ("bind".to_owned(), list(&forward.listen)),
        ("target".to_owned(), text("pool")),
    ]);
    root.insert("listener".to_owned(), Value::Array(vec![Value::Table(listener)]));
    config::parse(&root.to_string(), "command line", Path::new(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::PolicyArgument;

    #[test]
    fn the_built_in_configuration_is_a_proxy_for_this_machine_alone() {
        let config = without_file().unwrap();
        assert!(config.listeners.iter().all(|listener| listener.binds.iter().all(|bind| bind.is_local())));
    }

    #[test]
    fn one_liners_become_a_group_over_their_endpoints() {
        let forward = Forward {
            listen: vec!["127.0.0.1:0".to_owned()],
            to: vec!["127.0.0.1:1".to_owned(), "unix:/tmp/x".to_owned()],
            policy: PolicyArgument::Failover,
            check: Some("5s".to_owned()),
        };
        let config = from_arguments(&forward).unwrap();
        assert_eq!(config.targets.len(), 3);
        let wrong = Forward { to: vec!["nowhere".to_owned()], ..forward };
        assert!(from_arguments(&wrong).unwrap_err().to_string().contains("nowhere"));
    }
}
