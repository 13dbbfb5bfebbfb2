//! What a machine can check of the project's own rules: who may import whom, where unsafe may stand, how long files
//! and functions may be, and that every metric is documented.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines that a source file may have: a sitting.
const FILE_LINES: usize = 600;

/// Lines that a function may have: a screen.
const FUNCTION_LINES: usize = 80;

/// Longer files, each with the reason why it is one thing.
const LONGER_FILES: &[(&str, usize, &str)] =
    &[("engine/ring/src/ring.rs", 640, "one safe method an operation, side by side")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of the project, by its path from the root.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["engine", "control", "fallback", "perf", "tests", "benches"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                let text = fs::read_to_string(&path).unwrap();
                found.push((name, text));
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// The lines of a file that are code, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn dependencies_point_one_way() {
    // Which of our crates each crate may name.
    let allowed: &[(&str, &[&str])] = &[
        ("engine/ring/", &[]),
        ("engine/flow/", &["ringweir_flow"]),
        ("engine/", &["ringweir_flow", "ringweir_ring", "ringweir_engine"]),
        ("fallback/", &["ringweir_flow", "ringweir_pipe", "ringweir_fallback"]),
        ("control/src/", &["ringweir_flow", "ringweir_control"]),
        ("control/tests/", &["ringweir_flow", "ringweir_control"]),
    ];
    let ours = ["ringweir_flow", "ringweir_ring", "ringweir_engine", "ringweir_fallback", "ringweir_control"];
    let mut faults = Vec::new();
    for (name, text) in sources() {
        let Some((folder, may)) = allowed.iter().find(|(folder, _)| name.starts_with(folder)) else {
            continue;
        };
        for (number, line) in code(&text) {
            for other in ours.iter().filter(|other| !may.contains(other)) {
                if line.contains(&format!("{other}::")) && *folder != "engine/ring/" {
                    faults.push(format!("{name}:{number}: {folder} may not name {other}"));
                }
            }
        }
    }
    report(&faults);
}

#[test]
fn unsafe_stands_in_ring_alone() {
    let mut faults = Vec::new();
    for (name, text) in sources() {
        if name.starts_with("engine/ring/") || name == "tests/tidy.rs" {
            continue;
        }
        for (number, line) in code(&text) {
            if line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl") {
                faults.push(format!("{name}:{number}: unsafe outside engine/ring"));
            }
            if line.contains("allow(unsafe_code)") {
                faults.push(format!("{name}:{number}: unsafe allowed outside engine/ring"));
            }
        }
    }
    report(&faults);
}

#[test]
fn flow_sees_no_socket_and_no_clock() {
    let forbidden = [
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "UnixListener",
        "Instant::now",
        "SystemTime",
        "std::fs",
        "std::thread",
        "tokio",
        "rustix",
        "socket2",
        "fastrand::u",
        "fastrand::Rng::new()",
        "println!",
    ];
    let mut faults = Vec::new();
    for (name, text) in sources() {
        if !name.starts_with("engine/flow/src") {
            continue;
        }
        for (number, line) in code(&text) {
            for word in forbidden.iter().filter(|word| line.contains(**word)) {
                faults.push(format!("{name}:{number}: {word} in flow"));
            }
        }
    }
    report(&faults);
}

#[test]
fn files_fit_a_sitting() {
    let mut faults = Vec::new();
    for (name, text) in sources() {
        let lines = text.lines().count();
        let limit =
            LONGER_FILES.iter().find(|(file, ..)| *file == name).map_or(FILE_LINES, |(_, lines, _)| *lines);
        if lines > limit {
            faults.push(format!("{name}: {lines} lines, {limit} are allowed"));
        }
    }
    report(&faults);
}

#[test]
fn functions_fit_a_screen() {
    let mut faults = Vec::new();
    for (name, text) in sources() {
        let mut open: Vec<(usize, usize, String)> = Vec::new();
        for (number, line) in code(&text) {
            let indent = line.len() - line.trim_start().len();
            let trimmed = line.trim_start();
            let is_function = trimmed.starts_with("fn ")
                || [" fn ", "pub fn ", "async fn "]
                    .iter()
                    .any(|word| trimmed.find(word).is_some_and(|at| at < 24 && !trimmed[..at].contains('"')));
            if is_function && !trimmed.ends_with(';') {
                open.push((number, indent, trimmed.to_owned()));
            }
            // rustfmt closes a function at the indentation it was opened at.
            if trimmed == "}" && open.last().is_some_and(|(_, opened_at, _)| *opened_at == indent) {
                let (start, _, head) = open.pop().unwrap();
                let lines = number - start + 1;
                if lines > FUNCTION_LINES {
                    faults.push(format!("{name}:{start}: {lines} lines: {head}"));
                }
            }
        }
    }
    report(&faults);
}

#[test]
fn every_metric_is_documented() {
    // Every key of the configuration is, too: control's own tests see to it.
    let operating = fs::read_to_string(root().join("docs/operating.md")).unwrap();
    let missing = ringweir_control::METRICS
        .iter()
        .filter(|(metric, _)| !operating.contains(&format!("`ringweir_{metric}")))
        .map(|(metric, _)| format!("docs/operating.md does not tell of ringweir_{metric}"));
    report(&missing.collect::<Vec<_>>());
}
