//! Users and tokens: in the configuration itself or in files beside it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ringweir_flow::users::{MAX_CREDENTIAL_BYTES, Users};
use zeroize::Zeroizing;

use super::diagnostic::Place;
use super::reader::Node;
use crate::model::Token;
use crate::passwords;

/// A shorter token could be guessed over the network.
const MIN_TOKEN_BYTES: usize = 8;

/// A token as it is written, or why it is none.
pub(crate) fn token(text: &str) -> Result<Token, String> {
    if text.len() < MIN_TOKEN_BYTES {
        return Err(format!("a token shorter than {MIN_TOKEN_BYTES} bytes could be guessed"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a token has printable ASCII characters only, without spaces".to_owned());
    }
    Ok(Token::new(text))
}

pub(crate) fn token_file(node: &Node<'_>, folder: &Path) -> Option<Token> {
    let (text, _) = read(node, folder)?;
    token(text.trim()).map_err(|message| node.report(message, None)).ok()
}

/// `users = { name = "password" }`.
pub(crate) fn users(node: &Node<'_>) -> Option<Arc<Users>> {
    let mut users = Users::default();
    for (name, password) in node.named()? {
        let Some(secret) = password.string() else { continue };
        if let Err(message) = add(&mut users, name, secret) {
            password.report(message, None);
        }
    }
    if node.named()?.is_empty() {
        node.report("is empty: nobody could connect", Some("leave it out to ask for no user".to_owned()));
    }
    Some(Arc::new(users))
}

/// A file with a `name:password` on each line; empty lines and lines that start with `#` do not count.
pub(crate) fn users_file(node: &Node<'_>, folder: &Path) -> Option<Arc<Users>> {
    let (text, file) = read(node, folder)?;
    let mut users = Users::default();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end_matches('\r');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let added = match line.split_once(':') {
            Some((name, secret)) => add(&mut users, name, secret),
            None => Err("wants name:password".to_owned()),
        };
        if let Err(message) = added {
            let place = Place { file: file.clone(), line: index + 1, column: 1 };
            node.sink().report_at(place, node.path(), message, None);
        }
    }
    if users.is_empty() {
        node.report(format!("{file} names no user: nobody could connect"), None);
    }
    Some(Arc::new(users))
}

/// A user with a password, or with the hash of one.
fn add(users: &mut Users, name: &str, secret: &str) -> Result<(), String> {
    if passwords::is_hash(secret) {
        // Of the password nothing is known; the name has its own bounds.
        credentials(name, "-")?;
        passwords::check(secret)?;
        users.insert_hashed(name.as_bytes(), secret);
    } else {
        credentials(name, secret)?;
        users.insert(name.as_bytes(), secret.as_bytes());
    }
    Ok(())
}

/// What the wire can carry (RFC 1929, section 2), and what HTTP can tell apart (RFC 7617, section 2).
fn credentials(name: &str, password: &str) -> Result<(), String> {
    for (what, text) in [("user name", name), ("password", password)] {
        if text.is_empty() || text.len() > MAX_CREDENTIAL_BYTES {
            return Err(format!("a {what} has 1 to {MAX_CREDENTIAL_BYTES} bytes, not {}", text.len()));
        }
    }
    if name.contains(':') {
        return Err("a user name has no colon: HTTP could not tell it from the password".to_owned());
    }
    Ok(())
}

/// The first line of a file.
pub(crate) fn password_file(node: &Node<'_>, folder: &Path) -> Option<Zeroizing<String>> {
    let (text, file) = read(node, folder)?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        node.report(format!("{file} has no password in its first line"), None);
        return None;
    }
    Some(Zeroizing::new(line.to_owned()))
}

fn read(node: &Node<'_>, folder: &Path) -> Option<(Zeroizing<String>, String)> {
    let path = folder.join(node.string()?);
    let file = path.display().to_string();
    match fs::read_to_string(&path) {
        Ok(text) => Some((Zeroizing::new(text), file)),
        Err(error) => {
            node.report(format!("{file} cannot be read: {error}"), None);
            None
        }
    }
}
