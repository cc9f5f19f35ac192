//! The server goes away: killed, stopped, frozen, out of reach.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ingest_runtime::store::{Outcome, Store};
use nomnom_crds::runtime::state::DatabaseReason;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use uuid::Uuid;

use crate::bed::{Bed, config, event, eventually, refused, wait_for_reason, wait_until_persisted, write};

/// Clients that write without a pause, and remember each answer.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<(Uuid, Outcome)>>>,
    clients: JoinSet<()>,
}

impl Load {
    fn start(store: &Store, deadline: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let mut clients = JoinSet::new();
        for _ in 0..64 {
            let (store, stop, answers) = (store.clone(), stop.clone(), answers.clone());
            clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let message = event("load", Some(1));
                    let id = message.id;
                    let outcome = store.write(message, Instant::now() + deadline).await;
                    let refused = !matches!(outcome, Outcome::Persisted);
                    answers.lock().unwrap().push((id, outcome));
                    if refused {
                        sleep(Duration::from_millis(5)).await;
                    }
                }
            });
        }
        Self {
            stop,
            answers,
            clients,
        }
    }

    fn persisted(&self) -> usize {
        self.answers
            .lock()
            .unwrap()
            .iter()
            .filter(|(_, outcome)| *outcome == Outcome::Persisted)
            .count()
    }

    async fn wait_for_more(&self, rows: usize) {
        let before = self.persisted();
        eventually("rows are persisted", || async {
            self.persisted() >= before + rows
        })
        .await;
    }

    async fn finish(self) -> Vec<(Uuid, Outcome)> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
        Arc::try_unwrap(self.answers).unwrap().into_inner().unwrap()
    }
}

/// The verdict of the ledger: what was called stored is, once; what was refused is not.
async fn check_ledger(bed: &Bed, answers: &[(Uuid, Outcome)]) {
    let ids = bed.ids().await;
    let mut unknown = 0;
    for (id, outcome) in answers {
        let count = ids.get(id).copied().unwrap_or(0);
        match outcome {
            Outcome::Persisted => assert_eq!(count, 1, "{id} was called persisted"),
            Outcome::Unknown => {
                unknown += 1;
                assert!(count <= 1);
            }
            Outcome::Unavailable { .. } => assert_eq!(count, 0, "{id} was refused"),
            other => panic!("{other:?}"),
        }
    }
    assert!(
        ids.keys().all(|id| answers.iter().any(|(known, _)| known == id)),
        "a row that nobody sent"
    );
    println!("{} answers, {} rows, {unknown} unknown", answers.len(), ids.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_stay_true_when_the_server_is_killed_and_stopped_under_load() {
    let mut bed = Bed::start().await;
    let opened = bed.open(config()).await;
    let load = Load::start(&opened.store, Duration::from_secs(3));
    for round in 0..4 {
        load.wait_for_more(500).await;
        if round % 2 == 0 {
            bed.postgres.kill().unwrap();
        } else {
            bed.postgres.stop().unwrap();
        }
        wait_for_reason(&opened.store, DatabaseReason::Unreachable).await;
        bed.postgres.start_again().await.unwrap();
    }
    load.wait_for_more(500).await;
    let answers = load.finish().await;
    check_ledger(&bed, &answers).await;
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
    // Whatever was still under way somewhere is over when the store is closed.
    opened.store.clone().close().await;
    check_ledger(&bed, &answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_stay_true_when_single_connections_break_under_load() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    let load = Load::start(&opened.store, Duration::from_secs(10));
    for _ in 0..8 {
        load.wait_for_more(200).await;
        bed.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'INSERT%' LIMIT 2",
        )
        .await;
    }
    load.wait_for_more(200).await;
    let answers = load.finish().await;
    check_ledger(&bed, &answers).await;
    // Another connection took the rows over: nobody noticed.
    assert!(answers.iter().all(|(_, outcome)| *outcome == Outcome::Persisted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_makes_what_was_sent_unknown_and_the_rest_refused() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    assert_eq!(
        write(&opened.store, event("warm", None)).await,
        Outcome::Persisted
    );
    bed.postgres.pause().unwrap();
    let deadline = Duration::from_secs(1);
    let load = Load::start(&opened.store, deadline);
    sleep(deadline * 2).await;
    let start = Instant::now();
    bed.postgres.resume().unwrap();
    load.wait_for_more(100).await;
    println!("recovered after {:?}", start.elapsed());
    let answers = load.finish().await;
    assert!(answers.iter().any(|(_, outcome)| *outcome == Outcome::Unknown));
    opened.store.clone().close().await;
    bed.execute("DELETE FROM events WHERE name = 'warm'").await;
    check_ledger(&bed, &answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stays_frozen_is_given_up_and_found_again() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.postgres.pause().unwrap();
    wait_for_reason(&opened.store, DatabaseReason::Unreachable).await;
    assert_eq!(
        refused(&write(&opened.store, event("x", None)).await),
        DatabaseReason::Unreachable
    );
    assert_eq!(
        opened.store.find(Uuid::nil()).await.unwrap_err().reason,
        DatabaseReason::Unreachable
    );
    bed.postgres.resume().unwrap();
    wait_until_persisted(&opened.store, &[DatabaseReason::Unreachable]).await;
}

#[tokio::test]
async fn a_server_that_goes_away_while_nothing_is_to_do_puts_no_row_in_doubt() {
    let mut bed = Bed::start().await;
    let opened = bed.open(config()).await;
    assert_eq!(write(&opened.store, event("x", None)).await, Outcome::Persisted);
    sleep(Duration::from_millis(1_200)).await;
    bed.postgres.kill().unwrap();
    let outcome = opened
        .store
        .write(event("x", None), Instant::now() + Duration::from_secs(8))
        .await;
    assert_eq!(refused(&outcome), DatabaseReason::Unreachable);
    bed.postgres.start_again().await.unwrap();
    wait_until_persisted(&opened.store, &[DatabaseReason::Unreachable]).await;
}
