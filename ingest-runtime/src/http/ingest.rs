//! `POST /api/ingest/message`: one record in, one answer out, and never a 200 before the commit.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, Timelike, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::time::Instant as Deadline;
use uuid::{Uuid, fmt::Hyphenated};

use super::{
    Answer, Endpoint,
    body::{self, Body, Inbound},
    idempotency, json_answer,
    problem::{Problem, ProblemKind},
};
use crate::{
    record::Row,
    store::{Message, Outcome},
};

/// The only media type that is read.
const ACCEPTED: &str = "text/plain";
/// Ids that are tried for one record. Two pods share an id by chance once in 2^30 pairs of processes that count
/// alike; three times in a row is a fault, not chance.
const ID_ATTEMPTS: usize = 3;
/// When to come again after such a fault.
const ID_RETRY_AFTER: Duration = Duration::from_secs(1);
/// The client that an id is derived for, as long as there is no authentication.
const ANYBODY: &str = "";
/// The record's index in a body of one.
const ONLY_RECORD: u32 = 0;

/// Answers a posted record.
pub(super) async fn post(
    endpoint: &Endpoint,
    headers: &HeaderMap,
    body: &mut Inbound,
    start: Instant,
) -> Answer {
    let measured = endpoint.metrics.begin(start);
    match store(endpoint, headers, body, start).await {
        Ok(id) => {
            measured.persisted();
            persisted(id)
        }
        Err(problem) => {
            measured.failed(problem.kind());
            problem.into_answer()
        }
    }
}

/// Reads, checks and commits a record.
async fn store(
    endpoint: &Endpoint,
    headers: &HeaderMap,
    body: &mut Inbound,
    start: Instant,
) -> Result<Uuid, Problem> {
    let limits = &endpoint.config.limits;
    let deadline = Deadline::from_std(start + limits.timeout.as_std());
    check_content(headers)?;
    let key = idempotency::key(headers)?;
    let rules = body::Rules {
        memory: &endpoint.memory,
        max_bytes: usize::try_from(limits.max_body_bytes).unwrap_or(usize::MAX),
        deadline,
    };
    let body = body::read(body, rules).await?;
    commit(endpoint, key.as_deref(), body, deadline).await
}

/// Commits a record under a new id, or under the one that its key gives it.
async fn commit(
    endpoint: &Endpoint,
    key: Option<&str>,
    mut body: Body<'_>,
    deadline: Deadline,
) -> Result<Uuid, Problem> {
    for _ in 0..ID_ATTEMPTS {
        // Decoded anew where an id was taken: that never happens, and a copy for it would be made each time.
        let row = endpoint.decoder.decode(&body.bytes);
        let row = row.map_err(Problem::invalid_record)?;
        let message = message(endpoint, key, &body.bytes, row);
        let id = message.id;
        let can_repeat = body.keep_small();
        return Err(match endpoint.store.write(message, deadline).await {
            Outcome::Persisted => return Ok(id),
            Outcome::IdTaken => {
                tracing::warn!(message_id = %id, "a new message id was taken already");
                if can_repeat {
                    continue;
                }
                break;
            }
            Outcome::Rejected {
                column,
                code,
                message,
            } => Problem::refused_by_database(column, code, message),
            Outcome::KeyConflict => Problem::new(
                ProblemKind::KeyReused,
                "nothing was stored: give each record a key of its own, and repeat a record byte for byte",
            ),
            Outcome::Unavailable { retry_after, .. } => Problem::database_unavailable(retry_after),
            Outcome::Unknown => Problem::outcome_unknown(id),
        });
    }
    Err(Problem::database_unavailable(ID_RETRY_AFTER))
}

fn message(endpoint: &Endpoint, key: Option<&str>, record: &[u8], row: Row) -> Message {
    let Some(key) = key else {
        return Message {
            id: endpoint.receipts.issue(),
            key_hash: None,
            row,
        };
    };
    let keyed = endpoint.receipts.issue_keyed(ANYBODY, key, ONLY_RECORD, record);
    Message {
        id: keyed.id,
        key_hash: Some(keyed.key_hash),
        row,
    }
}

/// Refuses whatever is not plain text in UTF-8.
fn check_content(headers: &HeaderMap) -> Result<(), Problem> {
    let unsupported = |detail: &'static str| {
        Problem::new(ProblemKind::UnsupportedMediaType, detail).header(
            HeaderName::from_static("accept-post"),
            HeaderValue::from_static(ACCEPTED),
        )
    };
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let identity = HeaderValue::from_static("identity");
        return Err(
            unsupported("send the body without a content encoding").header(header::ACCEPT_ENCODING, identity)
        );
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(unsupported("the request has no content type: send text/plain"));
    };
    let text = value.to_str().unwrap_or_default();
    let (media_type, parameters) = text.split_once(';').unwrap_or((text, ""));
    if !media_type.trim().eq_ignore_ascii_case(ACCEPTED) {
        return Err(unsupported("the content type is not text/plain"));
    }
    if parameters.split(';').all(is_accepted_parameter) {
        Ok(())
    } else {
        Err(unsupported("the character set is not utf-8"))
    }
}

/// Whether a parameter of the media type says nothing about the character set but UTF-8, or ASCII within it.
fn is_accepted_parameter(parameter: &str) -> bool {
    match parameter.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            let value = value.trim().trim_matches('"');
            ["utf-8", "utf8", "us-ascii"]
                .iter()
                .any(|known| value.eq_ignore_ascii_case(known))
        }
        _ => true,
    }
}

const PERSISTED: &[u8] = br#"{"message_id":"00000000-0000-0000-0000-000000000000","status":"persisted","timestamp":"0000-00-00T00:00:00.000Z","errors":[]}"#;
const ID_AT: usize = 15;
const TIMESTAMP_AT: usize = 87;
const TIMESTAMP_LENGTH: usize = 24;

/// The answer for a committed record: a text with id and time patched in.
fn persisted(id: Uuid) -> Answer {
    let mut body = PERSISTED.to_vec();
    id.hyphenated()
        .encode_lower(&mut body[ID_AT..ID_AT + Hyphenated::LENGTH]);
    write_timestamp(
        SystemTime::now(),
        &mut body[TIMESTAMP_AT..TIMESTAMP_AT + TIMESTAMP_LENGTH],
    );
    json_answer(body)
}

/// Writes digits over the zeros of `0000-00-00T00:00:00.000Z`.
fn write_timestamp(now: SystemTime, out: &mut [u8]) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
    let time: DateTime<Utc> = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
    let parts = [
        (time.year().unsigned_abs(), 0..4),
        (time.month(), 5..7),
        (time.day(), 8..10),
        (time.hour(), 11..13),
        (time.minute(), 14..16),
        (time.second(), 17..19),
        (since.subsec_millis(), 20..23),
    ];
    for (mut value, range) in parts {
        for place in out[range].iter_mut().rev() {
            // A digit is less than 256.
            *place = b'0' + u8::try_from(value % 10).unwrap_or_default();
            value /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn check(content_type: &'static str) -> Result<(), &'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        check_content(&headers).map_err(|problem| problem.kind().name())
    }

    #[test]
    fn accepts_plain_text_in_utf_8() {
        for content_type in [
            "text/plain",
            "Text/Plain;charset=UTF-8",
            "text/plain; charset=\"utf-8\"",
            "text/plain; format=fixed; charset=us-ascii",
        ] {
            assert_eq!(check(content_type), Ok(()), "{content_type}");
        }
        for content_type in [
            "",
            "text/csv",
            "application/json",
            "text/plain; charset=latin1",
            "text/plainer",
        ] {
            assert_eq!(
                check(content_type),
                Err("unsupported-media-type"),
                "{content_type}"
            );
        }
        assert!(check_content(&HeaderMap::new()).is_err());
    }

    #[test]
    fn refuses_compressed_bodies() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(check_content(&headers).is_err());
    }

    #[tokio::test]
    async fn the_answer_holds_id_and_time() {
        let id = Uuid::from_u128(0x018f_4e3a_7b1c_8d2e_9f00_1122_3344_5566);
        let body = persisted(id).into_body().collect().await.unwrap().to_bytes();
        let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["message_id"], id.to_string());
        assert_eq!(answer["status"], "persisted");
        assert_eq!(answer["errors"], serde_json::json!([]));
        let time = DateTime::parse_from_rfc3339(answer["timestamp"].as_str().unwrap()).unwrap();
        assert!((Utc::now() - time.to_utc()).num_seconds() < 5);
    }

    #[test]
    fn writes_a_time_in_the_form_of_rfc_3339() {
        let mut text = b"0000-00-00T00:00:00.000Z".to_vec();
        write_timestamp(UNIX_EPOCH + Duration::from_millis(1_709_210_096_007), &mut text);
        assert_eq!(text, b"2024-02-29T12:34:56.007Z");
    }
}
