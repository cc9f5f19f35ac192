//! The key of message ids. Created once; immutable; without an owner reference, since a foreground delete takes what
//! is owned while pods that need it still run.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use nomnom_crds::runtime::{RECEIPT_KEY_FILE, config::PipelineIdentity};

use super::{metadata, names};

/// The length of the key, as long as the output of the SHA-256 that it keys (RFC 2104, section 3).
pub const KEY_BYTES: usize = 32;

/// The Secret that holds `key`.
#[must_use]
pub fn build(pipeline: &PipelineIdentity, key: [u8; KEY_BYTES]) -> Secret {
    Secret {
        metadata: metadata::labelled(pipeline, names::receipt_secret(&pipeline.name)),
        data: Some(BTreeMap::from([(
            RECEIPT_KEY_FILE.to_owned(),
            ByteString(key.to_vec()),
        )])),
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}
