//! Consuming: pulls what waits, and acknowledges so that the server says that it knows.

use std::time::Duration;

use async_nats::jetstream::{
    AckKind, Message,
    consumer::{PullConsumer, pull},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, future::try_join_all};
use tokio::time::timeout;

use super::connection::Connection;
use crate::queue::{Consumer, Delivery, QueueError, Receipt};

/// How long the server may take, beyond what it was told to wait, to say that nothing is there.
const GRACE: Duration = Duration::from_secs(3);

pub(super) struct NatsConsumer {
    connection: Connection,
    consumer: PullConsumer,
}

impl NatsConsumer {
    pub(super) const fn new(connection: Connection, consumer: PullConsumer) -> Self {
        Self { connection, consumer }
    }

    fn lost() -> QueueError {
        QueueError::Unreachable("the connection to NATS broke".to_owned())
    }

    async fn collect(&self, mut batch: pull::Batch, limit: Duration) -> Result<Vec<Delivery>, QueueError> {
        let mut deliveries = Vec::new();
        let all = async {
            while let Some(message) = batch.next().await {
                let message = message.map_err(|error| QueueError::Unreachable(error.to_string()))?;
                deliveries.push(delivery(&message)?);
            }
            Ok(())
        };
        tokio::select! {
            biased;
            result = timeout(limit, all) => match result {
                Ok(result) => result.map(|()| deliveries),
                Err(_) => Err(QueueError::Unreachable(format!("NATS did not answer within {limit:?}"))),
            },
            () = self.connection.ended.cancelled() => Err(Self::lost()),
        }
    }

    async fn answer_all(&self, receipts: &[Receipt], answer: Bytes) -> Result<(), QueueError> {
        if self.connection.has_ended() {
            return Err(Self::lost());
        }
        for receipt in receipts {
            let published = self
                .connection
                .client
                .publish(receipt.0.clone(), answer.clone())
                .await;
            published.map_err(|error| QueueError::Unreachable(error.to_string()))?;
        }
        Ok(())
    }
}

fn delivery(message: &Message) -> Result<Delivery, QueueError> {
    let foreign =
        |error: &dyn std::fmt::Display| QueueError::Refused(format!("a message without a place: {error}"));
    let info = message.info().map_err(|error| foreign(&error))?;
    let (sequence, deliveries) = (info.stream_sequence, info.delivered);
    let reply = message
        .reply
        .as_ref()
        .ok_or_else(|| foreign(&"no reply subject"))?;
    Ok(Delivery {
        sequence,
        deliveries: u64::try_from(deliveries).unwrap_or(1),
        payload: message.payload.clone(),
        receipt: Receipt(reply.to_string()),
    })
}

#[async_trait]
impl Consumer for NatsConsumer {
    async fn pull(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        if self.connection.has_ended() {
            return Err(Self::lost());
        }
        let fetch = self.consumer.fetch().max_messages(max);
        // With a time to wait, the server answers as soon as it has anything.
        let fetch = if wait.is_zero() {
            fetch
        } else {
            fetch.expires(wait)
        };
        let batch = fetch
            .messages()
            .await
            .map_err(|error| QueueError::Unreachable(error.to_string()))?;
        self.collect(batch, wait + GRACE).await
    }

    async fn keep(&mut self, receipts: &[Receipt]) -> Result<(), QueueError> {
        self.answer_all(receipts, AckKind::Progress.into()).await
    }

    async fn acknowledge(&mut self, receipts: &[Receipt]) -> Result<(), QueueError> {
        if self.connection.has_ended() {
            return Err(Self::lost());
        }
        let client = &self.connection.client;
        let all = try_join_all(
            receipts
                .iter()
                .map(|receipt| client.request(receipt.0.clone(), AckKind::Ack.into())),
        );
        tokio::select! {
            biased;
            answers = all => answers
                .map(|_| ())
                .map_err(|error| QueueError::Unreachable(format!("an acknowledgement was not answered: {error}"))),
            () = self.connection.ended.cancelled() => Err(Self::lost()),
        }
    }

    async fn release(&mut self, receipts: &[Receipt], delay: Duration) -> Result<(), QueueError> {
        self.answer_all(receipts, AckKind::Nak(Some(delay)).into()).await
    }
}
