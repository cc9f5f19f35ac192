//! A listening socket that closes without cutting anybody off.
//!
//! Closing it resets the connections that the kernel has accepted and nobody has taken yet, and a client under
//! load always has some on their way. So new ones are kept out first: a packet filter drops their first packet,
//! as if it had been lost. The client tries again a second later, and is refused then.

use std::{io, time::Duration};

use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};

/// How long a connection may take from its first packet to the last of its handshake: a round trip around the
/// world.
const HANDSHAKE_TIME: Duration = Duration::from_millis(500);

/// The pause after a failed accept.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Load one byte of the packet; jump by its bits; return: the instructions of classic BPF.
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
/// Where a TCP header has its flags, and the flag of a first packet.
const FLAGS_OFFSET: u32 = 13;
const SYN: u32 = 0x02;

/// Takes what is on its way to `listener`, and closes it.
pub(super) async fn close(listener: TcpListener, accept: impl Fn(TcpStream)) {
    if let Err(error) = keep_out(&listener) {
        tracing::debug!(%error, "failed to keep new connections out");
    }
    let take = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => accept(stream),
                // A lack of file descriptors, which ends when a connection does.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    };
    // Ends by the time alone.
    let _: Result<(), _> = tokio::time::timeout(HANDSHAKE_TIME, take).await;
}

/// Drops the first packet of each new connection.
fn keep_out(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_OFFSET),
        SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}
