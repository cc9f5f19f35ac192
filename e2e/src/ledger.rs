//! A load that keeps books: what it sent, what it was told, and what the table holds in the end.
//!
//! Every record has an order key of its own, written down before it is sent. Told 200, its row is there exactly
//! once; refused, it is not there; told nothing for sure, it is there at most once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use sqlx::PgConnection;
use tokio::task::JoinSet;

/// Longer than any server's deadline, so that it is the server who says what became of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// After a refusal, so that a server without its database is not asked in a tight loop.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(50);

/// What a client was told of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Written down, sent, not answered yet.
    Pending,
    /// 200, with the message id.
    Persisted(String),
    /// 4xx or 503: not stored, and never will be.
    Refused(u16),
    /// 504, or a broken connection.
    Unknown(String),
}

/// How many records got which answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// 200.
    pub persisted: usize,
    /// 4xx and 503.
    pub refused: usize,
    /// 504 and broken connections.
    pub unknown: usize,
}

/// The books of a load.
#[derive(Debug, Default)]
pub struct Ledger {
    answers: Mutex<BTreeMap<i64, Answer>>,
    next_key: AtomicI64,
    stop: AtomicBool,
}

/// How a load is made.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where records are posted.
    pub url: String,
    /// Keep-alive connections, each with one request in flight.
    pub connections: usize,
    /// The most records in all.
    pub records: i64,
}

impl Ledger {
    /// Posts order lines until `load.records` were sent or [`Self::stop`] is called.
    ///
    /// # Errors
    /// An answer that no client should ever see (500, or a 200 without an id).
    pub async fn post(self: &Arc<Self>, load: &Load) -> Result<()> {
        let mut clients = JoinSet::new();
        let last = self.next_key.load(Ordering::Relaxed) + load.records;
        for _ in 0..load.connections {
            clients.spawn(Arc::clone(self).run_client(load.url.clone(), last));
        }
        while let Some(client) = clients.join_next().await {
            client.context("a client of the load failed")??;
        }
        Ok(())
    }

    /// Lets every client end after its answer.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The answers so far.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for answer in self.lock().values() {
            match answer {
                Answer::Persisted(_) => tally.persisted += 1,
                Answer::Refused(_) => tally.refused += 1,
                Answer::Pending | Answer::Unknown(_) => tally.unknown += 1,
            }
        }
        tally
    }

    /// The first few answers that are no 200, for a message.
    pub fn failures(&self) -> Vec<(i64, Answer)> {
        let answers = self.lock();
        let failed = answers
            .iter()
            .filter(|(_, answer)| !matches!(answer, Answer::Persisted(_)));
        failed
            .take(5)
            .map(|(key, answer)| (*key, answer.clone()))
            .collect()
    }

    /// Compares with the table `orders` of the connection's database.
    ///
    /// # Errors
    /// The first record of which the client was told something untrue.
    pub async fn check(&self, connection: &mut PgConnection) -> Result<Tally> {
        let rows: Vec<(i64, String)> = sqlx::query_as("SELECT order_key, message_id::text FROM orders")
            .fetch_all(connection)
            .await
            .context("failed to read the table")?;
        let mut stored: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for (key, id) in rows {
            stored.entry(key).or_default().push(id);
        }
        for (key, answer) in self.lock().iter() {
            check_record(*key, answer, stored.remove(key).unwrap_or_default().as_slice())?;
        }
        ensure!(
            stored.is_empty(),
            "rows that nobody sent: order keys {:?}",
            stored.keys().take(5).collect::<Vec<_>>()
        );
        Ok(self.tally())
    }

    async fn run_client(self: Arc<Self>, url: String, last: i64) -> Result<()> {
        let client = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build()?;
        while !self.stop.load(Ordering::Relaxed) {
            let key = self.next_key.fetch_add(1, Ordering::Relaxed);
            if key >= last {
                break;
            }
            self.write_down(key, Answer::Pending);
            let answer = send(&client, &url, key).await?;
            let refused = matches!(answer, Answer::Refused(_));
            self.write_down(key, answer);
            if refused {
                tokio::time::sleep(PAUSE_AFTER_REFUSAL).await;
            }
        }
        Ok(())
    }

    fn write_down(&self, key: i64, answer: Answer) {
        self.lock().insert(key, answer);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(client: &reqwest::Client, url: &str, key: i64) -> Result<Answer> {
    let record = format!("O|{key}|456|F|123.45|2024-01-01|urgent|clerk1|1|comment");
    let request = client.post(url).header("content-type", "text/plain").body(record);
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Ok(Answer::Unknown(format!("{error:?}"))),
    };
    let status = response.status().as_u16();
    let body = match response.text().await {
        Ok(body) => body,
        Err(error) => return Ok(Answer::Unknown(format!("{error:?}"))),
    };
    match status {
        200 => Ok(Answer::Persisted(message_id(&body)?)),
        400..=499 | 503 => Ok(Answer::Refused(status)),
        504 => Ok(Answer::Unknown("504".to_owned())),
        status => bail!("order {key} was answered {status}: {body}"),
    }
}

fn message_id(body: &str) -> Result<String> {
    let json: serde_json::Value = serde_json::from_str(body).context("a 200 that is no JSON")?;
    ensure!(json["status"] == "persisted", "a 200 that says {body}");
    Ok(json["message_id"]
        .as_str()
        .context("a 200 without a message_id")?
        .to_owned())
}

fn check_record(key: i64, answer: &Answer, ids: &[String]) -> Result<()> {
    let is_true = match answer {
        Answer::Persisted(id) => ids == std::slice::from_ref(id),
        Answer::Refused(_) => ids.is_empty(),
        Answer::Pending | Answer::Unknown(_) => ids.len() <= 1,
    };
    ensure!(
        is_true,
        "order {key} was answered {answer:?}, and the table holds {ids:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_untrue_answer() {
        let (one, two) = (["a".to_owned()], ["a".to_owned(), "b".to_owned()]);
        let persisted = Answer::Persisted("a".to_owned());
        let unknown = Answer::Unknown(String::new());
        for (answer, ids) in [
            (&persisted, &one[..]),
            (&Answer::Refused(503), &[]),
            (&unknown, &[]),
            (&unknown, &one),
        ] {
            assert!(check_record(1, answer, ids).is_ok(), "{answer:?} {ids:?}");
        }
        let other = ["c".to_owned()];
        for (answer, ids) in [
            (&persisted, &[][..]),
            (&persisted, &two),
            (&persisted, &other),
            (&Answer::Refused(400), &one),
            (&unknown, &two),
        ] {
            assert!(check_record(1, answer, ids).is_err(), "{answer:?} {ids:?}");
        }
    }
}
