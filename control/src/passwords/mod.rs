//! Passwords as hashes: what the configuration may say (PHC strings of argon2id), how one is made, and how a client's
//! password is compared with it.
//!
//! argon2id because guessing costs memory there, which rigs for guessing have little of (RFC 9106; OWASP's Password
//! Storage Cheat Sheet names it first). What a hash may cost is bounded: a login takes that much of this machine.

pub(crate) mod pool;

use std::io::{self, IsTerminal};
use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{Error, PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use ringweir_flow::users::MAX_CREDENTIAL_BYTES;
use ringweir_flow::verify::Verdict;
use zeroize::Zeroizing;

use crate::cli::Cost;
use crate::model::Config;

/// The most memory that one verification may take, in KiB: some are under way at once.
const MAX_MEMORY_KIB: u32 = 256 * 1024;

/// The most memory that one verification may go through, in KiB times passes: about a second of a core.
const MAX_WORK_KIB: u64 = 1024 * 1024;

/// The most lanes; they are computed one after the other here.
const MAX_LANES: u32 = 16;

/// Salts and results shorter than RFC 9106, section 3.1 recommends are no such hash.
const MIN_SALT_BYTES: usize = 8;
const MIN_RESULT_BYTES: usize = 16;

/// Whether a text that stands for a password is to be taken for a hash: `$`, a word, and `$` again.
pub(crate) fn is_hash(text: &str) -> bool {
    let word = text.strip_prefix('$').and_then(|rest| rest.split_once('$')).map(|(word, _)| word);
    word.is_some_and(|word| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

/// Whether a hash can be verified here, and is not too dear.
///
/// # Errors
/// What is wrong with it, for people; nothing of the hash itself.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let word = text.split('$').nth(1).unwrap_or_default();
    if word != Algorithm::Argon2id.as_str() {
        return Err(format!(
            "is a hash by {word:?}: only argon2id is known here (ringweir hash-password makes one)"
        ));
    }
    let hash = PasswordHash::new(text).map_err(|error| format!("is no sound PHC string: {error}"))?;
    if hash.version.is_some_and(|version| Version::try_from(version).is_err()) {
        return Err("is of a version of argon2 that is not known: v=19 is usual".to_owned());
    }
    let params = Params::try_from(&hash)
        .map_err(|error| format!("has parameters that argon2 does not allow: {error}"))?;
    check_cost(&params)?;
    let salt_bytes = hash.salt.as_ref().map_or(0, |salt| salt.len());
    let result_bytes = hash.hash.as_ref().map_or(0, |result| result.len());
    if salt_bytes < MIN_SALT_BYTES || result_bytes < MIN_RESULT_BYTES {
        return Err(format!(
            "has a salt of {salt_bytes} and a result of {result_bytes} bytes: at least {MIN_SALT_BYTES} and \
             {MIN_RESULT_BYTES} are wanted"
        ));
    }
    Ok(())
}

fn check_cost(params: &Params) -> Result<(), String> {
    let (memory, passes, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
    if memory > MAX_MEMORY_KIB {
        let mib = memory / 1024;
        return Err(format!(
            "asks for {mib} MiB of memory at each login; {} are the most",
            MAX_MEMORY_KIB / 1024
        ));
    }
    if u64::from(memory) * u64::from(passes) > MAX_WORK_KIB {
        return Err(format!(
            "goes {passes} times through {} MiB at each login; memory times passes may be {} MiB at most",
            memory / 1024,
            MAX_WORK_KIB / 1024
        ));
    }
    if lanes > MAX_LANES {
        return Err(format!("has {lanes} lanes; {MAX_LANES} are the most"));
    }
    Ok(())
}

/// Users that a new configuration leaves as they are keep what is known of their passwords.
pub(crate) fn keep_known(new: &mut Config, old: &Config) {
    for listener in &mut new.listeners {
        let before = old.listeners.iter().find(|before| before.name == listener.name);
        let Some(known) = before.and_then(|before| before.users.as_ref()) else { continue };
        if let Some(users) = listener.users.as_mut().filter(|users| users.is_same(known)) {
            *users = Arc::clone(known);
        }
    }
}

/// Compares a password with a hash that was checked. Takes its time.
fn verify(password: &[u8], hash: &str) -> Verdict {
    let Ok(hash) = PasswordHash::new(hash) else { return Verdict::Wrong };
    match Argon2::default().verify_password(password, &hash) {
        Ok(()) => Verdict::Right,
        Err(Error::PasswordInvalid) => Verdict::Wrong,
        Err(error) => {
            tracing::warn!(%error, "a password cannot be verified");
            Verdict::Overloaded
        }
    }
}

/// Reads a password and makes a hash of it.
///
/// # Errors
/// For people.
pub(crate) fn hash_what_is_entered(cost: Cost) -> Result<String, String> {
    let memory = cost.memory.saturating_mul(1024);
    let params = Params::new(memory, cost.passes, cost.lanes, None)
        .map_err(|error| format!("argon2 does not allow these parameters: {error}"))?;
    check_cost(&params).map_err(|error| format!("such a hash {error}"))?;
    hash(&enter()?, params)
}

fn hash(password: &str, params: Params) -> Result<String, String> {
    if password.is_empty() || password.len() > MAX_CREDENTIAL_BYTES {
        let bytes = password.len();
        return Err(format!("a password has 1 to {MAX_CREDENTIAL_BYTES} bytes, not {bytes}"));
    }
    let maker = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash: PasswordHash = maker
        .hash_password(password.as_bytes())
        .map_err(|error| format!("no hash could be made: {error}"))?;
    Ok(hash.to_string())
}

/// From the terminal, twice and without showing it; or else the first line of stdin.
fn enter() -> Result<Zeroizing<String>, String> {
    if io::stdin().is_terminal() {
        let ask = |prompt: &str| {
            let entered = rpassword::prompt_password(prompt);
            entered.map(Zeroizing::new).map_err(|error| format!("the terminal cannot be read: {error}"))
        };
        let password = ask("Password: ")?;
        return match ask("Again: ")? == password {
            true => Ok(password),
            false => Err("the two are not the same".to_owned()),
        };
    }
    let mut line = Zeroizing::new(String::new());
    io::stdin().read_line(&mut line).map_err(|error| format!("stdin cannot be read: {error}"))?;
    Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As cheap as argon2 can be.
    pub(crate) fn cheap(password: &str) -> String {
        hash(password, Params::new(Params::MIN_M_COST, 1, 1, None).unwrap()).unwrap()
    }

    #[test]
    fn a_hash_knows_its_password_alone() {
        let made = cheap("secret");
        assert!(is_hash(&made));
        assert_eq!(check(&made), Ok(()));
        assert_eq!([verify(b"secret", &made), verify(b"Secret", &made)], [Verdict::Right, Verdict::Wrong]);
        assert_ne!(cheap("secret"), made, "the salt is drawn");
    }

    /// What the reference implementation's `argon2` command makes of "password" and "somesalt" (its README).
    #[test]
    fn a_hash_of_the_reference_implementation_is_verified() {
        let made = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert_eq!(check(made), Ok(()));
        assert_eq!([verify(b"password", made), verify(b"Password", made)], [Verdict::Right, Verdict::Wrong]);
    }

    #[test]
    fn defaults_are_the_minimum_of_owasp() {
        let made = hash("secret", Params::default()).unwrap();
        assert!(made.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{made}");
        assert_eq!(check(&made), Ok(()));
    }

    #[test]
    fn what_is_no_hash_is_a_password() {
        for text in ["", "$", "$$", "secret", "$secret", "se$cr$et", "$a b$", "$a.b$c"] {
            assert!(!is_hash(text), "{text}");
        }
        assert!(is_hash("$2b$10$abc") && is_hash("$argon2id$"));
    }

    #[test]
    fn hashes_that_cannot_be_verified_or_cost_too_much_are_refused() {
        let rest = "$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let cases = [
            (format!("$2b$10{rest}"), "\"2b\""),
            (format!("$argon2i$v=19$m=4096,t=3,p=1{rest}"), "\"argon2i\""),
            (format!("$argon2id$v=99$m=4096,t=3,p=1{rest}"), "version"),
            (format!("$argon2id$v=19$m=4194304,t=1,p=1{rest}"), "4096 MiB"),
            (format!("$argon2id$v=19$m=262144,t=9,p=1{rest}"), "9 times"),
            (format!("$argon2id$v=19$m=65536,t=1,p=99{rest}"), "99 lanes"),
            (format!("$argon2id$v=19$m=1,t=1,p=1{rest}"), "parameters"),
            (format!("$argon2id$v=19$m=4096,t=0,p=1{rest}"), "parameters"),
            ("$argon2id$v=19$m=4096,t=3,p=1$c29tZXNhbHQ".to_owned(), "result of 0"),
            ("$argon2id$nonsense".to_owned(), "PHC"),
            ("$argon2id$".to_owned(), ""),
        ];
        for (text, word) in cases {
            let message = check(&text).unwrap_err();
            assert!(message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn passwords_that_no_client_could_send_are_not_hashed() {
        for bad in ["", &"x".repeat(MAX_CREDENTIAL_BYTES + 1)] {
            assert!(hash(bad, Params::default()).is_err());
        }
    }
}
