//! NATS JetStream: a work-queue stream that refuses what it has no room for, and one durable consumer for all workers.

mod connection;
mod consumer;
mod publisher;
mod stream;

use std::path::PathBuf;

use async_nats::jetstream::{self, context::GetStreamErrorKind, stream::Stream};
use async_trait::async_trait;

use super::{Consumer, Ensured, Mark, Publisher, Queue, QueueError, StreamSettings, StreamState};
use connection::Connection;
use consumer::NatsConsumer;
use publisher::NatsPublisher;

/// The durable consumer that all workers share.
const CONSUMER: &str = "workers";

/// A stream at a NATS server or cluster.
#[derive(Clone, Debug)]
pub struct NatsOptions {
    /// URLs, with commas between them: `nats://a:4222,tls://b:4222`.
    pub servers: String,
    /// The stream's name, and the subject that it takes.
    pub stream: String,
    /// The uid of the pipeline that it belongs to.
    pub pipeline: String,
    /// What the server's administrators see in their list of connections.
    pub client_name: String,
    /// A directory with a Secret's keys, read anew for each connection: `username` and `password`, or `token`, or
    /// `nats.creds`; `ca.crt`; `tls.crt` and `tls.key`. All of them may be missing.
    pub credentials: Option<PathBuf>,
}

/// The queue that [`NatsOptions`] name.
#[derive(Clone, Debug)]
pub struct NatsQueue {
    options: NatsOptions,
}

impl NatsQueue {
    /// Connects to nothing yet.
    #[must_use]
    pub const fn new(options: NatsOptions) -> Self {
        Self { options }
    }

    /// The stream, as it is now.
    async fn stream(&self, connection: &Connection) -> Result<Stream, QueueError> {
        self.find_stream(connection)
            .await?
            .ok_or_else(|| QueueError::Missing(format!("there is no stream {:?}", self.options.stream)))
    }

    async fn find_stream(&self, connection: &Connection) -> Result<Option<Stream>, QueueError> {
        match connection.jetstream.get_stream(&self.options.stream).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error)
                    if error.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                GetStreamErrorKind::JetStream(error) => Err(QueueError::Refused(error.to_string())),
                _ => Err(QueueError::Unreachable(error.to_string())),
            },
        }
    }
}

#[async_trait]
impl Queue for NatsQueue {
    async fn ensure(&self, wanted: &StreamSettings, known: Option<&Mark>) -> Result<Ensured, QueueError> {
        let connection = Connection::open(&self.options).await?;
        match self.find_stream(&connection).await? {
            None => match known {
                Some(mark) => Err(QueueError::Missing(format!(
                    "the stream {:?} (mark {}) is gone, and with it all that it held",
                    self.options.stream, mark.0
                ))),
                None => stream::create(&connection, &self.options, wanted).await,
            },
            Some(found) => stream::adjust(&connection, &self.options, &found, wanted, known).await,
        }
    }

    async fn delete(&self, mark: &Mark) -> Result<(), QueueError> {
        let connection = Connection::open(&self.options).await?;
        match self.find_stream(&connection).await? {
            None => Ok(()),
            Some(found) => stream::delete(&connection, &found, mark).await,
        }
    }

    async fn state(&self) -> Result<StreamState, QueueError> {
        let connection = Connection::open(&self.options).await?;
        stream::state(&self.stream(&connection).await?).await
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, QueueError> {
        let connection = Connection::open(&self.options).await?;
        Ok(Box::new(NatsPublisher::new(
            connection,
            self.options.stream.clone(),
        )))
    }

    async fn consumer(&self) -> Result<Box<dyn Consumer>, QueueError> {
        let connection = Connection::open(&self.options).await?;
        let stream = self.stream(&connection).await?;
        let consumer = stream::consumer(&stream).await?;
        Ok(Box::new(NatsConsumer::new(connection, consumer)))
    }
}
