//! Message ids: UUIDs of version 8 that say "we issued this" without a write.
//!
//! 48 bits of milliseconds, 12 of a counter, 30 of a process nonce, and 32 of a MAC under the pipeline's receipt
//! key. The first bit of the milliseconds tells an id that was derived from an idempotency key: such an id holds 89
//! bits of another MAC in place of time, counter and nonce, so that the same key and record give the same id from
//! every pod. Nothing here reads a file or a clock of its own accord but [`Receipts::issue`] and [`Receipts::verify`].

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The length of a receipt key in bytes: that of the MAC's hash.
pub const KEY_BYTES: usize = 32;
/// How far ahead another pod's clock may be. Whoever cannot make the MAC cannot make a time either, so this is
/// no matter of security: an id that we issued must not look forged because a clock was off by hours.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(24 * 60 * 60);

/// Tells an id derived from an idempotency key; as a time, it would be in the year 6429.
const KEYED: u64 = 1 << 47;
const COUNTER_BITS: u32 = 12;
const NONCE_BITS: u32 = 30;
/// The bytes of an id that its MAC covers; the MAC is the rest.
const COVERED: usize = 12;

/// What an id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Issued by a pod of this pipeline at a time since 1970.
    Issued {
        /// When.
        at: Duration,
    },
    /// Derived from an idempotency key by a pod of this pipeline.
    Keyed,
    /// Of somebody else's making, or of another pipeline.
    Forged,
}

/// What an idempotency key and a record make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedId {
    /// The id, the same for the same key and record.
    pub id: Uuid,
    /// The hash of the key, the same for every record.
    pub key_hash: [u8; 32],
}

/// Makes and checks the ids of one pipeline.
#[derive(Debug)]
pub struct Receipts {
    /// HMACs that have read their key already; cloned for each use.
    id_mac: Hmac<Sha256>,
    payload_mac: Hmac<Sha256>,
    key_mac: Hmac<Sha256>,
    nonce: u64,
    /// Milliseconds and counter of the last id.
    last: AtomicU64,
}

impl Receipts {
    /// Ids under `key`, which is the pipeline's secret.
    #[must_use]
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self {
            id_mac: purpose(key, b"nomnom message id"),
            payload_mac: purpose(key, b"nomnom keyed message"),
            key_mac: purpose(key, b"nomnom idempotency key"),
            nonce: u64::from(rand::random::<u32>()) & ((1 << NONCE_BITS) - 1),
            last: AtomicU64::new(0),
        }
    }

    /// A new id, greater than every one before it, also when the clock goes back.
    #[must_use]
    pub fn issue(&self) -> Uuid {
        self.issue_at(now())
    }

    fn issue_at(&self, at: Duration) -> Uuid {
        let now = (millis(at) & (KEYED - 1)) << COUNTER_BITS;
        let next = |last: u64| now.max(last + 1);
        // A counter that is full goes on with the next millisecond.
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        let time_and_counter = next(last.unwrap_or_else(|last| last));
        self.seal(
            time_and_counter >> COUNTER_BITS,
            time_and_counter & ((1 << COUNTER_BITS) - 1),
            self.nonce,
        )
    }

    /// The id of the record with this index in a body, for a client's idempotency key.
    #[must_use]
    pub fn issue_keyed(&self, client: &str, key: &str, index: u32, record: &[u8]) -> KeyedId {
        let mut key_mac = self.key_mac.clone();
        for part in [client, key] {
            key_mac.update(&(part.len() as u64).to_be_bytes());
            key_mac.update(part.as_bytes());
        }
        key_mac.update(&index.to_be_bytes());
        let key_hash: [u8; 32] = key_mac.finalize().into_bytes().into();

        let mut payload_mac = self.payload_mac.clone();
        payload_mac.update(&key_hash);
        payload_mac.update(&Sha256::digest(record));
        let derived: [u8; 32] = payload_mac.finalize().into_bytes().into();
        let (time, counter) = (word(&derived, 0) >> 16, word(&derived, 8));
        let id = self.seal(KEYED | time & (KEYED - 1), counter & 0xFFF, word(&derived, 16));
        KeyedId { id, key_hash }
    }

    /// Whether `id` is one of ours.
    #[must_use]
    pub fn verify(&self, id: Uuid) -> Verdict {
        self.verify_at(id, now())
    }

    fn verify_at(&self, id: Uuid, now: Duration) -> Verdict {
        let bytes = id.as_bytes();
        let (covered, tag) = bytes.split_at(COVERED);
        let is_ours = self
            .id_mac
            .clone()
            .chain_update(covered)
            .verify_truncated_left(tag);
        if is_ours.is_err() {
            return Verdict::Forged;
        }
        let time = word(bytes, 0) >> 16;
        if time & KEYED != 0 {
            return Verdict::Keyed;
        }
        // Where the clock went back, this process is ahead of it.
        let latest = millis(now + MAX_CLOCK_SKEW).max(self.last.load(Ordering::Relaxed) >> COUNTER_BITS);
        if time > latest {
            return Verdict::Forged;
        }
        Verdict::Issued {
            at: Duration::from_millis(time),
        }
    }

    /// Puts an id together: version 8 in 4 bits, the variant in 2, the MAC over all before it.
    fn seal(&self, time: u64, counter: u64, nonce: u64) -> Uuid {
        let mut bytes = [0; 16];
        let high = time << 16 | 0x8000 | counter;
        let low = (0b10 << NONCE_BITS | nonce & ((1 << NONCE_BITS) - 1)) << 32;
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        let tag = self
            .id_mac
            .clone()
            .chain_update(&bytes[..COVERED])
            .finalize()
            .into_bytes();
        bytes[COVERED..].copy_from_slice(&tag[..16 - COVERED]);
        Uuid::from_bytes(bytes)
    }
}

/// A MAC of its own for each use of the key, so that what one use shows says nothing about another.
fn purpose(key: &[u8; KEY_BYTES], name: &[u8]) -> Hmac<Sha256> {
    let derived: [u8; KEY_BYTES] = keyed(key).chain_update(name).finalize().into_bytes().into();
    keyed(&derived)
}

/// HMAC fills a key up with zeros to the block of its hash.
fn keyed(key: &[u8; KEY_BYTES]) -> Hmac<Sha256> {
    let mut block = [0; 64];
    block[..KEY_BYTES].copy_from_slice(key);
    Hmac::new(&block.into())
}

/// The 8 bytes at `offset`.
fn word(bytes: &[u8], offset: usize) -> u64 {
    bytes[offset..offset + 8]
        .iter()
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn receipts() -> Receipts {
        Receipts::new(&[7; KEY_BYTES])
    }

    #[test]
    fn an_id_is_a_uuid_of_version_8_that_holds_its_time() {
        let receipts = receipts();
        let id = receipts.issue_at(NOW);
        assert_eq!(id.get_version_num(), 8);
        assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
        assert_eq!(receipts.verify_at(id, NOW), Verdict::Issued { at: NOW });
    }

    #[test]
    fn ids_ascend_through_a_full_counter_and_a_clock_that_goes_back() {
        let receipts = receipts();
        let mut last = receipts.issue_at(NOW);
        for step in 0..10_000 {
            let hour = Duration::from_secs(3600);
            let id = receipts.issue_at(if step < 5_000 { NOW } else { NOW - 48 * hour });
            assert!(id > last);
            assert_ne!(receipts.verify_at(id, NOW - 48 * hour), Verdict::Forged);
            last = id;
        }
    }

    #[test]
    fn every_changed_bit_is_a_forgery() {
        let receipts = receipts();
        let keyed = receipts.issue_keyed("", "k", 0, b"r").id;
        for id in [receipts.issue_at(NOW), keyed] {
            for bit in 0..128 {
                let forged = Uuid::from_u128(id.as_u128() ^ 1 << bit);
                assert_eq!(receipts.verify_at(forged, NOW), Verdict::Forged, "bit {bit}");
            }
        }
        assert_eq!(receipts.verify_at(Uuid::nil(), NOW), Verdict::Forged);
        let other = Receipts::new(&[8; KEY_BYTES]);
        assert_eq!(other.verify_at(keyed, NOW), Verdict::Forged);
    }

    #[test]
    fn a_time_far_in_the_future_is_a_forgery() {
        let (one_pod, another) = (receipts(), receipts());
        let hour = Duration::from_secs(3600);
        let id = one_pod.issue_at(NOW + hour);
        assert_eq!(another.verify_at(id, NOW), Verdict::Issued { at: NOW + hour });
        let id = one_pod.issue_at(NOW + 25 * hour);
        assert_eq!(another.verify_at(id, NOW), Verdict::Forged);
    }

    #[test]
    fn a_keyed_id_depends_on_client_key_index_and_record_alone() {
        let id = |client, key, index, record: &[u8]| receipts().issue_keyed(client, key, index, record);
        let first = id("c", "k", 0, b"r");
        assert_eq!(first, id("c", "k", 0, b"r"));
        assert_eq!(receipts().verify_at(first.id, NOW), Verdict::Keyed);
        for other in [
            id("", "ck", 0, b"r"),
            id("c", "l", 0, b"r"),
            id("c", "k", 1, b"r"),
        ] {
            assert_ne!(first.id, other.id);
            assert_ne!(first.key_hash, other.key_hash);
        }
        let other = id("c", "k", 0, b"s");
        assert_eq!(first.key_hash, other.key_hash);
        assert_ne!(first.id, other.id);
    }
}
