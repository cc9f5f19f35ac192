//! `GET /api/ingest/status/{message_id}`: what became of a message, without anything that was written for it.
//!
//! The id's MAC says that this pipeline issued it; its row says that it is committed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderValue, header};
use serde::Serialize;
use tokio::time::timeout_at;
use uuid::Uuid;

use super::{
    Answer, Endpoint, json_answer,
    problem::{Problem, ProblemKind},
};
use crate::receipt::Verdict;

/// How long the absence of a row says something: its owner may delete rows that are older.
const RETENTION: Duration = Duration::from_hours(7 * 24);
/// The length of a UUID with hyphens: the only form in which ids are given out.
const ID_LENGTH: usize = 36;

#[derive(Serialize)]
struct Found {
    message_id: Uuid,
    status: &'static str,
    message: &'static str,
}

/// Answers the status of a message.
pub(super) async fn get(endpoint: &Endpoint, id: &str, start: Instant) -> Result<Answer, Problem> {
    let unknown = || {
        let detail = "no pod of this pipeline gave out this message id";
        Problem::new(ProblemKind::UnknownMessage, detail)
    };
    let id = (id.len() == ID_LENGTH)
        .then(|| Uuid::try_parse(id).ok())
        .flatten()
        .ok_or_else(unknown)?;
    let verdict = endpoint.receipts.verify(id);
    if verdict == Verdict::Forged {
        return Err(unknown());
    }
    let timeout = endpoint.config.limits.timeout.as_std();
    let unavailable = |retry_after| {
        let detail = "the status cannot be looked up now";
        Problem::new(ProblemKind::DatabaseUnavailable, detail).retry_after(retry_after)
    };
    let found = timeout_at((start + timeout).into(), endpoint.store.find(id))
        .await
        .map_err(|_| unavailable(timeout))?;
    let (status, message) = match found {
        Ok(true) => ("persisted", "the record is committed"),
        Ok(false) if is_old(verdict) => (
            "expired",
            "the message is older than 7 days, and no row of it is there any more",
        ),
        Ok(false) => (
            "unknown",
            "no row of the message is there: where it was not answered 200, send it again, with the same \
             Idempotency-Key where it had one; where it was, its row was deleted, or is in another database",
        ),
        Err(refusal) => return Err(unavailable(refusal.retry_after)),
    };
    let body = serde_json::to_vec(&Found {
        message_id: id,
        status,
        message,
    });
    let mut answer = json_answer(body.unwrap_or_default());
    answer
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

fn is_old(verdict: Verdict) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    matches!(verdict, Verdict::Issued { at } if at + RETENTION < now)
}
