//! What a pod answers at `GET /state` on its admin port, and the operator turns into conditions.
//!
//! Read by operators of other releases: fields are added, never renamed, and what is unknown is skipped.

use serde::{Deserialize, Serialize};

use crate::condition::Reason;

/// The most differences that a pod lists: a message of a condition holds at most 32,768 bytes.
pub const MAX_DIFFERENCES: usize = 20;

/// What a pod sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeState {
    /// The hash of the configuration that the pod serves ([`super::content_hash`] of the file).
    pub config_hash: String,
    /// The uid of the pipeline in that configuration.
    pub pipeline_uid: String,
    /// The release of the runtime.
    pub version: String,
    /// The fingerprint of the receipt key that the pod uses ([`super::content_hash`] of it).
    pub receipt_key_fingerprint: String,
    /// The database as the pod sees it.
    pub database: DatabaseState,
}

/// The database as a pod sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseState {
    /// Whether records are stored.
    pub ready: bool,
    /// Why not.
    pub reason: DatabaseReason,
    /// For people: what is wrong and what to do. Never a password.
    #[serde(default)]
    pub message: String,
    /// How tables differ from the spec, at most [`MAX_DIFFERENCES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
    /// The fingerprint of the receipt key that the database knows this pipeline by, once it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt_key_fingerprint: Option<String>,
}

macro_rules! database_reasons {
    ($($name:ident),+ $(,)?) => {
        /// What a pod can say about the database; each is the condition's [`Reason`] of the same name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[allow(missing_docs)] // said at `Reason`
        pub enum DatabaseReason {
            $($name,)+
            /// Not known yet; also whatever a newer release says.
            #[serde(other)]
            DatabaseUnknown,
        }

        impl From<DatabaseReason> for Reason {
            fn from(reason: DatabaseReason) -> Self {
                match reason {
                    $(DatabaseReason::$name => Self::$name,)+
                    DatabaseReason::DatabaseUnknown => Self::DatabaseUnknown,
                }
            }
        }
    };
}

database_reasons!(
    Connected,
    SecretNotFound,
    InvalidUrl,
    AuthenticationFailed,
    DatabaseNotFound,
    Unreachable,
    SchemaMissing,
    TableMissing,
    SchemaMismatch,
    SchemaDrift,
    PermissionDenied,
    ReadOnly,
    ForeignKeyBetweenTargets,
    ReceiptKeyLost,
    DatabaseError,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_of_a_newer_release_is_unknown() {
        assert_eq!(
            serde_json::from_str::<DatabaseReason>("\"Sleepy\"").unwrap(),
            DatabaseReason::DatabaseUnknown
        );
    }
}
