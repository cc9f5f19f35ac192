//! The stream and its consumer: made, adjusted where that is safe, and otherwise left alone.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::{
    consumer::{self, AckPolicy, DeliverPolicy, pull},
    stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream},
};

use super::{CONSUMER, NatsOptions, connection::Connection};
use crate::queue::{Ensured, Mark, QueueError, StreamSettings, StreamState};

/// Whose stream it is.
const PIPELINE: &str = "nomnom.dev/pipeline-uid";
/// How long the server remembers an envelope's id: longer than a publisher tries, which is a request's time.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(10);

pub(super) async fn create(
    connection: &Connection,
    options: &NatsOptions,
    wanted: &StreamSettings,
) -> Result<Ensured, QueueError> {
    let info = connection
        .jetstream
        .create_stream(config(options, wanted)?)
        .await
        .map_err(|error| QueueError::Refused(format!("the stream cannot be created: {error}")))?
        .cached_info()
        .clone();
    check_owner(&info, options)?;
    ensure_consumer(connection, options, wanted).await?;
    Ok(Ensured {
        mark: mark(&info),
        created: true,
    })
}

/// Brings a stream that is there to what is wanted.
pub(super) async fn adjust(
    connection: &Connection,
    options: &NatsOptions,
    stream: &Stream,
    wanted: &StreamSettings,
    known: Option<&Mark>,
) -> Result<Ensured, QueueError> {
    let info = stream.cached_info();
    check_owner(info, options)?;
    let found = mark(info);
    if let Some(known) = known.filter(|known| **known != found) {
        return Err(QueueError::Missing(format!(
            "the stream {:?} is not the one that was used before: it was made anew (mark {}, before {}), and what the \
             former one held is gone",
            options.stream, found.0, known.0
        )));
    }
    let target = config(options, wanted)?;
    check_safe(info, &target)?;
    let settings = |config: &Config| (config.max_bytes, config.num_replicas);
    // An update that changes nothing has lost delayed messages of work queues (nats-server#5526).
    if settings(&info.config) != settings(&target) {
        let changed = Config {
            max_bytes: target.max_bytes,
            num_replicas: target.num_replicas,
            ..info.config.clone()
        };
        connection
            .jetstream
            .update_stream(changed)
            .await
            .map_err(|error| QueueError::Refused(format!("the stream cannot be changed: {error}")))?;
    }
    ensure_consumer(connection, options, wanted).await?;
    Ok(Ensured {
        mark: found,
        created: false,
    })
}

/// Refuses whatever could lose what the stream holds, or already did.
fn check_safe(info: &Info, target: &Config) -> Result<(), QueueError> {
    let found = &info.config;
    let problem = if found.retention != RetentionPolicy::WorkQueue {
        "it is no work queue, and cannot become one".to_owned()
    } else if found.discard != DiscardPolicy::New {
        "it drops old messages when it is full: set discard to new".to_owned()
    } else if found.storage != StorageType::File {
        "it is kept in memory".to_owned()
    } else if !found.max_age.is_zero() || found.max_messages_per_subject > 0 {
        "it drops messages by age or number: remove max_age and max_msgs_per_subject".to_owned()
    } else if found.num_replicas > target.num_replicas {
        format!(
            "it has {} replicas, and gives none of them up for {}",
            found.num_replicas, target.num_replicas
        )
    } else if u64::try_from(target.max_bytes).unwrap_or(0) < info.state.bytes {
        format!(
            "it holds {} bytes, more than the {} that it may",
            info.state.bytes, target.max_bytes
        )
    } else {
        return Ok(());
    };
    Err(QueueError::Unsafe(format!(
        "the stream {:?} stays as it is: {problem}",
        found.name
    )))
}

fn check_owner(info: &Info, options: &NatsOptions) -> Result<(), QueueError> {
    if info.config.metadata.get(PIPELINE) == Some(&options.pipeline) {
        return Ok(());
    }
    Err(QueueError::Refused(format!(
        "the stream {:?} is not this pipeline's: rename it, or give the pipeline another name",
        info.config.name
    )))
}

fn config(options: &NatsOptions, wanted: &StreamSettings) -> Result<Config, QueueError> {
    let too_large = |_| QueueError::Unsupported("a stream of that size is not possible".to_owned());
    Ok(Config {
        name: options.stream.clone(),
        subjects: vec![options.stream.clone()],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        max_bytes: i64::try_from(wanted.max_bytes).map_err(too_large)?,
        num_replicas: usize::try_from(wanted.replicas).map_err(too_large)?,
        duplicate_window: DUPLICATE_WINDOW,
        deny_delete: true,
        deny_purge: true,
        description: Some("records on their way to a database; managed by nomnom".to_owned()),
        metadata: HashMap::from([(PIPELINE.to_owned(), options.pipeline.clone())]),
        ..Config::default()
    })
}

async fn ensure_consumer(
    connection: &Connection,
    options: &NatsOptions,
    wanted: &StreamSettings,
) -> Result<(), QueueError> {
    let config = pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: wanted.ack_wait,
        max_deliver: -1,
        max_ack_pending: i64::from(wanted.max_unacknowledged),
        ..pull::Config::default()
    };
    // Creates it, changes what differs, and leaves alone what does not.
    connection
        .jetstream
        .create_consumer_on_stream(config, options.stream.clone())
        .await
        .map_err(|error| QueueError::Refused(format!("the consumer cannot be created: {error}")))?;
    Ok(())
}

pub(super) async fn consumer(stream: &Stream) -> Result<consumer::PullConsumer, QueueError> {
    stream
        .get_consumer(CONSUMER)
        .await
        .map_err(|error| QueueError::Missing(format!("the stream has no consumer {CONSUMER:?}: {error}")))
}

pub(super) async fn delete(
    connection: &Connection,
    stream: &Stream,
    wanted: &Mark,
) -> Result<(), QueueError> {
    let info = stream.cached_info();
    let found = mark(info);
    if found != *wanted {
        return Err(QueueError::Unsafe(format!(
            "the stream {:?} is another one than was meant (mark {}, not {}), and stays",
            info.config.name, found.0, wanted.0
        )));
    }
    connection
        .jetstream
        .delete_stream(&info.config.name)
        .await
        .map_err(|error| QueueError::Refused(format!("the stream cannot be deleted: {error}")))?;
    Ok(())
}

pub(super) async fn state(stream: &Stream) -> Result<StreamState, QueueError> {
    let info = stream.cached_info();
    let consumer = consumer(stream).await?;
    let messages = info.state.messages;
    let last = info.state.last_sequence;
    Ok(StreamState {
        mark: mark(info),
        first: if messages == 0 {
            last + 1
        } else {
            info.state.first_sequence
        },
        last,
        messages,
        bytes: info.state.bytes,
        max_bytes: u64::try_from(info.config.max_bytes).unwrap_or(0),
        unacknowledged: consumer.cached_info().num_ack_pending as u64,
        oldest: (messages > 0).then(|| SystemTime::from(info.state.first_timestamp)),
    })
}

/// The time of its creation, to the nanosecond, which nobody can choose.
fn mark(info: &Info) -> Mark {
    Mark(info.created.unix_timestamp_nanos().to_string())
}
