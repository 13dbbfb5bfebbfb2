//! What only an ioctl tells of a socket.

use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl};

/// SIOCOUTQ of linux/sockios.h, which is TIOCOUTQ.
const SIOCOUTQ: Opcode = 0x5411;

/// Bytes that were sent on a TCP socket and that the peer has not acknowledged, its queue included (tcp(7), SIOCOUTQ).
/// `None` when the socket has no connection any more.
pub fn unacknowledged_bytes(socket: impl AsFd) -> Option<usize> {
    // SAFETY: SIOCOUTQ writes one int and reads nothing.
    let request = unsafe { Getter::<SIOCOUTQ, i32>::new() };
    // SAFETY: the request above is valid for any descriptor: others answer with an error.
    let bytes = unsafe { ioctl(socket, request) }.ok()?;
    usize::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn counts_what_a_peer_does_not_take() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _server = listener.accept().unwrap();
        assert_eq!(unacknowledged_bytes(&client), Some(0));
        client.set_nonblocking(true).unwrap();
        while client.write(&[0; 65536]).is_ok() {}
        assert!(unacknowledged_bytes(&client).unwrap() > 0);
    }
}
