//! Operations on sockets with O_NONBLOCK wait like any other: splice(2) needs the flag, the ring does not mind it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;

use ringweir_ring::{Completion, Op, RingConfig};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::{next, pair, pattern, ring, small, token};

#[test]
fn a_receive_on_a_nonblocking_socket_waits() {
    let config = RingConfig { receive_bundle: false, ..small() };
    for config in [config, small()] {
        let mut ring = ring(&config);
        for max_bytes in [4096, 16 * 4096] {
            let (near, mut far) = pair();
            near.set_nonblocking(true).unwrap();
            ring.receive(token(Op::Receive, 1), near.as_fd(), max_bytes);
            ring.wait(Some(std::time::Duration::from_millis(20))).unwrap();
            assert!(ring.next_completion().is_none(), "a receive did not wait");
            far.write_all(b"late").unwrap();
            let Completion::Received { result, .. } = next(&mut ring) else { panic!("not a receive") };
            let chunks = result.unwrap();
            assert_eq!(chunks.len(), 4);
            ring.recycle(chunks);
        }
    }
}

#[test]
fn a_send_on_a_nonblocking_socket_waits_for_room() {
    let mut ring = ring(&small());
    let (near, mut far) = pair();
    near.set_nonblocking(true).unwrap();
    let bytes = pattern(16 << 20);
    ring.send_owned(token(Op::Send, 1), near.as_fd(), bytes.clone(), 0);
    ring.wait(Some(std::time::Duration::from_millis(20))).unwrap();
    assert!(ring.next_completion().is_none(), "16 MiB fit into no send buffer");
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; 16 << 20];
        far.read_exact(&mut all).unwrap();
        all
    });
    let Completion::Sent { result, rest: None, .. } = next(&mut ring) else { panic!("not a whole send") };
    assert_eq!(result, Ok(16 << 20));
    assert!(reader.join().unwrap() == bytes);
}

#[test]
fn a_connect_of_a_nonblocking_socket_waits_until_it_is_connected() {
    let mut ring = ring(&small());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let near = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    ring.connect(token(Op::Connect, 1), near.as_fd(), listener.local_addr().unwrap());
    let Completion::Connected { result, .. } = next(&mut ring) else { panic!("not a connect") };
    assert_eq!(result, Ok(()));
    listener.accept().unwrap();
}
