//! `ringweir share`: the link of an upstream or a listener, and a QR code of it.

use std::fmt::Write as _;
use std::fs;
use std::io::{IsTerminal as _, stdout};
use std::path::Path;

use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use toml::Table;
use zeroize::Zeroizing;

use super::{Server, links};
use crate::cli::ShareArguments;
use crate::config::{self, parse_bind, parse_endpoint};

/// Black on white, as readers want it, whatever the terminal's colours are.
const INK: &str = "\x1b[38;5;16;48;5;231m";
const INK_OVER: &str = "\x1b[0m";

/// Prints the link.
///
/// # Errors
/// Why there is none, for people.
pub(crate) fn run(arguments: &ShareArguments) -> Result<(), String> {
    let server = server(arguments)?;
    let link = links::format(&server);
    let mut text = Zeroizing::new(format!("{}\n", *link));
    if !arguments.no_qr {
        text.push_str(&code(&link, stdout().is_terminal())?);
    }
    crate::print(&text)
}

/// A QR code in half-blocks, two modules a character.
fn code(link: &str, is_terminal: bool) -> Result<String, String> {
    let code = QrCode::with_error_correction_level(link, EcLevel::L)
        .map_err(|_| "the link is too long for a QR code: --no-qr prints it alone".to_owned())?;
    let (dark, light) = (Dense1x2::Dark, Dense1x2::Light);
    let image = code.render::<Dense1x2>().dark_color(dark).light_color(light).build();
    if !is_terminal {
        return Ok(format!("{image}\n"));
    }
    let mut text = String::new();
    for line in image.lines() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{INK}{line}{INK_OVER}");
    }
    Ok(text)
}

fn server(arguments: &ShareArguments) -> Result<Server, String> {
    let (path, name) = (&arguments.config, arguments.target.as_str());
    // What is shared is what would be served.
    config::load(path).map_err(|errors| errors.to_string())?;
    let read = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let root: Table = read.parse().map_err(|error| format!("{}: {error}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let upstream = root.get("upstream").and_then(|all| all.get(name)?.as_table());
    let listeners = root.get("listener").and_then(|all| all.as_array());
    let mut listeners = listeners.into_iter().flatten().filter_map(|listener| listener.as_table());
    match (upstream, listeners.find(|listener| text(listener, "name") == Some(name))) {
        (Some(upstream), _) if text(upstream, "kind") == Some("shadowsocks") => {
            of_upstream(upstream, name, folder)
        }
        (_, Some(listener)) if text(listener, "protocol") == Some("shadowsocks") => {
            of_listener(listener, arguments, folder)
        }
        (Some(_), _) | (_, Some(_)) => Err(format!("{name} has no link: it does not speak Shadowsocks")),
        (None, None) => Err(format!("{}: there is no upstream or listener {name:?}", path.display())),
    }
}

fn of_upstream(upstream: &Table, name: &str, folder: &Path) -> Result<Server, String> {
    let address = text(upstream, "address").unwrap_or_default();
    let destination = parse_endpoint(address).ok().and_then(|endpoint| endpoint.destination());
    if destination.is_none() {
        return Err(format!("{name} has no link: {address} cannot be reached from elsewhere"));
    }
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    let server = sealed(upstream, &password(upstream, folder)?, host, port.parse().unwrap_or(0))?;
    let (plugin, options) = (text(upstream, "plugin"), text(upstream, "plugin_opts"));
    Ok(server.with_plugin(plugin.unwrap_or_default(), options.unwrap_or_default()).with_tag(name))
}

fn of_listener(listener: &Table, arguments: &ShareArguments, folder: &Path) -> Result<Server, String> {
    let name = &arguments.target;
    let host = arguments.host.as_deref();
    let host =
        host.ok_or_else(|| format!("{name} is a listener: at which name do clients reach it? --host"))?;
    let binds = match listener.get("bind") {
        Some(toml::Value::Array(binds)) => binds.iter().filter_map(|bind| bind.as_str()).collect(),
        Some(bind) => Vec::from_iter(bind.as_str()),
        None => Vec::new(),
    };
    let port = binds.into_iter().find_map(|bind| parse_bind(bind).ok()?.port()).filter(|port| *port != 0);
    let port = port.ok_or_else(|| format!("{name} has no link: it has no port that is known beforehand"))?;
    let mut password = password(listener, folder)?;
    let users = listener.get("users").and_then(|users| users.as_table());
    match (users, &arguments.user) {
        (None, None) => {}
        (None, Some(_)) => return Err(format!("{name} has no users: its key is everybody's")),
        (Some(users), user) => {
            let known = || users.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let user = user.as_ref().ok_or_else(|| format!("for which user? --user, one of {}", known()))?;
            let key = users.get(user).and_then(|key| key.as_str());
            let key = key.ok_or_else(|| format!("{name} has no user {user:?}, only {}", known()))?;
            password = Zeroizing::new(format!("{}:{key}", *password));
        }
    }
    let plugin = arguments.plugin.as_deref();
    if listener.contains_key("plugin") && plugin.is_none() {
        return Err(format!("{name} has a plugin: what do clients use? --plugin \"NAME;OPTIONS\""));
    }
    let (plugin, options) = plugin.map(|text| text.split_once(';').unwrap_or((text, ""))).unwrap_or_default();
    Ok(sealed(listener, &password, host, port)?.with_plugin(plugin, options).with_tag(name))
}

fn sealed(table: &Table, password: &str, host: &str, port: u16) -> Result<Server, String> {
    let method = text(table, "method").unwrap_or_default();
    Server::new(method, password, host, port).map_err(|fault| fault.to_string())
}

/// As it is written, or the first line of the file.
fn password(table: &Table, folder: &Path) -> Result<Zeroizing<String>, String> {
    if let Some(password) = text(table, "password") {
        return Ok(Zeroizing::new(password.to_owned()));
    }
    let path = folder.join(text(table, "password_file").unwrap_or_default());
    let file = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Zeroizing::new(Zeroizing::new(file).lines().next().unwrap_or_default().to_owned()))
}

fn text<'a>(table: &'a Table, key: &str) -> Option<&'a str> {
    table.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "NZk1cMHlOgLxBiVzVHQWLYs9PxTVUGPbd8F6q/oVDKw=";

    fn arguments(target: &str, config: &Path) -> ShareArguments {
        let (target, config) = (target.to_owned(), config.to_owned());
        ShareArguments { target, config, host: None, user: None, plugin: None, no_qr: true }
    }

    #[test]
    fn what_is_shared_can_be_imported() {
        let folder = std::env::temp_dir().join(format!("ringweir-share-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("r.toml");
        fs::write(folder.join("key"), format!("{KEY}\n")).unwrap();
        let config = format!(
            "[[listener]]\nname = \"in\"\nbind = \"0.0.0.0:8388\"\nprotocol = \"shadowsocks\"\n\
             method = \"2022-blake3-aes-256-gcm\"\npassword_file = \"key\"\nusers = {{ ann = \"{KEY}\" }}\n\
             target = \"out\"\n[upstream.out]\nkind = \"shadowsocks\"\naddress = \"[::1]:1\"\n\
             method = \"aes-128-gcm\"\npassword = \"a b\"\n[upstream.plain]\naddress = \"[::1]:1\"\n"
        );
        fs::write(&path, config).unwrap();
        let shared = |arguments: &ShareArguments| server(arguments).map(|server| links::format(&server));
        let out = shared(&arguments("out", &path)).unwrap();
        assert_eq!(*out, "ss://YWVzLTEyOC1nY206YSBi@[::1]:1#out");
        let with_host = ShareArguments { host: Some("v.example".to_owned()), ..arguments("in", &path) };
        let error = shared(&with_host).unwrap_err();
        assert!(error.contains("ann"), "{error}");
        let whole = ShareArguments { user: Some("ann".to_owned()), ..with_host };
        let server = links::parse(&shared(&whole).unwrap()).unwrap();
        assert_eq!(*server.password, format!("{KEY}:{KEY}"));
        for (name, why) in [("in", "--host"), ("plain", "does not speak"), ("nobody", "there is no")] {
            let error = shared(&arguments(name, &path)).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_code_has_two_modules_a_character_and_a_quiet_zone() {
        let code = code("ss://x", false).unwrap();
        let lines: Vec<&str> = code.lines().collect();
        // Version 1 has 21 modules, and 4 light ones around.
        assert_eq!((lines.len(), lines[0].chars().count()), (15, 29));
        assert!(super::code(&"x".repeat(3000), false).unwrap_err().contains("--no-qr"));
    }
}
