//! The queue between the endpoint and the database: durable, at least once, and exact about what it does not know.
//!
//! One set of traits, one folder for each back end, one conformance suite for all of them. What travels is an
//! [`envelope`]: many records in one message, since a broker that syncs each message then syncs once for all of them.
//!
//! A connection is never repaired. Whatever was handed to one that broke is unknown, and an acknowledgement that is
//! sent on the next one could meet another message: so publishers and consumers end with their connection, and their
//! owners make new ones.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

pub mod envelope;
pub mod nats;

/// A message's place in its stream: from 1, growing, never used twice in one creation of the stream.
pub type Sequence = u64;

/// Tells one creation of a stream from every other of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(pub String);

/// A stream as somebody wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamSettings {
    /// The most bytes that it holds; what comes beyond is refused.
    pub max_bytes: u64,
    /// Servers that hold each message.
    pub replicas: u32,
    /// How long a delivery may stay without a word until it is delivered again.
    pub ack_wait: Duration,
    /// Deliveries that may be unacknowledged at once, all consumers together.
    pub max_unacknowledged: u32,
}

/// What [`Queue::ensure`] found or made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ensured {
    /// Of the stream that is there now.
    pub mark: Mark,
    /// Whether it was made just now.
    pub created: bool,
}

/// What is in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Of this creation.
    pub mark: Mark,
    /// The first message that is still there; one above `last` where there is none.
    pub first: Sequence,
    /// The last that was ever published.
    pub last: Sequence,
    /// Messages that are there: envelopes, not records.
    pub messages: u64,
    /// What they take, in bytes, as the broker counts.
    pub bytes: u64,
    /// The most that they may take.
    pub max_bytes: u64,
    /// Messages that were delivered and are not acknowledged.
    pub unacknowledged: u64,
    /// When the oldest was published, by the broker's clock.
    pub oldest: Option<SystemTime>,
}

/// Why the queue cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The broker cannot be reached, or the connection broke: what was under way is unknown.
    #[error("{0}")]
    Unreachable(String),
    /// The broker refuses user, password, token or certificate.
    #[error("{0}")]
    Unauthorized(String),
    /// The broker is not fit for what is wanted of it.
    #[error("{0}")]
    Unsupported(String),
    /// There is no stream, or it is not the one with the mark.
    #[error("{0}")]
    Missing(String),
    /// What is wanted of the stream could lose messages, and is not done.
    #[error("{0}")]
    Unsafe(String),
    /// The broker refuses, for a reason of its own.
    #[error("{0}")]
    Refused(String),
}

/// A stream at a broker.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Creates the stream, or brings its settings to those that are wanted. Never deletes, never recreates, never
    /// makes it hold less than it holds. With a `known` mark, a stream that is missing or another one is an error:
    /// what was acknowledged is lost, and making it anew would hide that.
    async fn ensure(&self, wanted: &StreamSettings, known: Option<&Mark>) -> Result<Ensured, QueueError>;

    /// Deletes the stream with this mark, and no other. Where there is none, that is a success.
    async fn delete(&self, mark: &Mark) -> Result<(), QueueError>;

    /// What is in the stream.
    async fn state(&self) -> Result<StreamState, QueueError>;

    /// Opens a connection to publish on.
    async fn publisher(&self) -> Result<Box<dyn Publisher>, QueueError>;

    /// Opens a connection to consume on.
    async fn consumer(&self) -> Result<Box<dyn Consumer>, QueueError>;
}

/// An envelope, encoded, under an id that every attempt to publish it has.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// By which the broker knows a second attempt.
    pub id: Uuid,
    /// The message.
    pub payload: Bytes,
}

/// What the broker acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where the message stands.
    pub sequence: Sequence,
    /// Whether an earlier attempt had put it there.
    pub is_duplicate: bool,
}

/// Why a message was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The stream holds as much as it may. Not stored, and never will be.
    #[error("the queue is full: {0}")]
    Full(String),
    /// The broker refuses the message. Not stored, and never will be.
    #[error("{0}")]
    Refused(String),
    /// The message was not handed over. Not stored, and never will be.
    #[error("{0}")]
    NotSent(String),
    /// It was handed over, and no answer came: it is stored, or will be, or not.
    #[error("{0}")]
    Unknown(String),
}

impl PublishError {
    /// Whether the message is certain never to be stored.
    #[must_use]
    pub const fn is_definite(&self) -> bool {
        !matches!(self, Self::Unknown(_))
    }
}

/// A connection to publish on. After [`PublishError::Unknown`] or [`PublishError::NotSent`] it is of no use any more.
#[async_trait]
pub trait Publisher: Send {
    /// The largest payload that the broker takes, in bytes.
    fn max_payload(&self) -> usize;

    /// Publishes a message, and waits for the acknowledgement until the deadline.
    async fn publish(&mut self, message: Outgoing, deadline: Instant) -> Result<Published, PublishError>;
}

/// A message as it was delivered.
#[derive(Debug)]
pub struct Delivery {
    /// Its place.
    pub sequence: Sequence,
    /// How often it was delivered, this time included, as far as the broker remembers.
    pub deliveries: u64,
    /// The message.
    pub payload: Bytes,
    /// What to acknowledge it by.
    pub receipt: Receipt,
}

/// By which the connection that delivered a message knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt(String);

/// A connection to consume on. After any error it is of no use any more: what it delivered and was not acknowledged
/// is delivered again.
#[async_trait]
pub trait Consumer: Send {
    /// Up to `max` messages. Waits for the first of them, at most `wait`; none is an empty list.
    async fn pull(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError>;

    /// Says that these are still being worked on.
    async fn keep(&mut self, receipts: &[Receipt]) -> Result<(), QueueError>;

    /// Says that these are done, and waits until the broker has said that it knows.
    async fn acknowledge(&mut self, receipts: &[Receipt]) -> Result<(), QueueError>;

    /// Gives these back, to be delivered again after `delay`.
    async fn release(&mut self, receipts: &[Receipt], delay: Duration) -> Result<(), QueueError>;
}
