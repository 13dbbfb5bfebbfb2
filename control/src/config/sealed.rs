//! What seals the streams of Shadowsocks: methods, keys, and the users of a listener.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use ringweir_flow::wire::shadowsocks::{Client, Key, Method, Secret, Server};
use zeroize::Zeroizing;

use super::reader::{Node, Table};
use super::{secrets, sockets};
use crate::clock;
use crate::model::{BindAddress, Endpoint, Plugin};

/// The keys that only what is sealed has.
pub(crate) const KEYS: &[&str] = &["method", "password", "password_file", "plugin", "plugin_opts"];

/// What a listener knows no more of behind a plugin, whose connections come from this machine.
const NOT_BEHIND_PLUGINS: &[&str] = &[
    "allow",
    "deny",
    "max_sessions_per_source",
    "max_new_per_second_per_source",
    "rate_up_per_source",
    "rate_down_per_source",
    "proxy_protocol",
    "interface",
    "mptcp",
    "fast_open",
    "defer_accept",
];

/// The plugin of an upstream; the connections are its own.
pub(crate) fn plugin_of_upstream(
    table: &Table<'_>,
    name: &str,
    endpoint: Option<&Endpoint>,
    folder: &Path,
) -> Option<Plugin> {
    let plugin = plugin(table, name, folder)?;
    if let (Some(Endpoint::Unix(_)), Some(node)) = (endpoint, table.get("plugin")) {
        node.report("has no meaning for a Unix socket", None);
    }
    for node in sockets::UPSTREAM_KEYS.iter().chain(&["via"]).filter_map(|key| table.get(key)) {
        node.report("has no meaning here: the plugin makes the connections", None);
    }
    Some(plugin)
}

/// The plugin of a listener, and where that listens in its stead.
pub(crate) fn plugin_of_listener(
    table: &Table<'_>,
    name: &str,
    binds: &[(BindAddress, Node<'_>)],
    folder: &Path,
) -> Option<(Plugin, SocketAddr)> {
    let plugin = plugin(table, name, folder)?;
    for node in NOT_BEHIND_PLUGINS.iter().filter_map(|key| table.get(key)) {
        node.report("has no meaning here: it is the plugin that clients connect to", None);
    }
    let public = match binds {
        [(BindAddress::Tcp(address), _)] => Some(*address),
        [(BindAddress::DualStack(port), _)] => Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port))),
        [(BindAddress::Unix(_), _)] | [] | [_, _, ..] => None,
    };
    let public = public.filter(|address| address.port() != 0);
    if let (None, Some(node)) = (public, table.get("plugin")) {
        node.report("wants one address to bind, with a port: a plugin has no more (SIP003)", None);
    }
    Some((plugin, public?))
}

fn plugin(table: &Table<'_>, name: &str, folder: &Path) -> Option<Plugin> {
    let Some(node) = table.get("plugin") else {
        if let Some(options) = table.get("plugin_opts") {
            options.report("has no plugin to be told to", None);
        }
        return None;
    };
    let is_fit = |text: &str| !text.is_empty() && !text.contains('\0');
    let program = node.string()?;
    if !is_fit(program) {
        node.report("is no program", Some("its name, or its path".to_owned()));
        return None;
    }
    // Like every path in a configuration; names are looked for in PATH.
    let program = match program.contains('/') {
        true => folder.join(program).display().to_string(),
        false => program.to_owned(),
    };
    let options = table.get("plugin_opts").and_then(|node| Some((node.string()?.to_owned(), node)));
    if let Some((_, node)) = options.as_ref().filter(|(text, _)| !is_fit(text)) {
        node.report("is nothing that a plugin could be told", None);
    }
    Some(Plugin { owner: name.into(), program, options: options.map(|(text, _)| text) })
}

/// The server that a listener of Shadowsocks speaks for.
pub(crate) fn server(table: &Table<'_>, folder: &Path) -> Option<Arc<Server>> {
    let (method, password, text) = method_and_password(table, folder)?;
    let key = read_key(&password, method, &text);
    let users = match table.get("users") {
        None => Some(Vec::new()),
        Some(node) => users(&node, method),
    };
    let (key, users) = (key?, users?);
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
    // All of them, so that all that is wrong is told.
    let users: Vec<_> = named.into_iter().map(user).collect();
    users.into_iter().collect()
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
