//! What operator and runtime say to each other: the configuration that the operator renders into a
//! ConfigMap ([`config`]), and what a pod answers at `GET /state` ([`state`]).

pub mod config;
pub mod state;

pub use config::RuntimeConfig;
pub use state::RuntimeState;

use sha2::{Digest, Sha256};

/// The port of the Service and of the pods' public endpoint.
pub const HTTP_PORT: u16 = 8080;
/// The port of `/livez`, `/readyz`, `/metrics` and `/state`, on the pods only.
pub const ADMIN_PORT: u16 = 9090;
/// The path that records are posted to.
pub const INGEST_PATH: &str = "/api/ingest/message";
/// The directory that the ConfigMap is mounted at, and its only key.
pub const CONFIG_DIRECTORY: &str = "/etc/nomnom/config";
/// The file of the configuration in [`CONFIG_DIRECTORY`]; the key of the ConfigMap.
pub const CONFIG_FILE: &str = "pipeline.json";
/// The directory that the user's Secret is mounted at, optionally.
pub const DATABASE_DIRECTORY: &str = "/etc/nomnom/database";
/// The file of the connection URL in [`DATABASE_DIRECTORY`]; absent while Secret or key are.
pub const DATABASE_URL_FILE: &str = "url";
/// The directory that the receipt Secret is mounted at.
pub const RECEIPT_DIRECTORY: &str = "/etc/nomnom/receipt";
/// The file of the receipt key in [`RECEIPT_DIRECTORY`], 32 bytes; the key of the Secret.
pub const RECEIPT_KEY_FILE: &str = "key";
/// The variable with the fingerprint that the receipt key must have.
pub const RECEIPT_KEY_FINGERPRINT_VARIABLE: &str = "NOMNOM_RECEIPT_KEY_FINGERPRINT";

/// The hash that names a ConfigMap, a ControllerRevision or a key without giving it away: the first 64 bits
/// of SHA-256, as 16 hex digits.
#[must_use]
pub fn content_hash(content: &[u8]) -> String {
    Sha256::digest(content)[..8]
        .iter()
        .fold(String::with_capacity(16), |mut text, byte| {
            text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or_default());
            text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or_default());
            text
        })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_hash_is_the_head_of_sha_256() {
        // FIPS 180-2, example of the message "abc".
        assert_eq!(super::content_hash(b"abc"), "ba7816bf8f01cfea");
    }
}
