//! The end of a connection whose client may still be sending: closed over bytes that nobody read, it is reset, and
//! the client can lose the answer that is on its way. So what comes is thrown away, until the client has seen the
//! answer and closes too, but within bounds.

use std::{io, time::Duration};

use tokio::{net::TcpStream, time::timeout};

/// How much is thrown away, and for how long, after the answer: as much as before one.
const LINGER_BYTES: usize = super::body::DISCARDED_BYTES;
pub(super) const LINGER_TIME: Duration = super::body::DISCARD_TIME;
/// What is read at once. On the stack, so that a connection that ends takes no memory.
const PIECE_BYTES: usize = 8 * 1024;

/// Reads until the client closes. The answer must have been written, and the stream shut down for writing.
pub(super) async fn discard(stream: &TcpStream) {
    let read = async {
        let mut left = LINGER_BYTES;
        while left > 0 && stream.readable().await.is_ok() {
            match stream.try_read(&mut [0; PIECE_BYTES]) {
                Ok(0) => break,
                Ok(bytes) => left = left.saturating_sub(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    };
    // Whoever has not closed by then is not waited for.
    let _ = timeout(LINGER_TIME, read).await;
}
