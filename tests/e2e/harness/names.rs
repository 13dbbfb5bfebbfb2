//! A name server that says what a scenario wants said (RFC 1035, as much as one question needs).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::server::spawn;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

type Zone = Arc<Mutex<HashMap<String, Vec<IpAddr>>>>;

/// Serves until the scenario ends.
pub(crate) struct NameServer {
    address: SocketAddr,
    zone: Zone,
}

impl NameServer {
    pub(crate) fn new() -> NameServer {
        /// How soon the thread sees that its owner is gone.
        const LOOK: Duration = Duration::from_millis(200);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind a UDP port");
        socket.set_read_timeout(Some(LOOK)).expect("SO_RCVTIMEO");
        let address = socket.local_addr().expect("an address");
        let zone = Zone::default();
        let shared = Arc::clone(&zone);
        spawn(move || {
            let mut question = [0; 512];
            while Arc::strong_count(&shared) > 1 {
                let Ok((bytes, client)) = socket.recv_from(&mut question) else { continue };
                if let Some(answer) = answer(&question[..bytes], &shared) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        NameServer { address, zone }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a name stands for from now on. Names without addresses exist all the same; others do not.
    pub(crate) fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.zone.lock().unwrap().insert(name.to_owned(), addresses.to_vec());
    }
}

/// The answer to a question, with a time-to-live of zero: every session asks anew.
fn answer(question: &[u8], zone: &Zone) -> Option<Vec<u8>> {
    let (name, end) = read_name(question)?;
    let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
    let zone = zone.lock().unwrap();
    let addresses = zone.get(&name);
    let matching: Vec<&IpAddr> = addresses
        .into_iter()
        .flatten()
        .filter(|address| match kind {
            TYPE_A => address.is_ipv4(),
            TYPE_AAAA => address.is_ipv6(),
            _ => false,
        })
        .collect();
    let name_error = if addresses.is_some() { 0 } else { 3 };
    let mut reply = question.get(..2)?.to_vec();
    // A response that is authoritative, with recursion as desired and available.
    reply.extend([0x85, 0x80 | name_error, 0, 1, 0, u8::try_from(matching.len()).ok()?, 0, 0, 0, 0]);
    reply.extend(question.get(12..end + 4)?);
    for address in matching {
        // A pointer to the question's name, then type, class IN, time-to-live 0.
        reply.extend([0xc0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 0]);
        match address {
            IpAddr::V4(v4) => reply.extend([&[0, 4][..], &v4.octets()].concat()),
            IpAddr::V6(v6) => reply.extend([&[0, 16][..], &v6.octets()].concat()),
        }
    }
    Some(reply)
}

/// The name asked for, in lower case without a final dot, and where it ends.
fn read_name(question: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let count = usize::from(*question.get(at)?);
        at += 1;
        if count == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + count)?).to_lowercase());
        at += count;
    }
}
