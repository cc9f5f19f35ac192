//! The condition types of an `IngestionPipeline` and their reasons.
//!
//! Types and reasons are part of the API: alerts and scripts are written against them. Each reason has an
//! entry in `docs/runbook.md`, which a test compares with the lists here.

/// The live data path takes records and stores them. Its `observedGeneration` is the generation served.
pub const READY: &str = "Ready";
/// The spec is valid, and what it asks for is allowed in the cluster.
pub const ACCEPTED: &str = "Accepted";
/// The pods reach the database, and its tables are as the spec says.
pub const DATABASE_READY: &str = "DatabaseReady";
/// Pods that take records stand behind the Service.
pub const ENDPOINT_READY: &str = "EndpointReady";
/// Present while the operator works towards the spec, or waits for something to heal by itself.
pub const RECONCILING: &str = "Reconciling";
/// Present when nothing but an edit of this object helps.
pub const STALLED: &str = "Stalled";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Why a condition has its status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// As it stands in conditions, events and metric labels.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

reasons! {
    /// Accepted: the spec is valid.
    Valid,
    /// Accepted, Stalled: the spec contradicts itself.
    InvalidSpec,
    /// Accepted, Stalled: the API server refuses an object that the spec asks for.
    ChildRejected,
    /// Ready: records are accepted and stored.
    Serving,
    /// EndpointReady: at least one pod takes records.
    PodsReady,
    /// EndpointReady, Ready: no pod takes records yet.
    PodsNotReady,
    /// Reconciling, Ready: pods with the newest configuration take over.
    RollingOut,
    /// EndpointReady, Stalled or Reconciling: an object under the name of a child belongs to somebody else.
    ForeignObject,
    /// Reconciling: the API server refuses what the operator asks, for lack of rights, quota or by a policy.
    Forbidden,
    /// Reconciling: a request to the API server failed and is tried again.
    ApiError,
    /// EndpointReady, Stalled: the receipt key that earlier message ids were made with is gone or another one.
    ReceiptKeyLost,
    /// DatabaseReady: connected, and the tables are as the spec says.
    Connected,
    /// DatabaseReady: no pod has said yet what it sees of the database.
    DatabaseUnknown,
    /// DatabaseReady: the Secret, or the key in it, is missing.
    SecretNotFound,
    /// DatabaseReady: the value in the Secret is no PostgreSQL URL.
    InvalidUrl,
    /// DatabaseReady: PostgreSQL refuses user or password.
    AuthenticationFailed,
    /// DatabaseReady: the server has no database of that name.
    DatabaseNotFound,
    /// DatabaseReady: the server cannot be reached, or takes no connection now.
    Unreachable,
    /// DatabaseReady: the PostgreSQL schema does not exist.
    SchemaMissing,
    /// DatabaseReady: a table does not exist, and `schemaPolicy` does not let the pods create it.
    TableMissing,
    /// DatabaseReady: a table has other columns than the spec.
    SchemaMismatch,
    /// DatabaseReady: rows of every kind fail although the columns are as the spec says.
    SchemaDrift,
    /// DatabaseReady: the user lacks a right.
    PermissionDenied,
    /// DatabaseReady: the server takes no writes, as a standby after a fail-over.
    ReadOnly,
    /// DatabaseReady: a foreign key joins two target tables, whose rows are committed in any order.
    ForeignKeyBetweenTargets,
    /// DatabaseReady: another error of the database.
    DatabaseError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_meet_the_api_conventions() {
        for reason in Reason::ALL {
            let text = reason.as_str();
            assert!(text.starts_with(|c: char| c.is_ascii_uppercase()), "{text}");
            assert!(text.chars().all(|c| c.is_ascii_alphanumeric()), "{text}");
        }
    }
}
