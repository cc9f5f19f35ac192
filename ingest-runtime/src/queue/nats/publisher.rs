//! Publishing: what the server refused for certain is told from what nobody knows.

use std::error::Error as _;

use async_nats::{
    Client,
    jetstream::{
        self,
        context::{PublishError as NatsError, PublishErrorKind},
        message::PublishMessage,
    },
};
use async_trait::async_trait;
use tokio::time::{Instant, timeout_at};

use super::connection::Connection;
use crate::queue::{Outgoing, PublishError, Published, Publisher};

/// Bytes that headers and framing take of a message.
const OVERHEAD: usize = 1024;
/// What a full stream says, under an error code that means any failure to store.
const FULL: &str = "maximum bytes exceeded";

pub(super) struct NatsPublisher {
    connection: Connection,
    stream: String,
}

impl NatsPublisher {
    pub(super) const fn new(connection: Connection, stream: String) -> Self {
        Self { connection, stream }
    }

    fn client(&self) -> &Client {
        &self.connection.client
    }
}

#[async_trait]
impl Publisher for NatsPublisher {
    fn max_payload(&self) -> usize {
        self.client().max_payload().saturating_sub(OVERHEAD)
    }

    async fn publish(&mut self, message: Outgoing, deadline: Instant) -> Result<Published, PublishError> {
        if self.connection.has_ended() {
            return Err(PublishError::NotSent(
                "the connection to NATS has ended".to_owned(),
            ));
        }
        if message.payload.len() > self.max_payload() {
            return Err(PublishError::Refused(
                "the message is larger than the server takes".to_owned(),
            ));
        }
        let publish = PublishMessage::build()
            .payload(message.payload)
            .message_id(message.id.to_string())
            .expected_stream(&self.stream);
        let exchange = async {
            let acknowledgement = self
                .connection
                .jetstream
                .send_publish(self.stream.clone(), publish)
                .await?;
            acknowledgement.await
        };
        let unknown = |text: &str| PublishError::Unknown(text.to_owned());
        tokio::select! {
            // An answer that is there already counts.
            biased;
            answer = timeout_at(deadline, exchange) => match answer {
                Ok(Ok(answer)) => Ok(Published { sequence: answer.sequence, is_duplicate: answer.duplicate }),
                Ok(Err(error)) => Err(meaning(&error)),
                Err(_) => Err(unknown("no acknowledgement in time")),
            },
            () = self.connection.ended.cancelled() => Err(unknown("the connection to NATS broke")),
        }
    }
}

/// Definite is a closed list; everything else after the message was handed over is unknown.
fn meaning(error: &NatsError) -> PublishError {
    let text = error.to_string();
    match error.kind() {
        PublishErrorKind::StreamNotFound => {
            return PublishError::Refused("no stream takes the message: nobody answers".to_owned());
        }
        PublishErrorKind::MaxPayloadExceeded => return PublishError::Refused(text),
        _ => {}
    }
    let Some(answer) = error
        .source()
        .and_then(|source| source.downcast_ref::<jetstream::Error>())
    else {
        return PublishError::Unknown(text);
    };
    match answer.error_code() {
        jetstream::ErrorCode::STREAM_STORE_FAILED if text.contains(FULL) => PublishError::Full(text),
        jetstream::ErrorCode::INSUFFICIENT_RESOURCES => PublishError::Full(text),
        jetstream::ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | jetstream::ErrorCode::STREAM_NOT_MATCH => {
            PublishError::Refused(text)
        }
        _ => PublishError::Unknown(text),
    }
}
