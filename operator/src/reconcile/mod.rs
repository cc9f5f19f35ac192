//! The steps of a reconcile, in their order: observe (all reads), validate, apply (with the receipt key before it, and
//! scale and prune after it), status. What goes wrong on the way is a [`Problem`] that the status tells, and ends
//! neither the pass nor what runs.

pub mod accept;
pub mod apply;
pub mod cleanup;
pub mod observe;
pub mod receipt;
pub mod scale;
pub mod status;
pub mod validate;

use nomnom_crds::condition::Reason;

use crate::kube_api::apply::RequestError;

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
