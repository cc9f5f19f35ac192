//! The statements of the writers, made once from the configuration, and their array parameters.
//!
//! Identifiers are quoted. Rows come with their fields encoded already: an array is a header and the fields
//! one after the other, copied once.

use std::{cell::Cell, sync::Arc};

use nomnom_crds::{ColumnType, resolved::ResolvedRecord};
use sqlx::{
    Arguments, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgArguments, PgTypeInfo, types::Oid},
};
use uuid::Uuid;

use super::channel::Entry;

/// The table of the idempotency keys.
pub(super) const KEYS_TABLE: &str = "nomnom_keys";
/// The table of the pipelines that ever wrote here.
pub(super) const PIPELINES_TABLE: &str = "nomnom_pipelines";
/// The table of the tables that they ever wrote.
pub(super) const TARGETS_TABLE: &str = "nomnom_targets";

/// PostgreSQL's object ids of a type and of its array type (`pg_type.dat`; they never change).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TypeIds {
    element: u32,
    array: u32,
}

const UUID: TypeIds = TypeIds {
    element: 2950,
    array: 2951,
};
const BYTEA: TypeIds = TypeIds {
    element: 17,
    array: 1001,
};

/// The ids of a column's type. Elements carry no length or precision: the assignment to the column applies it.
const fn type_ids(column: ColumnType) -> TypeIds {
    let (element, array) = match column {
        ColumnType::Text | ColumnType::Varchar(_) => (25, 1009),
        ColumnType::Bigint => (20, 1016),
        ColumnType::Integer => (23, 1007),
        ColumnType::Smallint => (21, 1005),
        ColumnType::Numeric { .. } => (1700, 1231),
        ColumnType::Boolean => (16, 1000),
        ColumnType::Date => (1082, 1182),
        ColumnType::Timestamp => (1114, 1115),
        ColumnType::Timestamptz => (1184, 1185),
        ColumnType::Uuid => return UUID,
        ColumnType::DoublePrecision => (701, 1022),
        ColumnType::Jsonb => (3802, 3807),
    };
    TypeIds { element, array }
}

/// The name of the array type in SQL.
fn array_name(column: ColumnType) -> String {
    match column {
        ColumnType::Varchar(_) => "text[]".to_owned(),
        ColumnType::Numeric { .. } => "numeric[]".to_owned(),
        other => format!("{other}[]"),
    }
}

/// An identifier as it stands in a statement.
pub(super) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Which of the ids are in a table, whose name is quoted.
pub(super) fn select_present(table: &str) -> String {
    format!("SELECT message_id FROM {table} WHERE message_id = ANY($1::uuid[])")
}

/// A table's name with its schema, as it stands in a statement.
pub(super) fn qualified(schema: &str, table: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(table))
}

/// The statements of one table.
#[derive(Debug)]
pub(super) struct TableStatements {
    /// Its name, unquoted.
    pub(super) table: String,
    /// The names of its columns beside `message_id`.
    pub(super) columns: Vec<String>,
    types: Vec<TypeIds>,
    /// Inserts rows that no other attempt can have inserted: one that is there is an error.
    pub(super) insert_new: Arc<str>,
    /// Inserts rows that may be there.
    pub(super) insert_missing: Arc<str>,
    /// Which of the ids are there.
    pub(super) select_present: Arc<str>,
}

/// The statements of a pipeline.
#[derive(Debug)]
pub(super) struct Statements {
    /// One for each record type.
    pub(super) tables: Vec<TableStatements>,
    /// The place of each record type in the order that all writers of all pods keep to.
    ranks: Vec<usize>,
    pub(super) insert_keys: Arc<str>,
    pub(super) select_keys: Arc<str>,
    /// Removes some keys that are no longer needed.
    pub(super) expire_keys: Arc<str>,
}

/// How many keys are removed at once: some milliseconds of work.
pub(super) const EXPIRY_CHUNK: u64 = 1_000;

impl Statements {
    pub(super) fn new(schema: &str, records: &[ResolvedRecord]) -> Self {
        let tables: Vec<_> = records
            .iter()
            .map(|record| TableStatements::new(schema, record))
            .collect();
        let mut order: Vec<usize> = (0..tables.len()).collect();
        order.sort_by(|a, b| tables[*a].table.cmp(&tables[*b].table));
        let mut ranks = vec![0; tables.len()];
        for (rank, index) in order.into_iter().enumerate() {
            ranks[index] = rank;
        }
        let keys = qualified(schema, KEYS_TABLE);
        Self {
            tables,
            ranks,
            insert_keys: format!(
                "INSERT INTO {keys} (key_hash, message_id, at) \
                 SELECT k, m, now() FROM UNNEST($1::bytea[], $2::uuid[]) AS new (k, m) \
                 ON CONFLICT (key_hash) DO NOTHING"
            )
            .into(),
            select_keys: format!("SELECT key_hash, message_id FROM {keys} WHERE key_hash = ANY($1::bytea[])")
                .into(),
            // Kept for 7 days after commit, as the API says. Without locking what is chosen: that needs another
            // right, and pods that choose the same only wait for each other.
            expire_keys: format!(
                "DELETE FROM {keys} WHERE ctid = ANY(ARRAY(\
                 SELECT ctid FROM {keys} WHERE at < now() - interval '7 days' LIMIT {EXPIRY_CHUNK}))"
            )
            .into(),
        }
    }

    /// Sorts rows by table and id: two writers that meet the same ids wait for each other, and never both.
    pub(super) fn sort(&self, rows: &mut [Entry]) {
        rows.sort_unstable_by_key(|row| (self.ranks[row.message.row.record_type], row.message.id));
    }
}

impl TableStatements {
    fn new(schema: &str, record: &ResolvedRecord) -> Self {
        let table = qualified(schema, &record.table);
        let columns = record.columns.iter();
        let names: Vec<_> = columns.clone().map(|column| quoted(&column.name)).collect();
        let arrays: Vec<_> = (2..)
            .zip(columns)
            .map(|(number, column)| format!("${number}::{}", array_name(column.column_type)))
            .collect();
        let insert_new = format!(
            "INSERT INTO {table} (message_id, {}) SELECT * FROM UNNEST($1::uuid[], {})",
            names.join(", "),
            arrays.join(", ")
        );
        Self {
            table: record.table.clone(),
            columns: record.columns.iter().map(|column| column.name.clone()).collect(),
            types: record
                .columns
                .iter()
                .map(|column| type_ids(column.column_type))
                .collect(),
            insert_missing: format!("{insert_new} ON CONFLICT (message_id) DO NOTHING").into(),
            insert_new: insert_new.into(),
            select_present: select_present(&table).into(),
        }
    }

    /// The parameters that insert `rows`, all of this table.
    pub(super) fn arguments(&self, rows: &[&Entry]) -> Result<PgArguments, BoxDynError> {
        let size: usize = rows.iter().map(|row| row.message.row.fields.len() + 20).sum();
        let mut arguments = PgArguments::default();
        arguments.reserve(
            self.types.len() + 1,
            size + (self.types.len() + 1) * (ARRAY_HEADER_BYTES + 4),
        );
        arguments.add(Ids(rows))?;
        let positions = vec![Cell::new(0); rows.len()];
        for types in &self.types {
            arguments.add(Column {
                rows,
                positions: &positions,
                types: *types,
            })?;
        }
        Ok(arguments)
    }
}

/// Dimensions, has-null flag, element type, length, lower bound.
const ARRAY_HEADER_BYTES: usize = 20;

/// The head of a one-dimensional array; the server looks at the elements' lengths, not at the flag, for NULLs.
fn put_array_header(buffer: &mut Vec<u8>, element: u32, length: usize) -> Result<(), BoxDynError> {
    let length = i32::try_from(length)?;
    for word in [i32::from(length > 0), 1, element.cast_signed(), length, 1] {
        buffer.extend_from_slice(&word.to_be_bytes());
    }
    if length == 0 {
        // An empty array has no dimensions, and ends with its element type.
        buffer.truncate(buffer.len() - 8);
    }
    Ok(())
}

macro_rules! array_parameter {
    ($name:ident, $self:ident => $types:expr) => {
        impl Type<Postgres> for $name<'_> {
            /// Never asked for: each value says what it is.
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(Oid(UUID.array))
            }
        }

        impl Encode<'_, Postgres> for $name<'_> {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                self.put(buffer)?;
                Ok(IsNull::No)
            }

            fn produces(&$self) -> Option<PgTypeInfo> {
                Some(PgTypeInfo::with_oid(Oid($types.array)))
            }
        }
    };
}

/// The ids of rows.
struct Ids<'a>(&'a [&'a Entry]);
array_parameter!(Ids, self => UUID);

impl Ids<'_> {
    fn put(&self, buffer: &mut Vec<u8>) -> Result<(), BoxDynError> {
        put_array_header(buffer, UUID.element, self.0.len())?;
        for row in self.0 {
            put_element(buffer, row.message.id.as_bytes());
        }
        Ok(())
    }
}

fn put_element(buffer: &mut Vec<u8>, bytes: &[u8]) {
    // The lengths of ids and hashes: 16 and 32.
    buffer.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or_default().to_be_bytes());
    buffer.extend_from_slice(bytes);
}

/// One column of rows; `positions` says where each row's next field starts.
struct Column<'a> {
    rows: &'a [&'a Entry],
    positions: &'a [Cell<usize>],
    types: TypeIds,
}
array_parameter!(Column, self => self.types);

impl Column<'_> {
    fn put(&self, buffer: &mut Vec<u8>) -> Result<(), BoxDynError> {
        put_array_header(buffer, self.types.element, self.rows.len())?;
        for (row, position) in self.rows.iter().zip(self.positions) {
            let field =
                next_field(&row.message.row.fields, position.get()).ok_or("a row has too few fields")?;
            buffer.extend_from_slice(field);
            position.set(position.get() + field.len());
        }
        Ok(())
    }
}

/// The field that starts at `position`, its length in front.
fn next_field(fields: &[u8], position: usize) -> Option<&[u8]> {
    let length = fields.get(position..)?.first_chunk::<4>()?;
    // NULL is -1, and no bytes.
    let bytes = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    fields.get(position..position + 4 + bytes)
}

/// An array of ids.
pub(super) struct IdArray<'a>(pub(super) &'a [Uuid]);
array_parameter!(IdArray, self => UUID);

impl IdArray<'_> {
    fn put(&self, buffer: &mut Vec<u8>) -> Result<(), BoxDynError> {
        put_array_header(buffer, UUID.element, self.0.len())?;
        self.0.iter().for_each(|id| put_element(buffer, id.as_bytes()));
        Ok(())
    }
}

/// An array of key hashes.
pub(super) struct KeyArray<'a>(pub(super) &'a [[u8; 32]]);
array_parameter!(KeyArray, self => BYTEA);

impl KeyArray<'_> {
    fn put(&self, buffer: &mut Vec<u8>) -> Result<(), BoxDynError> {
        put_array_header(buffer, BYTEA.element, self.0.len())?;
        self.0.iter().for_each(|hash| put_element(buffer, hash));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quoted("a"), "\"a\"");
        assert_eq!(quoted("a\"; DROP TABLE b; --"), "\"a\"\"; DROP TABLE b; --\"");
    }

    #[test]
    fn a_field_is_its_length_and_its_bytes() {
        let fields = [0, 0, 0, 2, 7, 8, 255, 255, 255, 255, 0, 0, 0, 0];
        assert_eq!(next_field(&fields, 0), Some(&fields[..6]));
        assert_eq!(next_field(&fields, 6), Some(&fields[6..10]));
        assert_eq!(next_field(&fields, 10), Some(&fields[10..]));
        assert_eq!(next_field(&fields, 14), None);
        assert_eq!(next_field(&fields[..5], 0), None);
    }

    #[test]
    fn an_array_starts_with_what_it_holds() {
        let mut buffer = Vec::new();
        put_array_header(&mut buffer, 25, 2).unwrap();
        assert_eq!(
            buffer,
            [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 25, 0, 0, 0, 2, 0, 0, 0, 1]
        );
        buffer.clear();
        put_array_header(&mut buffer, 25, 0).unwrap();
        assert_eq!(buffer, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 25]);
    }
}
