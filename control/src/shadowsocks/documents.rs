//! Documents: SIP008, and the configuration files of shadowsocks-libev and shadowsocks-rust.

use serde_json::{Map, Value};

use super::{Fault, Server};

/// The most servers of one document: each is an upstream.
const MAX_SERVERS: usize = 4096;

/// Why a document says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DocumentError {
    /// Not JSON. What it has instead is not shown: it may be a password.
    #[error("is no JSON: line {line}, column {column}")]
    Json { line: usize, column: usize },
    /// Neither a document of SIP008 nor a configuration file.
    #[error("has neither \"servers\" nor \"server\"")]
    Shape,
    /// More than are read.
    #[error("has more than {MAX_SERVERS} servers")]
    TooMany,
}

/// One server of a document, or what is wrong with it, and where it stands.
pub(super) type Entry = (String, Result<Server, Fault>);

/// Reads a document. Servers that it disables are left out.
///
/// # Errors
/// [`DocumentError`] where it is none; what is wrong with one server stands in its place.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, DocumentError> {
    let document: Value = serde_json::from_str(text)
        .map_err(|error| DocumentError::Json { line: error.line(), column: error.column() })?;
    let servers: Vec<&Value> = match (&document["servers"], &document["server"]) {
        (Value::Array(servers), _) => servers.iter().collect(),
        (Value::Null, Value::String(_) | Value::Array(_)) => vec![&document],
        (
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_),
        ) => return Err(DocumentError::Shape),
    };
    let mut entries = Vec::new();
    for (number, server) in (1..).zip(servers) {
        if server["disabled"] == Value::Bool(true) {
            continue;
        }
        let place = format!("server {number}");
        match server.as_object() {
            Some(fields) => entries.extend(hosts(fields).into_iter().map(|host| {
                let server = host.and_then(|host| one(fields, host));
                (place.clone(), server)
            })),
            None => entries.push((place, Err(Fault::Field("server")))),
        }
        if entries.len() > MAX_SERVERS {
            return Err(DocumentError::TooMany);
        }
    }
    Ok(entries)
}

/// shadowsocks-libev has a list of them, shadowsocks-rust calls it `address`.
fn hosts(fields: &Map<String, Value>) -> Vec<Result<&str, Fault>> {
    let host = |value: &'_ Value| value.as_str().is_some();
    match fields.get("server").or_else(|| fields.get("address")) {
        Some(Value::Array(hosts)) if !hosts.is_empty() && hosts.iter().all(host) => {
            hosts.iter().map(|host| host.as_str().ok_or(Fault::Field("server"))).collect()
        }
        other => vec![other.and_then(Value::as_str).ok_or(Fault::Field("server"))],
    }
}

fn one(fields: &Map<String, Value>, host: &str) -> Result<Server, Fault> {
    let text = |key: &'static str| match fields.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(value) => value.as_str().ok_or(Fault::Field(key)),
    };
    let required = |key: &'static str| {
        text(key).and_then(|text| match text {
            "" => Err(Fault::Field(key)),
            text => Ok(text),
        })
    };
    let port = fields.get("server_port").or_else(|| fields.get("port"));
    let port = match port {
        Some(Value::Number(number)) => number.as_u64().and_then(|port| u16::try_from(port).ok()),
        Some(Value::String(text)) => text.parse().ok(),
        Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => {
            return Err(Fault::Field("server_port"));
        }
    };
    let server = Server::new(required("method")?, required("password")?, host, port.ok_or(Fault::Port)?)?;
    let server = server.with_plugin(text("plugin")?, text("plugin_opts")?);
    Ok(server.with_tag(match text("remarks")? {
        "" => text("id")?,
        remarks => remarks,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        let entry = |(place, server): Entry| match server {
            Ok(server) => format!("{server:?} {}", *server.password),
            Err(fault) => format!("{place}: {fault}"),
        };
        parse(text).unwrap().into_iter().map(entry).collect()
    }

    #[test]
    fn documents_of_sip008_are_read() {
        let text = r#"{"version": 1, "servers": [
            {"id": "27b8a625", "remarks": "Name of the server", "server": "example.com", "server_port": 8388,
             "password": "example", "method": "chacha20-ietf-poly1305", "plugin": "xxx", "plugin_opts": "a;b=c"},
            {"id": "7842c068", "server": "::1", "server_port": 8388, "password": "example", "method": "rc4"},
            {"server": "x", "server_port": 1, "password": 12345, "method": "aes-128-gcm"},
            {"server": "x", "server_port": 70000, "password": "p", "method": "aes-128-gcm"}],
            "bytes_used": 274877906944}"#;
        let entries = read(text);
        assert_eq!(
            entries[0],
            "Server(chacha20-ietf-poly1305 at example.com:8388, \
             Some(Plugin { name: \"xxx\", options: Some(\"a;b=c\") }), Some(\"Name of the server\")) example"
        );
        assert!(entries[1].starts_with("server 2: the method \"rc4\" is not spoken here"), "{}", entries[1]);
        assert_eq!(entries[2], "server 3: \"password\" is missing, or is of the wrong type");
        assert_eq!(entries[3], "server 4: the port is no number from 1 to 65535");
    }

    #[test]
    fn configuration_files_of_others_are_read() {
        let libev = r#"{"server": ["::1", "127.0.0.1"], "mode": "tcp_and_udp", "server_port": "8388",
            "local_port": 1080, "password": "x", "timeout": 86400, "method": "aes-256-gcm"}"#;
        assert_eq!(
            read(libev),
            [
                "Server(aes-256-gcm at [::1]:8388, None, None) x",
                "Server(aes-256-gcm at 127.0.0.1:8388, None, None) x"
            ]
        );
        let rust = r#"{"servers": [
            {"address": "a.example", "port": 1, "method": "aes-128-gcm", "password": "x"},
            {"disabled": true, "address": "b.example", "port": 1, "method": "aes-128-gcm", "password": "x"}]}"#;
        assert_eq!(read(rust), ["Server(aes-128-gcm at a.example:1, None, None) x"]);
    }

    #[test]
    fn what_is_no_document_is_told_without_what_it_says() {
        let errors = ["{\"password\": \"SeCrEt", "[]", "{}", "3", "{\"servers\": 1}"]
            .map(|text| parse(text).unwrap_err().to_string());
        assert!(errors[0].starts_with("is no JSON: line 1"), "{}", errors[0]);
        assert!(errors.iter().all(|error| !error.contains("SeCrEt")));
        assert!(errors[1..].iter().all(|error| error.contains("neither")), "{errors:?}");
    }
}
