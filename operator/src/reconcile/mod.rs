//! The steps of a reconcile, in their order: observe (reads), accept (which spec is in use), apply (with the receipt key
//! before it, and scale and prune after it), status. What goes wrong on the way is a [`Problem`] that the status tells, and ends
//! neither the pass nor what runs.

pub mod accept;
pub mod apply;
pub mod cleanup;
pub mod observe;
pub mod receipt;
pub mod scale;
pub mod status;
pub mod validate;

use std::time::Duration;

use nomnom_crds::condition::Reason;
use tokio::time::timeout;

use crate::kube_api::apply::RequestError;

/// The client repeats requests by itself, up to minutes; a step that takes longer than this is tried anew.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Why something that was to be done was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// For machines.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// The kind of the child that it is about.
    pub kind: String,
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        let reason = match error.code() {
            Some(403) => Reason::Forbidden,
            Some(400 | 422) => Reason::ChildRejected,
            _ => Reason::ApiError,
        };
        let cause = match &error.source {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        Self {
            reason,
            message: format!("{error}: {cause}"),
            kind: error.kind,
        }
    }
}

impl Problem {
    /// Whether nothing but another spec helps, where this is why the written one was refused.
    #[must_use]
    pub fn needs_edit(&self) -> bool {
        matches!(self.reason, Reason::InvalidSpec | Reason::ChildRejected)
    }

    /// A child's name is taken.
    #[must_use]
    pub fn foreign(kind: &str, namespace: &str, name: &str, whose: &str) -> Self {
        Self {
            reason: Reason::ForeignObject,
            message: format!(
                "{kind} {namespace}/{name} {whose}: rename or remove it, nomnom does not touch it"
            ),
            kind: kind.to_owned(),
        }
    }
}

/// Work that is given up where it takes too long.
pub async fn in_time<T>(step: &str, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    timeout(STEP_TIMEOUT, work).await.unwrap_or_else(|_| {
        Err(Problem {
            reason: Reason::ApiError,
            message: format!("{step} took longer than {} s", STEP_TIMEOUT.as_secs()),
            kind: String::new(),
        })
    })
}
