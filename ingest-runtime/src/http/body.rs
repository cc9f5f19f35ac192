//! Bodies: read to their end within the limit, the deadline and the memory that all of them share.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Version, header, request::Parts};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming};
use nomnom_crds::runtime::config::LimitsConfig;
use tokio::time::{Instant, timeout_at};

use super::problem::{Problem, ProblemKind};

/// Bodies up to this size are not counted: they fit into a connection's own buffer.
const UNCOUNTED_BYTES: usize = 16 * 1024;
/// What a larger body takes for each of its bytes: itself and its row while it is decoded, or moved as it grows; then,
/// without the body, its row and the statement's parameters. What the writers keep of a statement is not in it.
const COST: usize = 2;
/// What all larger bodies may take together, at the least: an eighth of the pod's default memory limit, for as many
/// bytes of bodies as rows can wait for the writers.
const MIN_MEMORY_BYTES: usize = 64 * 1024 * 1024;
/// What a handler leaves of a body is read on so far, and so long, before it is answered: most clients send all of
/// it before they read the answer, and a connection closed earlier is reset under their hands.
pub(super) const DISCARDED_BYTES: usize = 16 * 1024 * 1024;
pub(super) const DISCARD_TIME: Duration = Duration::from_secs(2);
/// When to come again where other bodies fill the memory: they are gone within the time of a request.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The memory that the bodies of all requests share.
#[derive(Debug)]
pub(super) struct Memory {
    used: AtomicUsize,
    limit: usize,
}

/// A part of the memory, given back when it is dropped.
#[derive(Debug)]
struct Share<'a> {
    memory: &'a Memory,
    bytes: usize,
}

/// A body on its way in.
#[derive(Debug)]
pub struct Inbound {
    incoming: Incoming,
    /// Whether the client waits for a 100 before it sends, and was not told to go on: hyper tells it when the body
    /// is asked for.
    held_back: bool,
    ended: bool,
    /// Whether it is not what its headers say: where it ends, nobody knows.
    broken: bool,
}

/// A body that was read.
#[derive(Debug)]
pub(super) struct Body<'a> {
    pub(super) bytes: Bytes,
    /// Kept as long as what was made of the bytes.
    _share: Share<'a>,
}

impl Body<'_> {
    /// Frees the bytes where they take much; says whether they are still there.
    pub(super) fn keep_small(&mut self) -> bool {
        let is_small = self.bytes.len() <= UNCOUNTED_BYTES;
        if !is_small {
            self.bytes = Bytes::new();
        }
        is_small
    }
}

/// What a body must keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) memory: &'a Memory,
    pub(super) max_bytes: usize,
    pub(super) deadline: Instant,
}

impl Inbound {
    /// Takes a request apart.
    pub(super) fn split(request: Request<Incoming>) -> (Parts, Self) {
        let (head, incoming) = request.into_parts();
        let expect = head.headers.get(header::EXPECT);
        let waits = expect.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let inbound = Self {
            held_back: waits && head.version > Version::HTTP_10,
            ended: false,
            broken: false,
            incoming,
        };
        (head, inbound)
    }

    fn is_at_end(&self) -> bool {
        self.ended || self.incoming.is_end_stream()
    }

    async fn frame(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        self.held_back = false;
        let frame = self.incoming.frame().await;
        match frame {
            None => self.ended = true,
            Some(Err(_)) => self.broken = true,
            Some(Ok(_)) => {}
        }
        frame
    }

    /// Throws away what was not read, and says whether that was all of it. The deadline is the request's.
    pub(super) async fn drain(&mut self, deadline: Instant) -> bool {
        let discard = async {
            let mut bytes = 0;
            while !self.is_at_end() && !self.held_back && !self.broken && bytes < DISCARDED_BYTES {
                if let Some(Ok(frame)) = self.frame().await {
                    bytes += frame.data_ref().map_or(0, Bytes::len);
                }
            }
            self.is_at_end()
        };
        let deadline = deadline.min(Instant::now() + DISCARD_TIME);
        timeout_at(deadline, discard).await.unwrap_or(false)
    }
}

impl Memory {
    pub(super) fn new(limits: &LimitsConfig) -> Self {
        let largest = usize::try_from(limits.max_body_bytes).unwrap_or(usize::MAX);
        Self {
            used: AtomicUsize::new(0),
            // The largest body fits in any case.
            limit: MIN_MEMORY_BYTES.max(largest.saturating_mul(COST)),
        }
    }

    fn share(&self) -> Share<'_> {
        Share {
            memory: self,
            bytes: 0,
        }
    }
}

impl Share<'_> {
    /// Makes the share as large as a body of `length` needs, where there is room.
    fn grow(&mut self, length: usize) -> Result<(), Problem> {
        let bytes = length.saturating_mul(COST);
        if length <= UNCOUNTED_BYTES || bytes <= self.bytes {
            return Ok(());
        }
        let more = bytes - self.bytes;
        let grown = self
            .memory
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(more).filter(|used| *used <= self.memory.limit)
            });
        if grown.is_err() {
            let detail = "other large bodies are in flight; nothing was stored";
            return Err(Problem::new(ProblemKind::Overloaded, detail)
                .retry_after(FULL_RETRY_AFTER)
                .closing());
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Reads a body. One that came in one piece, as small ones do, is not copied.
pub(super) async fn read<'a>(body: &mut Inbound, rules: Rules<'a>) -> Result<Body<'a>, Problem> {
    let mut share = rules.memory.share();
    let mut told = 0;
    if let Some(length) = body.incoming.size_hint().exact() {
        told = usize::try_from(length).unwrap_or(usize::MAX);
        if told > rules.max_bytes {
            return Err(too_large(rules));
        }
        share.grow(told)?;
    }
    let mut bytes = next_data(body, rules).await?.unwrap_or_default();
    let mut joined: Option<BytesMut> = None;
    loop {
        let length = joined.as_ref().map_or(bytes.len(), BytesMut::len);
        if length > rules.max_bytes {
            return Err(too_large(rules));
        }
        share.grow(length)?;
        if body.is_at_end() {
            break;
        }
        let Some(more) = next_data(body, rules).await? else {
            break;
        };
        let start = || {
            let mut start = BytesMut::with_capacity(told.max(bytes.len() + more.len()));
            start.extend_from_slice(&bytes);
            start
        };
        joined.get_or_insert_with(start).extend_from_slice(&more);
    }
    if let Some(joined) = joined {
        bytes = joined.freeze();
    }
    Ok(Body { bytes, _share: share })
}

/// The next piece; none at the end.
async fn next_data(body: &mut Inbound, rules: Rules<'_>) -> Result<Option<Bytes>, Problem> {
    loop {
        match timeout_at(rules.deadline, body.frame()).await {
            Ok(None) => return Ok(None),
            // Trailers, the other kind of frame, say nothing that is used here.
            Ok(Some(Ok(frame))) if frame.is_data() => return Ok(frame.into_data().ok()),
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(_))) => {
                let detail = "the body is not what its headers say, or ended early; nothing was stored";
                return Err(Problem::new(ProblemKind::MalformedRequest, detail).closing());
            }
            Err(_) => {
                let detail = "the body was not complete at the deadline; nothing was stored";
                return Err(Problem::new(ProblemKind::RequestTimeout, detail).closing());
            }
        }
    }
}

fn too_large(rules: Rules<'_>) -> Problem {
    let detail = format!("the body is larger than {} bytes", rules.max_bytes);
    Problem::new(ProblemKind::ContentTooLarge, detail).closing()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(max_body_bytes: usize) -> Memory {
        Memory::new(&LimitsConfig {
            max_body_bytes: u32::try_from(max_body_bytes).unwrap(),
            timeout: nomnom_crds::Duration::from_millis(1),
        })
    }

    #[test]
    fn large_bodies_share_a_bounded_memory_and_give_it_back() {
        let memory = memory(1024);
        let mut small = memory.share();
        small.grow(UNCOUNTED_BYTES).unwrap();
        let mut large = memory.share();
        large.grow(MIN_MEMORY_BYTES / COST / 2).unwrap();
        large.grow(MIN_MEMORY_BYTES / COST).unwrap();
        let refused = memory.share().grow(UNCOUNTED_BYTES + 1).unwrap_err();
        assert_eq!(refused.kind(), ProblemKind::Overloaded);
        drop(large);
        memory.share().grow(MIN_MEMORY_BYTES / COST).unwrap();
        assert_eq!(memory.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_largest_body_has_room_alone() {
        let largest = MIN_MEMORY_BYTES;
        let memory = memory(largest);
        let mut first = memory.share();
        first.grow(largest).unwrap();
        memory.share().grow(largest).unwrap_err();
        drop(first);
        memory.share().grow(largest).unwrap();
    }
}
