//! What can be wrong with a record, in words for people and codes for programs. Never the value itself: it may
//! be confidential, and ends up in the logs of whoever sent it.

use std::borrow::Cow;

/// The most errors that are told of one record: a client that got a column wrong got them all wrong.
pub(super) const MAX_ERRORS: usize = 10;

macro_rules! codes {
    ($($(#[$documentation:meta])* $name:ident => $text:literal),+ $(,)?) => {
        /// What is wrong, for programs. Codes are added, never changed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$documentation])* $name,)+
        }

        impl Code {
            /// Every code, for the documentation's test.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The code as it is answered.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

codes!(
    /// Nothing, or a line end alone.
    EmptyRecord => "empty_record",
    /// A line end within the body.
    MoreThanOneRecord => "more_than_one_record",
    /// The first field is no type's match.
    UnknownRecordType => "unknown_record_type",
    /// Fewer fields than columns.
    TooFewFields => "too_few_fields",
    /// More fields than columns.
    TooManyFields => "too_many_fields",
    /// Bytes that are not UTF-8.
    InvalidUtf8 => "invalid_utf8",
    /// A character that PostgreSQL cannot store.
    NulCharacter => "nul_character",
    /// Empty, where the column is neither nullable nor text.
    MissingValue => "missing_value",
    /// More characters than the column holds.
    TooLong => "too_long",
    /// Not written as a number.
    NotANumber => "not_a_number",
    /// A number or time that the column's type cannot hold.
    OutOfRange => "out_of_range",
    /// Storing it would mean rounding it.
    TooPrecise => "too_precise",
    /// Not written as a truth value.
    NotABoolean => "not_a_boolean",
    /// Not written as a date.
    NotADate => "not_a_date",
    /// Not written as a date and time.
    NotATimestamp => "not_a_timestamp",
    /// A day that no calendar has.
    NoSuchDate => "no_such_date",
    /// A time that no clock shows.
    NoSuchTime => "no_such_time",
    /// A moment needs an offset from UTC.
    OffsetMissing => "offset_missing",
    /// A time without zone has no offset from UTC.
    OffsetNotAllowed => "offset_not_allowed",
    /// Not written as a UUID.
    NotAUuid => "not_a_uuid",
    /// Not JSON, or none that `jsonb` holds.
    NotJson => "not_json",
    /// PostgreSQL refused the row, by a constraint or trigger of its table.
    RefusedByDatabase => "refused_by_database",
);

/// What is wrong with one field, or with the record as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The name of the column, where one is to blame.
    pub field: Option<String>,
    /// Where the field stands in the line, counted from 1, where one is to blame.
    pub position: Option<usize>,
    /// What is wrong, for programs.
    pub code: Code,
    /// What is wrong, for people.
    pub message: Cow<'static, str>,
}

/// A record that cannot be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidRecord {
    /// What is wrong with it: at least one.
    pub errors: Vec<FieldError>,
}

/// What is wrong, before it is known where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) message: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(super) fn at(self, column: &str, position: usize) -> FieldError {
        FieldError {
            field: Some(column.to_owned()),
            position: Some(position),
            code: self.code,
            message: self.message,
        }
    }

    pub(super) fn at_position(self, position: usize) -> InvalidRecord {
        FieldError {
            field: None,
            position: Some(position),
            code: self.code,
            message: self.message,
        }
        .into()
    }
}

impl From<FieldError> for InvalidRecord {
    fn from(error: FieldError) -> Self {
        Self { errors: vec![error] }
    }
}

impl From<Refusal> for InvalidRecord {
    fn from(refusal: Refusal) -> Self {
        FieldError {
            field: None,
            position: None,
            code: refusal.code,
            message: refusal.message,
        }
        .into()
    }
}
