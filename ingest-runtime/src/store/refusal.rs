//! Why the database takes no rows now, as it is told to clients (503) and to the operator (`/state`).

use std::time::Duration;

use nomnom_crds::runtime::state::{DatabaseReason, DatabaseState};

use super::{Outcome, Unavailable};

/// When a client should try again where nothing better is known: about when the next probe is over.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why the database takes no rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: DatabaseReason,
    /// What is wrong and what to do; the same for the same fault, and without any part of the URL.
    pub(super) message: String,
    /// How tables differ from the spec.
    pub(super) differences: Vec<String>,
    pub(super) retry_after: Duration,
}

impl Refusal {
    pub(super) fn new(reason: DatabaseReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            differences: Vec::new(),
            retry_after: RETRY_AFTER,
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        Outcome::Unavailable {
            reason: self.reason,
            retry_after: jittered(self.retry_after),
        }
    }

    pub(super) fn unavailable(&self) -> Unavailable {
        Unavailable {
            reason: self.reason,
            retry_after: jittered(self.retry_after),
        }
    }

    pub(super) fn state(&self, receipt_key_fingerprint: Option<String>) -> DatabaseState {
        DatabaseState {
            ready: false,
            reason: self.reason,
            message: self.message.clone(),
            differences: self.differences.clone(),
            receipt_key_fingerprint,
        }
    }
}

/// A wait that is up to a fifth longer or shorter, so that many who failed together do not come back together.
pub(super) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.8..1.2))
}
