//! What seals the streams of Shadowsocks: methods, keys, and the users of a listener.

use std::path::Path;
use std::sync::Arc;

use ringweir_flow::wire::shadowsocks::{Client, Key, Method, Secret, Server};
use zeroize::Zeroizing;

use super::reader::{Node, Table};
use super::secrets;
use crate::clock;

/// The keys that only what is sealed has.
pub(crate) const KEYS: &[&str] = &["method", "password", "password_file"];

/// The server that a listener of Shadowsocks speaks for.
pub(crate) fn server(table: &Table<'_>, folder: &Path) -> Option<Arc<Server>> {
    let (method, password, text) = method_and_password(table, folder)?;
    let key = read_key(&password, method, &text)?;
    let users = match table.get("users") {
        None => Vec::new(),
        Some(node) => users(&node, method)?,
    };
    let node = table.get("users").unwrap_or(password);
    let server = Server::new(method, key, users, secret(&node)?, clock::wall());
    server.map_err(|message| node.report(message, None)).ok().map(Arc::new)
}

/// The server that an upstream of Shadowsocks is, as its client.
pub(crate) fn client(table: &Table<'_>, folder: &Path) -> Option<Arc<Client>> {
    let (method, password, text) = method_and_password(table, folder)?;
    let client = Client::new(method, &text, secret(&password)?, clock::wall());
    client.map_err(|message| password.report(message, None)).ok().map(Arc::new)
}

fn method_and_password<'a>(
    table: &Table<'a>,
    folder: &Path,
) -> Option<(Method, Node<'a>, Zeroizing<String>)> {
    let methods = Method::ALL.map(|method| (method.as_str(), method));
    let method = table.required("method").and_then(|node| node.choice(&methods));
    match (table.get("password"), table.get("password_file")) {
        (Some(_), Some(file)) => {
            file.report("is given beside a password: one of them is enough", None);
            None
        }
        (Some(node), None) => {
            let text = Zeroizing::new(node.string()?.to_owned());
            Some((method?, node, text))
        }
        (None, Some(node)) => {
            let text = secrets::password_file(&node, folder)?;
            Some((method?, node, text))
        }
        (None, None) => {
            table.report("\"password\" is missing", Some("add password or password_file".to_owned()));
            None
        }
    }
}

/// `users = { name = "key" }`.
fn users(node: &Node<'_>, method: Method) -> Option<Vec<(Arc<str>, Key)>> {
    let named = node.named()?;
    if named.is_empty() {
        node.report(
            "is empty: nobody could connect",
            Some("leave it out for one key for everybody".to_owned()),
        );
    }
    let user =
        |(name, node): (&str, Node<'_>)| Some((Arc::from(name), read_key(&node, method, node.string()?)?));
    named.into_iter().map(user).collect()
}

fn read_key(node: &Node<'_>, method: Method, text: &str) -> Option<Key> {
    Key::new(method, text).map_err(|error| node.report(error.to_string(), None)).ok()
}

fn secret(node: &Node<'_>) -> Option<Secret> {
    let mut bytes = [0; 32];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Some(Secret::new(bytes)),
        Err(error) => {
            node.report(format!("needs random numbers, and the system gives none: {error}"), None);
            None
        }
    }
}
