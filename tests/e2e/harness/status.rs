//! Reads what the admin endpoint says, without depending on more of its shape than scenarios need.

use serde_json::Value;

/// The object called `name` under the top-level key `kind` (`targets` or `listeners`).
#[track_caller]
pub(crate) fn named<'a>(status: &'a Value, kind: &str, name: &str) -> &'a Value {
    let found = match &status[kind] {
        Value::Array(items) => items.iter().find(|item| item["name"] == name),
        Value::Object(items) => items.get(name),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    };
    found.unwrap_or_else(|| panic!("no {kind} called {name} in {status:#}"))
}

/// A target's health, in the daemon's own word.
#[track_caller]
pub(crate) fn health<'a>(status: &'a Value, target: &str) -> &'a str {
    named(status, "targets", target)["health"].as_str().unwrap_or_else(|| panic!("no health in {status:#}"))
}

/// A number of a target or listener: `key`, or `kind` of the counts at `key`, where what never occurred is left out.
#[track_caller]
pub(crate) fn number(object: &Value, path: &[&str]) -> u64 {
    let value = match path {
        [key] => object[*key].as_u64(),
        [key, kind] => {
            object[*key].as_object().and_then(|counts| counts.get(*kind).map_or(Some(0), Value::as_u64))
        }
        _ => None,
    };
    value.unwrap_or_else(|| panic!("no number at {path:?} in {object:#}"))
}

/// The sum of all samples of the metrics whose line has every one of `parts`.
pub(crate) fn metric(text: &str, parts: &[&str]) -> f64 {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let matching = samples.filter(|line| parts.iter().all(|part| line.contains(part)));
    matching.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
