//! Every answer that is no success, as RFC 9457's problem+json.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use uuid::Uuid;

use super::Answer;
use crate::record::{Code, FieldError, InvalidRecord};

/// What the type of a problem starts with. It names a problem, and is not there to be fetched.
const TYPE_PREFIX: &str = "https://nomnom.dev/problems/";
const MEDIA_TYPE: &str = "application/problem+json";
/// Retry-After within these, in seconds; above the longest, asking again costs nobody anything.
const RETRY_SECONDS: std::ops::RangeInclusive<f64> = 1.0..=60.0;
/// How far Retry-After is spread, so that clients that were refused together do not come back together.
const JITTER: f64 = 0.2;

macro_rules! kinds {
    ($($(#[$documentation:meta])* $name:ident => $status:ident, $text:literal, $title:literal;)+) => {
        /// The types of problems. Types are added, never changed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ProblemKind {
            $($(#[$documentation])* $name,)+
        }

        impl ProblemKind {
            /// Every type, for metrics and the documentation's test.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The end of the type's URI; also the label of metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            const fn status(self) -> StatusCode {
                match self {
                    $(Self::$name => StatusCode::$status,)+
                }
            }

            const fn title(self) -> &'static str {
                match self {
                    $(Self::$name => $title,)+
                }
            }
        }
    };
}

kinds!(
    /// What was sent is no HTTP.
    MalformedRequest => BAD_REQUEST, "malformed-request", "The request is not valid HTTP";
    /// The record cannot be stored.
    InvalidRecord => BAD_REQUEST, "invalid-record", "The record is not valid";
    /// The header is not an idempotency key.
    InvalidIdempotencyKey => BAD_REQUEST, "invalid-idempotency-key", "The Idempotency-Key is not valid";
    /// No such path.
    NotFound => NOT_FOUND, "not-found", "There is nothing at this path";
    /// No pod of this pipeline issued the id.
    UnknownMessage => NOT_FOUND, "unknown-message", "This pipeline never issued the message id";
    /// The path is there, but not for this method.
    MethodNotAllowed => METHOD_NOT_ALLOWED, "method-not-allowed", "The method is not allowed here";
    /// The body did not arrive in time.
    RequestTimeout => REQUEST_TIMEOUT, "request-timeout", "The request did not arrive in time";
    /// The body is over the limit.
    ContentTooLarge => PAYLOAD_TOO_LARGE, "content-too-large", "The body is too large";
    /// The path is over every limit.
    UriTooLong => URI_TOO_LONG, "uri-too-long", "The URI is too long";
    /// Not a text that is read here.
    UnsupportedMediaType => UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The content type is not accepted";
    /// The key was used for another record.
    KeyReused => UNPROCESSABLE_ENTITY, "key-reused", "The Idempotency-Key was used for another record";
    /// The head is over the limit.
    HeadersTooLarge => REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large", "The request's head is too large";
    /// The pod has too much to do.
    Overloaded => SERVICE_UNAVAILABLE, "overloaded", "The endpoint is overloaded";
    /// The database takes no rows.
    DatabaseUnavailable => SERVICE_UNAVAILABLE, "database-unavailable", "The database is not available";
    /// A commit was in flight at the deadline.
    OutcomeUnknown => GATEWAY_TIMEOUT, "outcome-unknown", "The outcome is not known";
);

/// A problem, on its way to be answered.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) kind: ProblemKind,
    detail: Cow<'static, str>,
    errors: Vec<ErrorItem>,
    message_id: Option<Uuid>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The members of the answer; the order is that of RFC 9457.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<Uuid>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [ErrorItem],
}

/// What is wrong with one field.
#[derive(Debug, Serialize)]
struct ErrorItem {
    /// Which record of the body, counted from 1.
    record: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
    code: &'static str,
    message: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sqlstate: Option<String>,
}

impl Problem {
    pub(super) fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Box<Self> {
        Box::new(Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            message_id: None,
            headers: Vec::new(),
        })
    }

    pub(super) fn not_found() -> Box<Self> {
        Self::new(ProblemKind::NotFound, "records are posted to /api/ingest/message")
    }

    pub(super) fn method_not_allowed(allowed: &'static str) -> Box<Self> {
        Self::new(ProblemKind::MethodNotAllowed, format!("use {allowed}"))
            .header(header::ALLOW, HeaderValue::from_static(allowed))
    }

    pub(super) fn invalid_record(invalid: InvalidRecord) -> Box<Self> {
        let detail = match invalid.errors.as_slice() {
            [error] => place(error),
            errors => format!("record 1: {} fields are not valid", errors.len()),
        };
        let mut problem = Self::new(ProblemKind::InvalidRecord, detail);
        let items = invalid.errors.into_iter().map(|error| ErrorItem {
            record: 1,
            field: error.field,
            position: error.position,
            code: error.code.as_str(),
            message: error.message,
            sqlstate: None,
        });
        problem.errors.extend(items);
        problem
    }

    /// PostgreSQL refused the row for what is in it.
    pub(super) fn refused_by_database(
        column: Option<String>,
        sqlstate: String,
        message: String,
    ) -> Box<Self> {
        let mut problem = Self::new(
            ProblemKind::InvalidRecord,
            format!("record 1: the database refuses the row: {message}"),
        );
        problem.errors.push(ErrorItem {
            record: 1,
            field: column,
            position: None,
            code: Code::RefusedByDatabase.as_str(),
            message: message.into(),
            sqlstate: Some(sqlstate),
        });
        problem
    }

    pub(super) fn database_unavailable(retry_after: Duration) -> Box<Self> {
        Self::new(
            ProblemKind::DatabaseUnavailable,
            "nothing was stored; send the request again after the time that Retry-After tells",
        )
        .retry_after(retry_after)
    }

    pub(super) fn outcome_unknown(id: Uuid) -> Box<Self> {
        let mut problem = Self::new(
            ProblemKind::OutcomeUnknown,
            "the deadline passed while the record was being committed: ask for the message's status, or send the \
             request again with the same Idempotency-Key",
        );
        problem.message_id = Some(id);
        problem
    }

    pub(super) fn header(mut self: Box<Self>, name: HeaderName, value: HeaderValue) -> Box<Self> {
        self.headers.push((name, value));
        self
    }

    /// Says when to try again, somewhat spread.
    pub(super) fn retry_after(self: Box<Self>, after: Duration) -> Box<Self> {
        let spread = 1.0 - JITTER + 2.0 * JITTER * rand::random::<f64>();
        let seconds = (after.as_secs_f64() * spread).clamp(*RETRY_SECONDS.start(), *RETRY_SECONDS.end());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 60")]
        let value = HeaderValue::from(seconds.ceil() as u16);
        self.header(header::RETRY_AFTER, value)
    }

    /// Closes the connection after the answer, since what the client sends on it is not read to its end.
    pub(super) fn closing(self: Box<Self>) -> Box<Self> {
        self.header(header::CONNECTION, HeaderValue::from_static("close"))
    }

    pub(super) fn into_answer(self) -> Answer {
        let mut answer = Response::new(Full::new(self.body()));
        *answer.status_mut() = self.kind.status();
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.extend(self.headers);
        answer
    }

    /// The answer for a connection that hyper does not serve any more.
    pub(super) fn into_closing_bytes(self) -> Vec<u8> {
        let body = self.body();
        let status = self.kind.status();
        let head = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {}\r\nconnection: close\r\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or_default(),
            body.len()
        );
        let mut bytes = head.into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&body);
        bytes
    }

    fn body(&self) -> Bytes {
        let document = Document {
            r#type: format!("{TYPE_PREFIX}{}", self.kind.name()),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
            message_id: self.message_id,
            errors: &self.errors,
        };
        // Texts and numbers are always JSON.
        serde_json::to_vec(&document).unwrap_or_default().into()
    }
}

/// `record 1, field 5 (total_price): is not a decimal number`.
fn place(error: &FieldError) -> String {
    let message = &error.message;
    match (&error.field, error.position) {
        (Some(field), Some(position)) => format!("record 1, field {position} ({field}): {message}"),
        (None, Some(position)) => format!("record 1, field {position}: {message}"),
        _ => format!("record 1: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_spread_around_its_time_and_bounded() {
        let seconds = |after: Duration| -> u16 {
            let problem = Problem::database_unavailable(after);
            problem.headers[0].1.to_str().unwrap().parse().unwrap()
        };
        for _ in 0..100 {
            assert!((8..=12).contains(&seconds(Duration::from_secs(10))));
            assert_eq!(seconds(Duration::ZERO), 1);
            assert_eq!(seconds(Duration::from_secs(3600)), 60);
        }
    }

    #[test]
    fn the_documentation_lists_every_type_and_code() {
        let documentation = include_str!("../../../docs/http-api.md");
        for kind in ProblemKind::ALL {
            let row = format!("| {} | `{}` |", kind.status().as_u16(), kind.name());
            assert!(documentation.contains(&row), "{row}");
        }
        for code in Code::ALL {
            let row = format!("| `{}` |", code.as_str());
            assert!(documentation.contains(&row), "{row}");
        }
    }
}
