//! One event for each condition that changed. A failed event is logged and forgotten: events are hints.

use std::collections::HashSet;

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::warn;

use super::conditions::{find, shorten};

/// The longest note that the API server takes.
const MAX_NOTE_BYTES: usize = 1_024;

/// A recorder of events under the name of a controller.
#[must_use]
pub fn recorder(client: Client, controller: &str, instance: Option<String>) -> Recorder {
    let controller = controller.to_owned();
    Recorder::new(client, Reporter { controller, instance })
}

/// Tells of what differs between two lists of conditions, each reason once. `is_good` says whether a condition is
/// good news.
pub async fn publish_changes(
    recorder: &Recorder,
    object: &ObjectReference,
    (former, new): (&[Condition], &[Condition]),
    is_good: impl Fn(&Condition) -> bool,
) {
    let mut told = HashSet::new();
    for condition in new {
        let is_known = find(former, &condition.type_)
            .is_some_and(|former| former.status == condition.status && former.reason == condition.reason);
        if is_known || !told.insert(condition.reason.as_str()) {
            continue;
        }
        let event = Event {
            type_: if is_good(condition) {
                EventType::Normal
            } else {
                EventType::Warning
            },
            reason: condition.reason.clone(),
            note: Some(shorten(condition.message.clone(), MAX_NOTE_BYTES)),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, object).await {
            warn!(reason = event.reason, %error, "failed to publish an event");
        }
    }
}
