//! The envelope: many records in one message of the queue, with all that it takes to write them.
//!
//! Version 1 is one byte, the version, and a MessagePack map. It names each record type's table, columns and types as
//! they were when the records were decoded: the worker writes exactly those, so that a later spec cannot make an older
//! backlog unwritable. Members that a reader does not know are ignored; whatever changes the meaning of the others is
//! a new version, which is written one release after it can be read. `docs/envelope.md` is the reference.

use bytes::{BufMut, Bytes, BytesMut};
use nomnom_crds::ColumnType;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The version that is written.
pub const VERSION: u8 = 1;

/// Records on their way to the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The pipeline's uid.
    pub pipeline: String,
    /// The PostgreSQL schema of the tables.
    pub schema: String,
    /// The record types that occur.
    pub types: Vec<RecordType>,
    /// The records, in the order of their arrival.
    pub records: Vec<Record>,
    /// Whether the records may be in their tables, or in another message, already.
    #[serde(default)]
    pub may_exist: bool,
    /// Which replay of their dead letters this is; none where they come from clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<u32>,
}

/// A table, and the columns that are written beside `message_id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordType {
    /// The table's name.
    pub table: String,
    /// Its columns in the order of the fields.
    pub columns: Vec<(String, ColumnType)>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record(
    /// The index of its type.
    pub u32,
    /// Its id.
    pub Uuid,
    /// The hash of its idempotency key.
    #[serde(with = "key_hash")]
    pub Option<[u8; 32]>,
    /// Its fields: each a length (`i32`, big-endian, -1 for NULL) and the value in PostgreSQL's binary format.
    #[serde(with = "serde_bytes")]
    pub Box<[u8]>,
);

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Written by a later release: to be read when this one is replaced, and kept until then.
    #[error("envelope version {0}, but this build reads up to version {VERSION}")]
    Newer(u8),
    /// No envelope, or a broken one.
    #[error("not an envelope: {0}")]
    Malformed(String),
}

impl Envelope {
    /// The message.
    ///
    /// # Errors
    /// Never in practice: nothing in an envelope is more than MessagePack can hold.
    pub fn encode(&self) -> Result<Bytes, rmp_serde::encode::Error> {
        let size: usize = self.records.iter().map(|record| record.3.len() + 64).sum();
        let mut message = BytesMut::with_capacity(size + 1024);
        message.put_u8(VERSION);
        let mut writer = message.writer();
        rmp_serde::encode::write_named(&mut writer, self)?;
        Ok(writer.into_inner().freeze())
    }

    /// Reads a message, and checks that what it says of itself holds.
    pub fn decode(message: &[u8]) -> Result<Self, Unreadable> {
        let malformed = |reason: &str| Unreadable::Malformed(reason.to_owned());
        let (version, body) = message.split_first().ok_or_else(|| malformed("it is empty"))?;
        match *version {
            VERSION => {}
            0 => return Err(malformed("version 0")),
            newer => return Err(Unreadable::Newer(newer)),
        }
        let envelope: Self =
            rmp_serde::from_slice(body).map_err(|error| Unreadable::Malformed(error.to_string()))?;
        for (index, record) in envelope.records.iter().enumerate() {
            let columns = usize::try_from(record.0)
                .ok()
                .and_then(|number| envelope.types.get(number))
                .map(|record_type| record_type.columns.len());
            if columns.is_none() || columns != count_fields(&record.3) {
                return Err(Unreadable::Malformed(format!(
                    "record {index} is not of its type"
                )));
            }
        }
        Ok(envelope)
    }
}

/// How many fields these are; none where a length leads beyond the end.
fn count_fields(mut fields: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !fields.is_empty() {
        let (length, rest) = fields.split_first_chunk::<4>()?;
        let bytes = match i32::from_be_bytes(*length) {
            -1 => 0,
            length => usize::try_from(length).ok()?,
        };
        fields = rest.get(bytes..)?;
        count += 1;
    }
    Some(count)
}

/// A hash as bytes, which an array of serde is not.
mod key_hash {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use serde_bytes::{ByteBuf, Bytes};

    #[expect(clippy::ref_option, reason = "serde asks for it so")]
    pub(super) fn serialize<S: Serializer>(
        hash: &Option<[u8; 32]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match hash {
            Some(hash) => serializer.serialize_some(Bytes::new(hash)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        let Some(bytes) = Option::<ByteBuf>::deserialize(deserializer)? else {
            return Ok(None);
        };
        let hash = <[u8; 32]>::try_from(bytes.as_slice());
        hash.map(Some)
            .map_err(|_| D::Error::invalid_length(bytes.len(), &"32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            pipeline: "0b1c5d9e-6f2a-4c7b-8e3d-112233445566".to_owned(),
            schema: "public".to_owned(),
            types: vec![
                RecordType {
                    table: "orders".to_owned(),
                    columns: vec![
                        ("order_key".to_owned(), ColumnType::Bigint),
                        (
                            "total_price".to_owned(),
                            ColumnType::Numeric {
                                precision: 15,
                                scale: 2,
                            },
                        ),
                    ],
                },
                RecordType {
                    table: "notes".to_owned(),
                    columns: vec![("text".to_owned(), ColumnType::Varchar(5))],
                },
            ],
            records: vec![
                Record(
                    0,
                    Uuid::from_u128(0x0192_0000_0000_8000_8000_0000_0000_0001),
                    None,
                    [
                        &8_i32.to_be_bytes()[..],
                        &42_i64.to_be_bytes(),
                        &(-1_i32).to_be_bytes(),
                    ]
                    .concat()
                    .into(),
                ),
                Record(
                    1,
                    Uuid::from_u128(0x0192_0000_0000_8000_8000_0000_0000_0002),
                    Some([7; 32]),
                    [&5_i32.to_be_bytes()[..], b"short"].concat().into(),
                ),
            ],
            may_exist: false,
            replay: None,
        }
    }

    /// A version that was ever written stays readable.
    #[test]
    fn golden_files_stay_readable() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/queue/golden");
        let path = directory.join("envelope-v1.bin");
        if std::env::var_os("NOMNOM_GENERATE").is_some() {
            std::fs::write(&path, envelope().encode().unwrap()).unwrap();
        }
        let message = std::fs::read(path).unwrap();
        assert_eq!(Envelope::decode(&message).unwrap(), envelope());
        assert_eq!(
            envelope().encode().unwrap(),
            message,
            "version 1 is written as it always was"
        );
    }

    #[test]
    fn what_it_does_not_know_is_ignored_and_what_is_left_out_has_a_default() {
        #[derive(Serialize)]
        struct Later {
            pipeline: &'static str,
            records: [(); 0],
            schema: &'static str,
            since: u64,
            types: [(); 0],
        }
        let later = Later {
            pipeline: "p",
            records: [],
            schema: "s",
            since: 1,
            types: [],
        };
        let message = [vec![VERSION], rmp_serde::to_vec_named(&later).unwrap()].concat();
        let envelope = Envelope::decode(&message).unwrap();
        assert_eq!(
            (envelope.pipeline.as_str(), envelope.may_exist, envelope.replay),
            ("p", false, None)
        );
    }

    #[test]
    fn what_is_no_envelope_is_told() {
        let whole = envelope().encode().unwrap();
        assert!(matches!(Envelope::decode(&[9, 1]), Err(Unreadable::Newer(9))));
        for broken in [&[][..], &[0], b"O|1|2", &whole[..whole.len() - 1], &whole[..20]] {
            assert!(Envelope::decode(broken).is_err(), "{broken:?}");
        }
        for change in [
            (|envelope: &mut Envelope| envelope.records[0].0 = 2) as fn(&mut Envelope),
            |envelope| envelope.records[1].3 = [0, 0, 0, 9, 1].into(),
            |envelope| envelope.records[1].3 = [255, 255, 255, 254].into(),
            |envelope| envelope.types[1].columns.clear(),
        ] {
            let mut envelope = envelope();
            change(&mut envelope);
            let message = envelope.encode().unwrap();
            assert!(matches!(
                Envelope::decode(&message),
                Err(Unreadable::Malformed(_))
            ));
        }
    }
}
