//! Bodies: read to their end within the limit, the deadline and the memory that all of them share.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use nomnom_crds::runtime::config::LimitsConfig;
use tokio::time::{Instant, timeout, timeout_at};

use super::problem::{Problem, ProblemKind};

/// Bodies up to this size are not counted: they are no larger than a connection's own buffers.
const UNCOUNTED_BYTES: usize = 16 * 1024;
/// What all larger bodies may take together, at the least: an eighth of the pod's default memory limit.
const MIN_MEMORY_BYTES: usize = 64 * 1024 * 1024;
/// A body over the limit is read on so far, and so long, before it is refused: most clients send all of it before
/// they read the answer, and a connection closed earlier is reset under their hands.
const DISCARDED_BYTES: usize = 16 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(2);
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

/// A body that was read.
#[derive(Debug)]
pub(super) struct Body<'a> {
    pub(super) bytes: Bytes,
    /// Kept as long as the bytes.
    _share: Share<'a>,
}

/// What a body must keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) memory: &'a Memory,
    pub(super) max_bytes: usize,
    pub(super) deadline: Instant,
    /// Whether the client waits for our word before it sends.
    pub(super) expects_continue: bool,
}

impl Memory {
    pub(super) fn new(limits: &LimitsConfig) -> Self {
        let largest = usize::try_from(limits.max_body_bytes).unwrap_or(usize::MAX);
        Self {
            used: AtomicUsize::new(0),
            // Two of the largest bodies fit in any case.
            limit: MIN_MEMORY_BYTES.max(largest.saturating_mul(2)),
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
    /// Makes the share as large as `bytes`, where there is room.
    fn grow(&mut self, bytes: usize) -> Result<(), Box<Problem>> {
        if bytes <= UNCOUNTED_BYTES || bytes <= self.bytes {
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
pub(super) async fn read<'a>(mut body: Incoming, rules: Rules<'a>) -> Result<Body<'a>, Box<Problem>> {
    let mut share = rules.memory.share();
    if let Some(length) = body.size_hint().exact() {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > rules.max_bytes {
            return Err(refuse(body, rules).await);
        }
        share.grow(length)?;
    }
    let first = next_data(&mut body, rules).await?.unwrap_or_default();
    let mut bytes = first;
    let mut joined: Option<BytesMut> = None;
    loop {
        let length = joined.as_ref().map_or(bytes.len(), BytesMut::len);
        if length > rules.max_bytes {
            return Err(refuse(body, rules).await);
        }
        share.grow(length)?;
        if body.is_end_stream() {
            break;
        }
        let Some(more) = next_data(&mut body, rules).await? else {
            break;
        };
        joined
            .get_or_insert_with(|| BytesMut::from(&bytes[..]))
            .extend_from_slice(&more);
    }
    if let Some(joined) = joined {
        bytes = joined.freeze();
    }
    Ok(Body { bytes, _share: share })
}

/// The next piece; none at the end.
async fn next_data(body: &mut Incoming, rules: Rules<'_>) -> Result<Option<Bytes>, Box<Problem>> {
    loop {
        match timeout_at(rules.deadline, body.frame()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                // Trailers say nothing that is used here.
                Err(_) => {}
            },
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

async fn refuse(mut body: Incoming, rules: Rules<'_>) -> Box<Problem> {
    if !rules.expects_continue {
        // Whether it arrived or not, the answer is the same.
        let _ = timeout(DISCARD_TIME, discard(&mut body)).await;
    }
    let detail = format!("the body is larger than {} bytes", rules.max_bytes);
    Problem::new(ProblemKind::ContentTooLarge, detail).closing()
}

async fn discard(body: &mut Incoming) {
    let mut bytes = 0;
    while bytes < DISCARDED_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}
