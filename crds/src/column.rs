//! The types that a column can have, as they are written in a pipeline and in SQL.
//!
//! A closed list: each type has a decoder at the edge that knows its range, so that a value which
//! PostgreSQL would refuse is a 400 for the client and not a failed batch.

use std::{fmt, str::FromStr};

/// The longest `varchar` that PostgreSQL accepts (`MaxAttrSize`).
pub const MAX_VARCHAR_LENGTH: u32 = 10_485_760;
/// The greatest precision that PostgreSQL accepts in `numeric(p,s)` (`NUMERIC_MAX_PRECISION`).
pub const MAX_NUMERIC_PRECISION: u16 = 1_000;

/// How the types are written, in the API server's rule and in messages. A pattern costs its length for every
/// column that there may be, and one for all types would cost more than the API server allows.
const RULE: &str = r"self in ['text', 'bigint', 'integer', 'smallint', 'boolean', 'date', 'timestamp', 'timestamptz', 'uuid', 'double precision', 'jsonb'] || self.matches('^(varchar[(][1-9][0-9]{0,7}|numeric[(][1-9][0-9]{0,3},[0-9]{1,4})[)]$')";
const MESSAGE: &str = "write one of text, varchar(n), bigint, integer, smallint, numeric(p,s), boolean, date, timestamp, timestamptz, uuid, double precision, jsonb";

/// The PostgreSQL type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// `text`: any UTF-8 without NUL.
    Text,
    /// `varchar(n)`: at most n characters.
    Varchar(u32),
    /// `bigint`: 64 bits, signed.
    Bigint,
    /// `integer`: 32 bits, signed.
    Integer,
    /// `smallint`: 16 bits, signed.
    Smallint,
    /// `numeric(p,s)`: p significant decimal digits, s of them after the point.
    Numeric {
        /// Decimal digits in all, 1 to 1,000.
        precision: u16,
        /// Decimal digits after the point, 0 to `precision`.
        scale: u16,
    },
    /// `boolean`.
    Boolean,
    /// `date`: a day of the Gregorian calendar.
    Date,
    /// `timestamp` without time zone, in microseconds.
    Timestamp,
    /// `timestamp with time zone`, in microseconds.
    Timestamptz,
    /// `uuid`.
    Uuid,
    /// `double precision`: IEEE 754, 64 bits.
    DoublePrecision,
    /// `jsonb`.
    Jsonb,
}

/// Why a text is not a [`ColumnType`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidColumnType {
    /// The text names no known type.
    #[error("{0:?} is not a column type: {MESSAGE}")]
    Unknown(String),
    /// A length outside 1 to [`MAX_VARCHAR_LENGTH`].
    #[error("{0:?}: the length of varchar must be 1 to {MAX_VARCHAR_LENGTH}")]
    Length(String),
    /// A precision or scale out of range.
    #[error(
        "{0:?}: numeric needs a precision of 1 to {MAX_NUMERIC_PRECISION} and a scale of 0 to the precision"
    )]
    Precision(String),
}

const SIMPLE: [(&str, ColumnType); 11] = [
    ("text", ColumnType::Text),
    ("bigint", ColumnType::Bigint),
    ("integer", ColumnType::Integer),
    ("smallint", ColumnType::Smallint),
    ("boolean", ColumnType::Boolean),
    ("date", ColumnType::Date),
    ("timestamp", ColumnType::Timestamp),
    ("timestamptz", ColumnType::Timestamptz),
    ("uuid", ColumnType::Uuid),
    ("double precision", ColumnType::DoublePrecision),
    ("jsonb", ColumnType::Jsonb),
];

impl FromStr for ColumnType {
    type Err = InvalidColumnType;

    fn from_str(text: &str) -> Result<Self, InvalidColumnType> {
        if let Some((_, simple)) = SIMPLE.iter().find(|(name, _)| *name == text) {
            return Ok(*simple);
        }
        let unknown = || InvalidColumnType::Unknown(text.to_owned());
        let (name, arguments) = text
            .strip_suffix(')')
            .and_then(|t| t.split_once('('))
            .ok_or_else(unknown)?;
        match (name, arguments.split_once(',')) {
            ("varchar", None) => varchar(text, arguments),
            ("numeric", Some((precision, scale))) => numeric(text, precision, scale),
            _ => Err(unknown()),
        }
    }
}

fn varchar(text: &str, length: &str) -> Result<ColumnType, InvalidColumnType> {
    match length.parse() {
        Ok(length @ 1..=MAX_VARCHAR_LENGTH) => Ok(ColumnType::Varchar(length)),
        _ => Err(InvalidColumnType::Length(text.to_owned())),
    }
}

fn numeric(text: &str, precision: &str, scale: &str) -> Result<ColumnType, InvalidColumnType> {
    match (precision.parse(), scale.parse()) {
        (Ok(precision @ 1..=MAX_NUMERIC_PRECISION), Ok(scale)) if scale <= precision => {
            Ok(ColumnType::Numeric { precision, scale })
        }
        _ => Err(InvalidColumnType::Precision(text.to_owned())),
    }
}

/// The type as it is written in a pipeline; each is also its spelling in SQL.
impl fmt::Display for ColumnType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Varchar(length) => write!(formatter, "varchar({length})"),
            Self::Numeric { precision, scale } => write!(formatter, "numeric({precision},{scale})"),
            simple => {
                let name = SIMPLE
                    .iter()
                    .find(|(_, known)| known == simple)
                    .map_or("", |(name, _)| name);
                formatter.write_str(name)
            }
        }
    }
}

crate::schema::as_string!(
    ColumnType,
    description: "The PostgreSQL type of the column: text, varchar(n), bigint, integer, smallint, numeric(p,s), boolean, date, timestamp, timestamptz, uuid, double precision or jsonb.",
    rule: RULE,
    message: MESSAGE,
    max_length: 20
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_written_as_it_is_read() {
        let parametric = [
            "varchar(1)",
            "varchar(10485760)",
            "numeric(15,2)",
            "numeric(1000,1000)",
            "numeric(1,0)",
        ];
        for text in SIMPLE.iter().map(|(name, _)| *name).chain(parametric) {
            assert_eq!(text.parse::<ColumnType>().unwrap().to_string(), text);
            assert!(text.len() <= 20, "{text} is longer than the schema allows");
        }
    }

    #[test]
    fn refuses_unknown_names_and_bounds() {
        for text in [
            "",
            "TEXT",
            "varchar",
            "varchar(0)",
            "varchar(10485761)",
            "varchar(-1)",
            "numeric",
            "numeric(5)",
        ] {
            assert!(text.parse::<ColumnType>().is_err(), "{text}");
        }
        for text in [
            "numeric(0,0)",
            "numeric(1001,0)",
            "numeric(2,3)",
            "numeric(2,-1)",
            "text(3)",
            "int",
            "varchar(3",
        ] {
            assert!(text.parse::<ColumnType>().is_err(), "{text}");
        }
    }
}
