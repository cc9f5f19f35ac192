//! What a connection is doing, seen from its bytes: so that clients which hold a connection and send nothing, or
//! send a head byte by byte, are cut off without a timer being set and cleared for each request.
//!
//! It also turns hyper's own refusals, which have no body, into problems.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::problem::{Problem, ProblemKind};

/// How long a connection may be idle between two requests: longer than gateways keep theirs (60 s is usual),
/// so that it is they who close it, and no request meets a closed connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;

/// What a connection is doing, and since when.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    phase: AtomicU8,
    since_millis: AtomicU64,
    leaves_unread: AtomicBool,
}

/// A connection that does nothing for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stalled {
    /// Between two requests.
    Idle,
    /// Within a head.
    Head,
}

impl Activity {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            phase: AtomicU8::new(IDLE),
            since_millis: AtomicU64::new(0),
            leaves_unread: AtomicBool::new(false),
        }
    }

    /// The connection's last answer is given, and the client may still be sending.
    pub(super) fn leave_unread(&self) {
        self.leaves_unread.store(true, Ordering::Relaxed);
    }

    /// Whether that is so.
    pub(super) fn leaves_unread(&self) -> bool {
        self.leaves_unread.load(Ordering::Relaxed)
    }

    /// A request arrived; its own deadline counts from now on.
    pub(super) fn busy(&self) {
        self.phase.store(BUSY, Ordering::Relaxed);
    }

    /// A request is answered.
    pub(super) fn idle(&self, now: Instant) {
        self.enter(IDLE, now);
    }

    fn received(&self) {
        if self.phase.load(Ordering::Relaxed) == IDLE {
            self.enter(HEAD, Instant::now());
        }
    }

    fn enter(&self, phase: u8, now: Instant) {
        let since = now.duration_since(self.start).as_millis();
        self.since_millis
            .store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// Whether the connection has stalled.
    pub(super) fn stalled(&self, now: Instant) -> Option<Stalled> {
        let since = Duration::from_millis(self.since_millis.load(Ordering::Relaxed));
        let age = now.duration_since(self.start).saturating_sub(since);
        match self.phase.load(Ordering::Relaxed) {
            IDLE if age >= IDLE_TIMEOUT => Some(Stalled::Idle),
            HEAD if age >= HEAD_TIMEOUT => Some(Stalled::Head),
            _ => None,
        }
    }
}

/// A client's stream that keeps its [`Activity`].
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
    /// A refusal in place of hyper's, and how much of it was written.
    refusal: Option<(Vec<u8>, usize)>,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            activity,
            refusal: None,
        }
    }

    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn poll_refusal(&mut self, context: &mut Context<'_>, replaced: usize) -> Poll<io::Result<usize>> {
        while let Some((bytes, written)) = &mut self.refusal {
            let rest = &bytes[*written..];
            if rest.is_empty() {
                self.refusal = None;
                break;
            }
            *written += ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
        }
        Poll::Ready(Ok(replaced))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.activity.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.refusal.is_none()
            && let Some(kind) = refusal_kind(bytes)
        {
            let detail = "the request cannot be read; nothing was stored";
            self.refusal = Some((Problem::new(kind, detail).into_closing_bytes(), 0));
            self.activity.leave_unread();
        }
        if self.refusal.is_some() {
            return self.poll_refusal(context, bytes.len());
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What hyper refuses on its own, where `bytes` are such a refusal: each answer of ours that is no success has a body.
fn refusal_kind(bytes: &[u8]) -> Option<ProblemKind> {
    let head = bytes.strip_prefix(b"HTTP/1.1 4")?;
    let is_bare =
        memchr::memmem::find(head, b"content-length: 0\r\n").is_some() && head.ends_with(b"\r\n\r\n");
    match (is_bare, head.get(..2)?) {
        (true, b"00") => Some(ProblemKind::MalformedRequest),
        (true, b"14") => Some(ProblemKind::UriTooLong),
        (true, b"31") => Some(ProblemKind::HeadersTooLarge),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_client_stalls_and_a_busy_one_does_not() {
        let start = Instant::now();
        let activity = Activity::new(start);
        assert_eq!(activity.stalled(start + IDLE_TIMEOUT / 2), None);
        assert_eq!(activity.stalled(start + IDLE_TIMEOUT), Some(Stalled::Idle));
        activity.received();
        assert_eq!(activity.stalled(start + HEAD_TIMEOUT * 2), Some(Stalled::Head));
        activity.busy();
        activity.received();
        assert_eq!(activity.stalled(start + IDLE_TIMEOUT * 2), None);
        activity.idle(start + IDLE_TIMEOUT);
        assert_eq!(activity.stalled(start + IDLE_TIMEOUT), None);
    }

    #[test]
    fn tells_refusals_of_hyper_from_ours() {
        let bare =
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(refusal_kind(bare), Some(ProblemKind::HeadersTooLarge));
        let ours = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\n0123456789";
        assert_eq!(refusal_kind(ours), None);
        assert_eq!(
            refusal_kind(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            None
        );
    }
}
