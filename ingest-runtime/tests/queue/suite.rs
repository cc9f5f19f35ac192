//! The conformance suite: written against the traits alone. A back end runs it by a [`Broker`] and a list of tests.

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use ingest_runtime::queue::{
    Consumer, Delivery, Outgoing, PublishError, Published, Publisher, Queue, QueueError, Sequence,
    StreamSettings,
};
use tokio::time::Instant;
use uuid::Uuid;

/// A broker that the suite may stop, kill and freeze.
#[async_trait]
pub trait Broker: Send {
    /// A queue of this name.
    fn queue(&self, name: &str) -> Box<dyn Queue>;
    /// Kills the broker and starts it again on its data.
    async fn crash(&mut self);
    /// Connections stay open, and nothing answers.
    fn pause(&self);
    fn resume(&self);
    /// Deletes the stream behind everybody's back.
    async fn remove(&self, name: &str);
}

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
pub const ACK_WAIT: Duration = Duration::from_secs(2);

pub fn settings() -> StreamSettings {
    StreamSettings {
        max_bytes: 8 * 1024 * 1024,
        replicas: 1,
        ack_wait: ACK_WAIT,
        max_unacknowledged: 1_000,
    }
}

fn message(text: impl Into<Bytes>) -> Outgoing {
    Outgoing {
        id: Uuid::from_u128(rand::random()),
        payload: text.into(),
    }
}

async fn publish(publisher: &mut dyn Publisher, message: Outgoing) -> Result<Published, PublishError> {
    publisher.publish(message, Instant::now() + PATIENCE).await
}

async fn publish_texts(queue: &dyn Queue, texts: impl IntoIterator<Item = String>) -> Vec<Sequence> {
    let mut publisher = queue.publisher().await.unwrap();
    let mut sequences = Vec::new();
    for text in texts {
        sequences.push(publish(&mut *publisher, message(text)).await.unwrap().sequence);
    }
    sequences
}

/// Pulls until `count` messages are there.
async fn pull(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let start = Instant::now();
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let wanted = count - deliveries.len();
        deliveries.extend(consumer.pull(wanted, Duration::from_secs(1)).await.unwrap());
        assert!(
            start.elapsed() < PATIENCE,
            "{} of {count} messages came",
            deliveries.len()
        );
    }
    deliveries
}

async fn acknowledge(consumer: &mut dyn Consumer, deliveries: &[Delivery]) {
    let receipts: Vec<_> = deliveries
        .iter()
        .map(|delivery| delivery.receipt.clone())
        .collect();
    consumer.acknowledge(&receipts).await.unwrap();
}

/// What is acknowledged is gone, what is not comes again, and the state tells both.
pub async fn each_message_is_delivered_until_it_is_acknowledged(broker: &mut dyn Broker) {
    let queue = broker.queue("deliveries");
    queue.ensure(&settings(), None).await.unwrap();
    let empty = queue.state().await.unwrap();
    assert_eq!(
        (empty.first, empty.last, empty.messages, empty.oldest),
        (1, 0, 0, None)
    );

    let sequences = publish_texts(&*queue, (0..10).map(|n| format!("message {n}"))).await;
    assert_eq!(sequences, (1..=10).collect::<Vec<_>>());
    let state = queue.state().await.unwrap();
    assert_eq!(
        (state.first, state.last, state.messages, state.unacknowledged),
        (1, 10, 10, 0)
    );
    assert!(state.oldest.is_some() && state.bytes > 0);

    let mut consumer = queue.consumer().await.unwrap();
    let first = pull(&mut *consumer, 4).await;
    assert_eq!(
        first.iter().map(|delivery| delivery.sequence).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    assert_eq!(first[2].payload, "message 2");
    assert_eq!(queue.state().await.unwrap().unacknowledged, 4);
    acknowledge(&mut *consumer, &first[1..]).await;
    let state = queue.state().await.unwrap();
    assert_eq!((state.first, state.messages, state.unacknowledged), (1, 7, 1));
    consumer
        .release(&[first[0].receipt.clone()], Duration::ZERO)
        .await
        .unwrap();

    let rest = pull(&mut *consumer, 7).await;
    let again: BTreeSet<_> = rest
        .iter()
        .map(|delivery| (delivery.sequence, delivery.deliveries))
        .collect();
    let expected: BTreeSet<_> = [(1, 2)]
        .into_iter()
        .chain((5..=10).map(|sequence| (sequence, 1)))
        .collect();
    assert_eq!(again, expected);
    acknowledge(&mut *consumer, &rest).await;
    let state = queue.state().await.unwrap();
    assert_eq!(
        (state.first, state.last, state.messages, state.unacknowledged),
        (11, 10, 0, 0)
    );
    assert!(consumer.pull(1, Duration::ZERO).await.unwrap().is_empty());
}

/// A consumer that is gone gives back what it held; one that keeps it does not lose it.
pub async fn what_is_kept_stays_and_what_is_dropped_comes_again(broker: &mut dyn Broker) {
    let queue = broker.queue("kept");
    queue.ensure(&settings(), None).await.unwrap();
    publish_texts(&*queue, ["kept".to_owned(), "dropped".to_owned()]).await;
    let (mut keeper, mut dropper) = (queue.consumer().await.unwrap(), queue.consumer().await.unwrap());
    let kept = pull(&mut *keeper, 1).await;
    drop(pull(&mut *dropper, 1).await);
    drop(dropper);
    let start = Instant::now();
    let mut other = queue.consumer().await.unwrap();
    let mut again = Vec::new();
    // Twice its time: what was kept would have come again by now.
    while start.elapsed() < ACK_WAIT * 2 || again.is_empty() {
        keeper.keep(&[kept[0].receipt.clone()]).await.unwrap();
        again.extend(other.pull(10, ACK_WAIT / 4).await.unwrap());
        acknowledge(&mut *other, &again).await;
        assert!(start.elapsed() < PATIENCE);
    }
    assert_eq!(
        again
            .iter()
            .map(|delivery| &delivery.payload[..])
            .collect::<Vec<_>>(),
        [b"dropped"]
    );
    assert_eq!(again[0].deliveries, 2);
    acknowledge(&mut *keeper, &kept).await;
    assert_eq!(queue.state().await.unwrap().messages, 0);
}

/// A second attempt under the same id puts nothing into the stream.
pub async fn a_second_attempt_is_a_duplicate(broker: &mut dyn Broker) {
    let queue = broker.queue("duplicates");
    queue.ensure(&settings(), None).await.unwrap();
    let outgoing = message("once");
    let mut publisher = queue.publisher().await.unwrap();
    let first = publish(&mut *publisher, outgoing.clone()).await.unwrap();
    assert!(!first.is_duplicate);
    drop(publisher);
    broker.crash().await;
    let mut publisher = queue.publisher().await.unwrap();
    let second = publish(&mut *publisher, outgoing).await.unwrap();
    assert_eq!((second.sequence, second.is_duplicate), (first.sequence, true));
    assert_eq!(queue.state().await.unwrap().messages, 1);
}

/// A full stream refuses what is new, drops nothing that is old, and takes more when there is room.
pub async fn a_full_stream_refuses_for_certain(broker: &mut dyn Broker) {
    let queue = broker.queue("full");
    let small = StreamSettings {
        max_bytes: 64 * 1024,
        ..settings()
    };
    queue.ensure(&small, None).await.unwrap();
    let mut publisher = queue.publisher().await.unwrap();
    let mut stored = Vec::new();
    let refusal = loop {
        match publish(&mut *publisher, message(vec![b'x'; 8 * 1024])).await {
            Ok(stored_now) => stored.push(stored_now.sequence),
            Err(refusal) => break refusal,
        }
    };
    assert!(matches!(refusal, PublishError::Full(_)), "{refusal:?}");
    assert!(stored.len() > 3);
    let state = queue.state().await.unwrap();
    assert_eq!((state.first, state.messages), (1, stored.len() as u64));
    assert!(state.bytes <= state.max_bytes);

    let mut consumer = queue.consumer().await.unwrap();
    let delivered = pull(&mut *consumer, stored.len()).await;
    assert_eq!(
        delivered
            .iter()
            .map(|delivery| delivery.sequence)
            .collect::<Vec<_>>(),
        stored
    );
    acknowledge(&mut *consumer, &delivered).await;
    // The connection is still good: a refusal is an answer.
    publish(&mut *publisher, message("there is room")).await.unwrap();
}

pub async fn a_message_that_is_too_large_is_refused_for_certain(broker: &mut dyn Broker) {
    let queue = broker.queue("large");
    queue.ensure(&settings(), None).await.unwrap();
    let mut publisher = queue.publisher().await.unwrap();
    let largest = publisher.max_payload();
    let refusal = publish(&mut *publisher, message(vec![0; largest + 1]))
        .await
        .unwrap_err();
    assert!(matches!(refusal, PublishError::Refused(_)), "{refusal:?}");
    publish(&mut *publisher, message(vec![0; largest])).await.unwrap();
    assert_eq!(queue.state().await.unwrap().messages, 1);
}

/// A broker that falls silent leaves what was handed over unknown; the connection is of no use any more, and what it
/// was given is never sent later.
pub async fn silence_is_unknown_and_nothing_is_sent_later(broker: &mut dyn Broker) {
    let queue = broker.queue("silence");
    queue.ensure(&settings(), None).await.unwrap();
    let mut publisher = queue.publisher().await.unwrap();
    publish(&mut *publisher, message("before")).await.unwrap();
    broker.pause();
    let answer = publisher
        .publish(message("unknown"), Instant::now() + Duration::from_millis(300))
        .await;
    broker.resume();
    assert!(matches!(answer, Err(PublishError::Unknown(_))), "{answer:?}");
    drop(publisher);

    let mut publisher = queue.publisher().await.unwrap();
    broker.crash().await;
    let start = Instant::now();
    while publish(&mut *publisher, message("lost"))
        .await
        .unwrap_err()
        .is_definite()
    {
        // Not handed over: its end was noticed first. What counts is that it stays so.
        if start.elapsed() > Duration::from_secs(2) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut fresh = queue.publisher().await.unwrap();
    let after = publish(&mut *fresh, message("after")).await.unwrap().sequence;
    assert!(publish(&mut *publisher, message("lost")).await.is_err());
    let state = queue.state().await.unwrap();
    // "before", perhaps "unknown" and one "lost" that was under way, and "after", which is the last.
    assert_eq!(state.last, after, "{state:?}");
    assert!((2..=4).contains(&state.messages), "{state:?}");
}

/// An acknowledgement belongs to the connection that delivered.
pub async fn an_acknowledgement_does_not_outlive_its_connection(broker: &mut dyn Broker) {
    let queue = broker.queue("acknowledgements");
    queue.ensure(&settings(), None).await.unwrap();
    publish_texts(&*queue, ["first".to_owned()]).await;
    let mut consumer = queue.consumer().await.unwrap();
    let held = pull(&mut *consumer, 1).await;
    broker.remove("acknowledgements").await;
    broker.crash().await;
    queue.ensure(&settings(), None).await.unwrap();
    publish_texts(&*queue, ["another, at the same place".to_owned()]).await;
    let answer = consumer.acknowledge(&[held[0].receipt.clone()]).await;
    assert!(matches!(answer, Err(QueueError::Unreachable(_))), "{answer:?}");
    assert!(consumer.pull(1, Duration::ZERO).await.is_err());
    let mut consumer = queue.consumer().await.unwrap();
    assert_eq!(
        pull(&mut *consumer, 1).await[0].payload,
        "another, at the same place"
    );
}

/// What was acknowledged by the broker is there when it has been killed.
pub async fn nothing_acknowledged_is_lost_by_a_crash(broker: &mut dyn Broker) {
    let queue = broker.queue("crash");
    let mark = queue.ensure(&settings(), None).await.unwrap().mark;
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        let mut publisher = queue.publisher().await.unwrap();
        for n in 0..50 {
            let text = format!("{round} {n}");
            publish(&mut *publisher, message(text.clone())).await.unwrap();
            acknowledged.insert(text);
        }
        broker.crash().await;
    }
    assert_eq!(queue.state().await.unwrap().mark, mark);
    let mut consumer = queue.consumer().await.unwrap();
    let delivered = pull(&mut *consumer, acknowledged.len()).await;
    let texts: BTreeSet<_> = delivered
        .iter()
        .map(|delivery| String::from_utf8(delivery.payload.to_vec()).unwrap())
        .collect();
    assert_eq!(texts, acknowledged);
}

/// A stream is made once; asking again changes nothing, and what is unsafe is refused.
pub async fn a_stream_is_ensured_and_never_made_smaller_than_what_it_holds(broker: &mut dyn Broker) {
    let queue = broker.queue("ensured");
    let first = queue.ensure(&settings(), None).await.unwrap();
    assert!(first.created);
    let again = queue.ensure(&settings(), Some(&first.mark)).await.unwrap();
    assert_eq!((again.mark, again.created), (first.mark.clone(), false));
    publish_texts(&*queue, (0..10).map(|_| "x".repeat(1_000))).await;
    let larger = StreamSettings {
        max_bytes: 16 * 1024 * 1024,
        ack_wait: ACK_WAIT * 3,
        ..settings()
    };
    queue.ensure(&larger, Some(&first.mark)).await.unwrap();
    assert_eq!(queue.state().await.unwrap().max_bytes, larger.max_bytes);
    let too_small = StreamSettings {
        max_bytes: 5_000,
        ..settings()
    };
    let refusal = queue.ensure(&too_small, Some(&first.mark)).await.unwrap_err();
    assert!(matches!(refusal, QueueError::Unsafe(_)), "{refusal:?}");
    let state = queue.state().await.unwrap();
    assert_eq!((state.messages, state.max_bytes), (10, larger.max_bytes));
}

/// A stream that was known and is gone, or is another one, is never made anew without a word.
pub async fn a_stream_that_is_gone_is_told(broker: &mut dyn Broker) {
    let queue = broker.queue("gone");
    let missing = |error: QueueError| assert!(matches!(error, QueueError::Missing(_)), "{error:?}");
    missing(queue.state().await.unwrap_err());
    let former = queue.ensure(&settings(), None).await.unwrap().mark;
    let mut publisher = queue.publisher().await.unwrap();
    broker.remove("gone").await;
    missing(queue.ensure(&settings(), Some(&former)).await.unwrap_err());
    missing(queue.state().await.unwrap_err());
    let refusal = publish(&mut *publisher, message("x")).await.unwrap_err();
    assert!(refusal.is_definite(), "{refusal:?}");
    queue.delete(&former).await.unwrap();

    let present = queue.ensure(&settings(), None).await.unwrap().mark;
    assert_ne!(present, former);
    missing(queue.ensure(&settings(), Some(&former)).await.unwrap_err());
    let refusal = queue.delete(&former).await.unwrap_err();
    assert!(matches!(refusal, QueueError::Unsafe(_)), "{refusal:?}");
    assert_eq!(queue.state().await.unwrap().mark, present);
    queue.delete(&present).await.unwrap();
    missing(queue.state().await.unwrap_err());
}

/// Many consumers share the messages: each goes to one of them.
pub async fn consumers_share_the_messages(broker: &mut dyn Broker) {
    let queue = broker.queue("shared");
    queue.ensure(&settings(), None).await.unwrap();
    publish_texts(&*queue, (0..40).map(|n| n.to_string())).await;
    let mut seen = BTreeSet::new();
    let mut consumers = Vec::new();
    for _ in 0..4 {
        consumers.push(queue.consumer().await.unwrap());
    }
    while seen.len() < 40 {
        for consumer in &mut consumers {
            for delivery in consumer.pull(3, Duration::ZERO).await.unwrap() {
                assert!(seen.insert(delivery.sequence), "{} came twice", delivery.sequence);
                acknowledge(&mut **consumer, &[delivery]).await;
            }
        }
    }
    assert_eq!(queue.state().await.unwrap().messages, 0);
}
