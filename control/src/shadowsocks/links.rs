//! Links: `ss://METHOD:PASSWORD@HOST:PORT/?plugin=NAME%3BOPTIONS#TAG` (SIP002), with what stands before the host as
//! base64 or percent-encoded, and the form of before, all in base64.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ringweir_flow::wire::shadowsocks::Edition;
use zeroize::Zeroizing;

use super::{Fault, Server};
use crate::escaped;

/// The longest link: those that fit into a QR code have less than 3,000 bytes.
pub(super) const MAX_LINK_BYTES: usize = 8192;

const SCHEME: &str = "ss://";

/// With its padding, without it, or with half of it: all are seen.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Whether a text wants to be a link.
pub(super) fn is_link(text: &str) -> bool {
    text.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
}

/// Reads a link. What its query says beside the plugin is passed over.
///
/// # Errors
/// [`Fault`] says which part is wrong.
pub(super) fn parse(link: &str) -> Result<Server, Fault> {
    if link.len() > MAX_LINK_BYTES {
        return Err(Fault::Length);
    }
    if !is_link(link) {
        return Err(Fault::Scheme);
    }
    let rest = &link[SCHEME.len()..];
    let (rest, tag) = rest.split_once('#').unwrap_or((rest, ""));
    let tag = percent_decoded(tag).ok_or(Fault::Tag)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let server = match rest.rsplit_once('@') {
        Some((user_info, host_and_port)) => {
            let user_info = decoded_user_info(user_info)?;
            server(&user_info, host_and_port.strip_suffix('/').unwrap_or(host_and_port))?
        }
        None => legacy(rest)?,
    };
    let (name, options) = plugin(query)?;
    Ok(server.with_plugin(&name, &options).with_tag(&tag))
}

/// The link of a server, as SIP002 wants it: methods of SIP022 percent-encoded, the others in base64.
pub(super) fn format(server: &Server) -> Zeroizing<String> {
    let method = server.method.as_str();
    let user_info = match server.method.edition() {
        Edition::Aead => {
            let plain = Zeroizing::new(format!("{method}:{}", *server.password));
            BASE64_URL_SAFE_NO_PAD.encode(plain.as_bytes())
        }
        Edition::Aead2022 => format!("{method}:{}", escaped(&server.password)),
    };
    let mut link = Zeroizing::new(format!("{SCHEME}{user_info}@{}", server.address));
    if let Some(plugin) = &server.plugin {
        let options = plugin.options.as_ref().map(|options| format!(";{options}")).unwrap_or_default();
        link.push_str(&format!("/?plugin={}", escaped(&format!("{}{options}", plugin.name))));
    }
    if let Some(tag) = &server.tag {
        link.push_str(&format!("#{}", escaped(tag)));
    }
    link
}

/// `BASE64(METHOD:PASSWORD@HOST:PORT)`.
fn legacy(text: &str) -> Result<Server, Fault> {
    // No base64 of a text that ends in a digit, as a port does, has a slash at its end.
    let plain = base64_decoded(text.strip_suffix('/').unwrap_or(text)).ok_or(Fault::UserInfo)?;
    let (user_info, host_and_port) = plain.rsplit_once('@').ok_or(Fault::Host)?;
    server(user_info, host_and_port)
}

fn server(user_info: &str, host_and_port: &str) -> Result<Server, Fault> {
    let (method, password) = user_info.split_once(':').ok_or(Fault::Colon)?;
    let (host, port) = host_and_port.rsplit_once(':').ok_or(Fault::Port)?;
    let has_digits_alone = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|_| has_digits_alone).ok_or(Fault::Port)?;
    // An address of IPv6 without brackets: its last group would be taken for the port.
    if host.contains(':') && !host.starts_with('[') {
        return Err(Fault::Host);
    }
    Server::new(method, password, host, port)
}

/// `METHOD:PASSWORD`, however it is written. Base64 has no colon.
fn decoded_user_info(text: &str) -> Result<Zeroizing<String>, Fault> {
    if let Some((method, password)) = text.split_once(':') {
        let method = percent_decoded(method).ok_or(Fault::UserInfo)?;
        let password = percent_decoded(password).ok_or(Fault::UserInfo)?;
        return Ok(Zeroizing::new(format!("{}:{}", *method, *password)));
    }
    let text = percent_decoded(text).ok_or(Fault::UserInfo)?;
    if text.contains(':') { Ok(text) } else { base64_decoded(&text).ok_or(Fault::UserInfo) }
}

/// The plugin's name and options; they stand together, with a semicolon between.
fn plugin(query: &str) -> Result<(String, String), Fault> {
    let given = query.split('&').find_map(|pair| pair.strip_prefix("plugin="));
    let text = percent_decoded(given.unwrap_or_default()).ok_or(Fault::Plugin)?;
    let (name, options) = text.split_once(';').unwrap_or((&text, ""));
    if name.is_empty() && !options.is_empty() || text.contains('\0') {
        return Err(Fault::Plugin);
    }
    Ok((name.to_owned(), options.to_owned()))
}

/// Both alphabets, with any padding.
fn base64_decoded(text: &str) -> Option<Zeroizing<String>> {
    let text = Zeroizing::new(text.replace('-', "+").replace('_', "/"));
    let bytes = Zeroizing::new(LENIENT.decode(text.as_bytes()).ok()?);
    Some(Zeroizing::new(std::str::from_utf8(&bytes).ok()?.to_owned()))
}

/// RFC 3986, section 2.1; `None` for what is no such encoding, or no UTF-8.
fn percent_decoded(text: &str) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            plain => plain,
        });
    }
    Some(Zeroizing::new(std::str::from_utf8(&bytes).ok()?.to_owned()))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
    use proptest::prelude::*;
    use ringweir_flow::wire::shadowsocks::Method;

    use super::super::Plugin;
    use super::*;

    fn parts(link: &str) -> (String, String, String) {
        let server = parse(link).unwrap_or_else(|fault| panic!("{link}: {fault}"));
        (server.method.as_str().to_owned(), server.password.to_string(), server.address.to_string())
    }

    fn expected(method: &str, password: &str, address: &str) -> (String, String, String) {
        (method.to_owned(), password.to_owned(), address.to_owned())
    }

    #[test]
    fn the_examples_of_the_specifications_are_read() {
        // SIP002, with a method of today in place of rc4-md5.
        let plugin =
            parse("ss://YWVzLTEyOC1nY206dGVzdA@192.168.100.1:8888/?plugin=obfs-local%3Bobfs%3Dhttp#Example2");
        let plugin = plugin.unwrap();
        assert_eq!((plugin.password.as_str(), plugin.tag.as_deref()), ("test", Some("Example2")));
        let wanted = Plugin { name: "obfs-local".to_owned(), options: Some("obfs=http".to_owned()) };
        assert_eq!(plugin.plugin, Some(wanted));
        // SIP022's, of the text of SIP002.
        let link = "ss://2022-blake3-aes-256-gcm:YctPZ6U7xPPcU%2Bgp3u%2B0tx%2FtRizJN9K8y%2BuKlW2qjlI%3D@192.168.100.1:8888#Example3";
        let key = "YctPZ6U7xPPcU+gp3u+0tx/tRizJN9K8y+uKlW2qjlI=";
        assert_eq!(parts(link), expected("2022-blake3-aes-256-gcm", key, "192.168.100.1:8888"));
    }

    #[test]
    fn both_alphabets_and_any_padding_are_read() {
        let plain = "aes-256-gcm:a>b?c/+é";
        let wanted = expected("aes-256-gcm", "a>b?c/+é", "[2001:db8::1]:8388");
        for text in [
            BASE64_STANDARD.encode(plain),
            BASE64_STANDARD_NO_PAD.encode(plain),
            BASE64_URL_SAFE_NO_PAD.encode(plain),
            escaped(&BASE64_STANDARD.encode(plain)),
            escaped(plain),
            format!("aes-256-gcm:{}", escaped("a>b?c/+é")),
        ] {
            assert_eq!(parts(&format!("ss://{text}@[2001:db8::1]:8388")), wanted, "{text}");
        }
        let old = BASE64_STANDARD.encode("AES-256-gcm:p@ss:word@host.example:443");
        let wanted = expected("aes-256-gcm", "p@ss:word", "host.example:443");
        for end in ["", "/", "#a%20name"] {
            assert_eq!(parts(&format!("SS://{}{end}", old.trim_end_matches('='))), wanted);
        }
        // Keys may have lost their padding.
        let key = "NZk1cMHlOgLxBiVzVHQWLYs9PxTVUGPbd8F6q_oVDKw";
        let found = parts(&format!("ss://2022-blake3-aes-256-gcm:{key}:{key}@h:1"));
        let whole = format!("{}=", key.replace('_', "/"));
        assert_eq!(found.1, format!("{whole}:{whole}"));
    }

    #[test]
    fn what_is_wrong_is_named_and_no_password_is_shown() {
        let base64 = |text: &str| BASE64_STANDARD.encode(text);
        for (link, fault) in [
            ("http://a".to_owned(), Fault::Scheme),
            ("ss".to_owned(), Fault::Scheme),
            ("ss://*@h:1".to_owned(), Fault::UserInfo),
            (format!("ss://{}@h:1", base64("SeCrEt")), Fault::Colon),
            ("ss://rc4-md5:SeCrEt@h:1".to_owned(), Fault::Method("\"rc4-md5\"".to_owned())),
            ("ss://Se%20CrEt:x@h:1".to_owned(), Fault::Method("(not shown)".to_owned())),
            ("ss://aes-256-gcm:@h:1".to_owned(), Fault::Password("is empty".to_owned())),
            ("ss://aes-256-gcm:SeCrEt@h:0".to_owned(), Fault::Port),
            ("ss://aes-256-gcm:SeCrEt@h:+1".to_owned(), Fault::Port),
            ("ss://aes-256-gcm:SeCrEt@h".to_owned(), Fault::Port),
            ("ss://aes-256-gcm:SeCrEt@h:70000".to_owned(), Fault::Port),
            ("ss://aes-256-gcm:SeCrEt@::1:80".to_owned(), Fault::Host),
            ("ss://aes-256-gcm:SeCrEt@:80".to_owned(), Fault::Host),
            ("ss://aes-256-gcm:SeCrEt@h:1/?plugin=%zz".to_owned(), Fault::Plugin),
            ("ss://aes-256-gcm:SeCrEt@h:1#%ff".to_owned(), Fault::Tag),
            (format!("ss://{}", "a".repeat(MAX_LINK_BYTES)), Fault::Length),
        ] {
            assert_eq!(parse(&link), Err(fault.clone()), "{link}");
            assert!(!fault.to_string().contains("CrEt"), "{fault}");
        }
        let short = parse("ss://2022-blake3-aes-256-gcm:SeCrEt@h:1").unwrap_err().to_string();
        assert!(short.starts_with("the password ") && !short.contains("SeCrEt"), "{short}");
        let whole = parse("ss://aes-256-gcm:SeCrEt@h:1#x").unwrap();
        assert!(!format!("{whole:?}").contains("SeCrEt"));
    }

    fn any_server() -> impl Strategy<Value = Server> {
        let host = prop_oneof![
            any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
            any::<std::net::Ipv6Addr>().prop_map(|ip| format!("[{ip}]")),
            "[a-z][a-z0-9-]{0,20}(\\.[a-z]{1,8}){0,3}",
        ];
        let key = |bytes: usize| {
            let key = proptest::collection::vec(any::<u8>(), bytes);
            let keys = proptest::collection::vec(key, 1..4);
            keys.prop_map(|keys| {
                keys.iter().map(|key| BASE64_STANDARD.encode(key)).collect::<Vec<_>>().join(":")
            })
        };
        let sealed = prop_oneof![
            (prop::sample::select(&Method::ALL[..3]), "\\PC{1,40}"),
            (Just(Method::Blake3Aes128Gcm), key(16)),
            (Just(Method::Blake3Aes256Gcm), key(32)),
        ];
        let plugin = prop::option::of(("[^;\\x00]{1,20}", "[^\\x00]{0,40}"));
        let tag = "\\PC{0,40}";
        (sealed, host, 1..=u16::MAX, plugin, tag).prop_map(|((method, password), host, port, plugin, tag)| {
            let server = Server::new(method.as_str(), &password, &host, port).unwrap();
            let (name, options) = plugin.unwrap_or_default();
            server.with_plugin(&name, &options).with_tag(&tag)
        })
    }

    proptest! {
        #[test]
        fn a_server_comes_back_from_its_link(server in any_server()) {
            let link = format(&server);
            prop_assert!(link.is_ascii());
            prop_assert_eq!(parse(&link), Ok(server));
        }

        #[test]
        fn no_text_is_too_strange_to_be_judged(text in "(ss://)?\\PC{0,80}") {
            let _ = parse(&text);
        }
    }
}
