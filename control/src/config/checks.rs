//! The declarations of checks.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringweir_flow::wire::Destination;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};

use super::reader::{Node, Table};
use super::schema;
use super::targets::is_name;
use crate::model::{Check, CheckKind, ExecCheck, HttpCheck, TalkCheck, Trust};

/// The longest schedule; nobody reads a longer one.
const MAX_SCHEDULE: usize = 32;

/// The schedule unless configured otherwise.
const DEFAULT_SCHEDULE: [u64; 6] = [10, 15, 30, 60, 180, 300];

/// How long one probe may take unless configured otherwise.
const DEFAULT_PROBE: Duration = Duration::from_secs(3);

/// How many results in a row may be asked for.
const MAX_IN_A_ROW: u32 = 100;

/// The checks by name.
pub(crate) type Checks<'a> = HashMap<&'a str, Arc<Check>>;

pub(crate) fn checks<'a>(root: &Table<'a>, folder: &Path) -> Checks<'a> {
    let named = root.get("check").and_then(|node| node.named()).unwrap_or_default();
    named.into_iter().filter_map(|(name, node)| Some((name, Arc::new(check(name, &node, folder)?)))).collect()
}

fn check(name: &str, node: &Node<'_>, folder: &Path) -> Option<Check> {
    is_name(name, node);
    let table = node.table(schema::CHECK)?;
    let schedule = match table.get("schedule") {
        Some(node) => schedule(&node),
        None => DEFAULT_SCHEDULE.map(Duration::from_secs).to_vec(),
    };
    let in_a_row =
        |key, otherwise| table.get(key).and_then(|node| node.integer(1..=MAX_IN_A_ROW)).unwrap_or(otherwise);
    Some(Check {
        name: name.into(),
        schedule,
        timeout: table.get("timeout").and_then(|node| node.duration()).unwrap_or(DEFAULT_PROBE),
        fall: in_a_row("fall", 2),
        rise: in_a_row("rise", 1),
        double_check: table.get("double_check").and_then(|node| node.boolean()).unwrap_or(false),
        kind: kind(&table, folder).unwrap_or(CheckKind::Tcp),
    })
}

fn schedule(node: &Node<'_>) -> Vec<Duration> {
    let waits = node.one_or_more();
    if waits.is_empty() || waits.len() > MAX_SCHEDULE {
        node.report(format!("has 1 to {MAX_SCHEDULE} times, not {}", waits.len()), None);
    }
    waits.iter().filter_map(|wait| wait.duration()).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Http,
    Talk,
    Exec,
}

/// The keys that belong to one kind each.
const OF_KIND: [(&str, &str, Kind); 7] = [
    ("url", "http", Kind::Http),
    ("method", "http", Kind::Http),
    ("status", "http", Kind::Http),
    ("ca_file", "http", Kind::Http),
    ("send", "send-expect", Kind::Talk),
    ("expect", "send-expect", Kind::Talk),
    ("command", "exec", Kind::Exec),
];

/// What a probe does; `None` when it was reported that nobody knows.
fn kind(table: &Table<'_>, folder: &Path) -> Option<CheckKind> {
    let kinds = [("tcp", Kind::Tcp), ("http", Kind::Http), ("send-expect", Kind::Talk), ("exec", Kind::Exec)];
    let kind = match table.get("kind") {
        Some(node) => node.choice(&kinds)?,
        None => Kind::Tcp,
    };
    for (key, word, of) in OF_KIND {
        if of != kind
            && let Some(node) = table.get(key)
        {
            node.report(format!("has a meaning for kind = {word:?} alone"), None);
        }
    }
    match kind {
        Kind::Tcp => Some(CheckKind::Tcp),
        Kind::Http => http(table, folder).map(CheckKind::Http),
        Kind::Talk => talk(table).map(CheckKind::Talk),
        Kind::Exec => exec(table).map(CheckKind::Exec),
    }
}

fn http(table: &Table<'_>, folder: &Path) -> Option<HttpCheck> {
    let method = match table.get("method") {
        Some(node) => node.parsed(method)?,
        None => "HEAD".to_owned(),
    };
    let expect = match table.get("status") {
        Some(node) => node.one_or_more().iter().filter_map(|node| node.parsed(statuses)).collect(),
        // A redirect is an answer.
        None => vec![200..=399],
    };
    let url = table.required("url")?.parsed(Url::parse)?;
    let ca_file = table.get("ca_file");
    if let (Some(node), false) = (&ca_file, url.is_tls) {
        node.report("has a meaning for https:// alone", None);
    }
    let roots = ca_file.and_then(|node| certificates(&node, folder)).unwrap_or_default();
    let tls = match &url.destination {
        _ if !url.is_tls => None,
        Destination::Address(address) => Some(ServerName::from(address.ip())),
        Destination::Name(name, _) => table
            .required("url")?
            .parsed(|_| ServerName::try_from(name.as_str().to_owned()).map_err(|_| "has no host for TLS")),
    };
    let tls = tls.map(|server_name| Trust { server_name, roots: roots.into() });
    Some(HttpCheck {
        destination: url.destination,
        authority: url.authority,
        path: url.path,
        method,
        expect,
        tls,
    })
}

/// A GET of a URL, by the certificates that Mozilla trusts.
///
/// # Errors
/// Why the text is no URL.
pub(crate) fn get(text: &str) -> Result<HttpCheck, &'static str> {
    let url = Url::parse(text)?;
    let server_name = match &url.destination {
        _ if !url.is_tls => None,
        Destination::Address(address) => Some(ServerName::from(address.ip())),
        Destination::Name(name, _) => {
            Some(ServerName::try_from(name.as_str().to_owned()).map_err(|_| "has no host for TLS")?)
        }
    };
    Ok(HttpCheck {
        destination: url.destination,
        authority: url.authority,
        path: url.path,
        method: "GET".to_owned(),
        expect: vec![200..=200],
        tls: server_name.map(|server_name| Trust { server_name, roots: [].into() }),
    })
}

/// As much of a URL as a check needs.
struct Url {
    is_tls: bool,
    destination: Destination,
    authority: String,
    path: String,
}

impl Url {
    fn parse(text: &str) -> Result<Url, &'static str> {
        const HINT: &str = "is no URL: write it as http://host/path or https://host:port/path";
        let uri: hyper::Uri = text.parse().map_err(|_| HINT)?;
        let (is_tls, default_port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            Some(_) | None => return Err(HINT),
        };
        let authority = uri.authority().ok_or(HINT)?;
        if authority.as_str().contains('@') {
            return Err("has a user, which a check cannot be");
        }
        let port = authority.port_u16().unwrap_or(default_port);
        let destination = Destination::from_host(authority.host().as_bytes(), port).map_err(|_| HINT)?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Url { is_tls, destination, authority: authority.to_string(), path: path.to_owned() })
    }
}

fn method(text: &str) -> Result<String, &'static str> {
    let is_sound = !text.is_empty() && text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_uppercase());
    if is_sound && text != "CONNECT" {
        Ok(text.to_owned())
    } else {
        Err("is no method to ask with, such as GET")
    }
}

/// `"204"` or `"2xx"`.
fn statuses(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    const HINT: &str = "is no status: write it as \"204\" or \"2xx\"";
    if let Some(class) = text.strip_suffix("xx") {
        let class: u16 = class.parse().map_err(|_| HINT)?;
        return if (1..=5).contains(&class) { Ok(class * 100..=class * 100 + 99) } else { Err(HINT) };
    }
    let status: u16 = text.parse().map_err(|_| HINT)?;
    if (100..=599).contains(&status) { Ok(status..=status) } else { Err(HINT) }
}

fn certificates(node: &Node<'_>, folder: &Path) -> Option<Vec<CertificateDer<'static>>> {
    let path = folder.join(node.string()?);
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if !certificates.is_empty() => Some(certificates),
        Ok(_) => {
            node.report(format!("{} has no certificate in it", path.display()), None);
            None
        }
        Err(error) => {
            node.report(format!("{} cannot be read: {error}", path.display()), None);
            None
        }
    }
}

fn talk(table: &Table<'_>) -> Option<TalkCheck> {
    let bytes = |key| table.get(key).and_then(|node| node.string()).unwrap_or_default().as_bytes().to_vec();
    Some(TalkCheck { send: bytes("send"), expect: bytes("expect") })
}

fn exec(table: &Table<'_>) -> Option<ExecCheck> {
    let node = table.required("command")?;
    let words: Vec<String> =
        node.one_or_more().iter().filter_map(|word| word.string().map(str::to_owned)).collect();
    let Some((program, arguments)) = words.split_first() else {
        node.report("is empty: a program and its arguments", None);
        return None;
    };
    Some(ExecCheck { program: program.clone(), arguments: arguments.to_vec() })
}
