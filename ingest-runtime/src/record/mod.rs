//! Records: decoded and checked at the edge, so that a client gets its 400 at once.

/// A record, decoded and checked against its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The index of its type in the configuration's `records`.
    pub record_type: usize,
    /// Its columns in their order, each as a length in bytes (`i32`, big-endian, -1 for NULL) and the value in
    /// PostgreSQL's binary format: what arrays of the wire protocol and binary COPY both hold.
    pub fields: Box<[u8]>,
}
