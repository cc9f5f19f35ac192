//! Records: decoded and checked at the edge, so that a client gets its 400 at once.
//!
//! [`Decoder`] turns one line of delimited text into a [`Row`]: every field in PostgreSQL's binary format, checked
//! so that PostgreSQL has no reason to refuse it. It knows nothing of HTTP or of the database.

mod json;
mod numeric;
mod problem;
mod time;
mod value;

use memchr::{memchr, memchr_iter};
use nomnom_crds::{column::ColumnType, resolved::ResolvedRecord, runtime::RuntimeConfig};

pub use problem::{Code, FieldError, InvalidRecord};
use problem::{MAX_ERRORS, Refusal};

/// A record, decoded and checked against its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The index of its type in the configuration's `records`.
    pub record_type: usize,
    /// Its columns in their order, each as a length in bytes (`i32`, big-endian, -1 for NULL) and the value in
    /// PostgreSQL's binary format: what arrays of the wire protocol and binary COPY both hold.
    pub fields: Box<[u8]>,
}

/// Decodes the records of a pipeline.
#[derive(Debug)]
pub struct Decoder {
    delimiter: u8,
    types: Vec<RecordType>,
}

#[derive(Debug)]
struct RecordType {
    /// The first field of its lines; none where all lines are of this type.
    matches: Option<Box<[u8]>>,
    columns: Vec<Column>,
    /// What a row of it takes beyond the length of its line, numbers written with exponents aside.
    overhead: usize,
}

#[derive(Debug)]
struct Column {
    name: String,
    column_type: ColumnType,
    nullable: bool,
}

/// Why a configuration's records cannot be decoded; the operator accepts no such pipeline.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableRecords {
    /// A delimiter that is not one byte.
    #[error("the delimiter {0:?} is not an ASCII character")]
    Delimiter(char),
    /// None, or several that no first field tells apart.
    #[error("one record type is needed, or several that each have a match")]
    Match,
}

impl Decoder {
    /// A decoder for the records of `config`.
    pub fn new(config: &RuntimeConfig) -> Result<Self, UnusableRecords> {
        if !config.delimiter.is_ascii() {
            return Err(UnusableRecords::Delimiter(config.delimiter));
        }
        let types: Vec<_> = config.records.iter().map(RecordType::new).collect();
        let told_apart = types.len() == 1 || types.iter().all(|record| record.matches.is_some());
        if types.is_empty() || !told_apart {
            return Err(UnusableRecords::Match);
        }
        // ASCII is one byte.
        let delimiter = config.delimiter as u8;
        Ok(Self { delimiter, types })
    }

    /// Decodes one line, with or without the `\n` or `\r\n` at its end.
    pub fn decode(&self, body: &[u8]) -> Result<Row, InvalidRecord> {
        let line = without_line_end(body);
        if line.is_empty() {
            return Err(Refusal::new(Code::EmptyRecord, "the body holds no record").into());
        }
        if memchr(b'\n', line).is_some() {
            return Err(Refusal::new(Code::MoreThanOneRecord, "send one record a request").into());
        }
        let (index, rest) = self.route(line)?;
        let record_type = &self.types[index];
        let fields = self.decode_fields(record_type, line, rest)?;
        Ok(Row {
            record_type: index,
            fields,
        })
    }

    /// The type of a line, and where its first column starts.
    fn route(&self, line: &[u8]) -> Result<(usize, usize), InvalidRecord> {
        let end = memchr(self.delimiter, line).unwrap_or(line.len());
        let first = &line[..end];
        for (index, record_type) in self.types.iter().enumerate() {
            match record_type.matches.as_deref() {
                None => return Ok((index, 0)),
                Some(matches) if matches == first => return Ok((index, end + 1)),
                Some(_) => {}
            }
        }
        let message = "the first field is the match of no record type of this pipeline";
        Err(Refusal::new(Code::UnknownRecordType, message).at_position(1))
    }

    fn decode_fields(
        &self,
        record_type: &RecordType,
        line: &[u8],
        start: usize,
    ) -> Result<Box<[u8]>, InvalidRecord> {
        let text = self.check_text(record_type, line)?;
        // A line that ends after its match has no field, and start is behind its end.
        let rest = text.get(start..);
        let count = rest.map_or(0, |rest| memchr_iter(self.delimiter, rest.as_bytes()).count() + 1);
        record_type.check_count(count)?;
        let mut rest = rest.unwrap_or_default();
        let mut out = Vec::with_capacity(record_type.overhead + rest.len());
        let mut errors = Vec::new();
        for (index, column) in record_type.columns.iter().enumerate() {
            let end = memchr(self.delimiter, rest.as_bytes()).unwrap_or(rest.len());
            if let Err(refusal) = column.encode(&rest[..end], &mut out)
                && errors.len() < MAX_ERRORS
            {
                errors.push(refusal.at(&column.name, record_type.position(index)));
            }
            rest = rest.get(end + 1..).unwrap_or_default();
        }
        if errors.is_empty() {
            Ok(out.into_boxed_slice())
        } else {
            Err(InvalidRecord { errors })
        }
    }

    /// The line as text that PostgreSQL can hold: UTF-8 without NUL.
    fn check_text<'a>(&self, record_type: &RecordType, line: &'a [u8]) -> Result<&'a str, InvalidRecord> {
        let text = match std::str::from_utf8(line) {
            Ok(text) => text,
            Err(error) => {
                let refusal = Refusal::new(Code::InvalidUtf8, "is not valid UTF-8");
                return Err(self.blame(record_type, line, error.valid_up_to(), refusal));
            }
        };
        match memchr(0, line) {
            None => Ok(text),
            Some(at) => {
                let refusal = Refusal::new(
                    Code::NulCharacter,
                    "holds a NUL character, which PostgreSQL cannot store",
                );
                Err(self.blame(record_type, line, at, refusal))
            }
        }
    }

    /// Names the field that the byte at `offset` belongs to.
    fn blame(&self, record_type: &RecordType, line: &[u8], offset: usize, refusal: Refusal) -> InvalidRecord {
        let index = memchr_iter(self.delimiter, &line[..offset]).count();
        let column = index
            .checked_sub(usize::from(record_type.matches.is_some()))
            .and_then(|column| record_type.columns.get(column));
        match column {
            Some(column) => refusal.at(&column.name, index + 1).into(),
            None => refusal.at_position(index + 1),
        }
    }
}

impl RecordType {
    fn new(record: &ResolvedRecord) -> Self {
        let columns: Vec<_> = record
            .columns
            .iter()
            .map(|column| Column {
                name: column.name.clone(),
                column_type: column.column_type,
                nullable: column.nullable,
            })
            .collect();
        Self {
            matches: record
                .matches
                .as_ref()
                .map(|matches| matches.as_bytes().to_vec().into_boxed_slice()),
            overhead: columns.len() * (size_of::<i32>() + value::MAX_GROWTH),
            columns,
        }
    }

    /// Where the column of this index stands in a line, counted from 1.
    fn position(&self, index: usize) -> usize {
        index + 1 + usize::from(self.matches.is_some())
    }

    fn check_count(&self, count: usize) -> Result<(), InvalidRecord> {
        let expected = self.columns.len();
        let code = match count.cmp(&expected) {
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Less => Code::TooFewFields,
            std::cmp::Ordering::Greater => Code::TooManyFields,
        };
        let first = usize::from(self.matches.is_some());
        let message = format!(
            "the record has {} fields, but its type has {}",
            count + first,
            expected + first
        );
        Err(Refusal::new(code, message).into())
    }
}

impl Column {
    /// Appends the field with its length.
    fn encode(&self, text: &str, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let is_text = matches!(self.column_type, ColumnType::Text | ColumnType::Varchar(_));
        if text.is_empty() && (self.nullable || !is_text) {
            if self.nullable {
                out.extend_from_slice(&(-1_i32).to_be_bytes());
                return Ok(());
            }
            return Err(Refusal::new(
                Code::MissingValue,
                format!(
                    "is empty, but the column is {} and not nullable",
                    self.column_type
                ),
            ));
        }
        let start = out.len();
        out.extend_from_slice(&[0; size_of::<i32>()]);
        value::encode(self.column_type, text, out)?;
        let length = i32::try_from(out.len() - start - size_of::<i32>())
            .map_err(|_| Refusal::new(Code::TooLong, "is longer than PostgreSQL can store"))?;
        out[start..start + size_of::<i32>()].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }
}

fn without_line_end(body: &[u8]) -> &[u8] {
    match body.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => body,
    }
}

#[cfg(test)]
mod tests;
