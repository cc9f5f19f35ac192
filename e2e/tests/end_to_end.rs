//! The product on a whole cluster: what a user applies, what clients post, what the table holds.
//!
//! The scenarios share one cluster, one after the other, each in a namespace and a database of its own.
#![allow(clippy::unwrap_used)]

mod bed;

use std::{sync::Arc, time::Duration};

use bed::{Bed, Pipeline, eventually};
use e2e::ledger::{Ledger, Load, Tally};

/// Enough for pods to start, and for the kubelet to see a new Secret (a minute by default).
const PATIENCE: Duration = Duration::from_mins(2);

#[test]
fn a_record_goes_in_and_a_row_comes_out() {
    let bed = Bed::lock();
    let pipeline = Pipeline::apply(&bed, "walk");
    pipeline.wait_until_ready();

    let ledger = Arc::new(Ledger::default());
    bed.run(post(&ledger, &pipeline, 16, 1_000));
    let tally = pipeline.check(&ledger);
    assert_eq!(
        tally,
        Tally {
            persisted: 1_000,
            ..Tally::default()
        },
        "{:?}",
        ledger.failures()
    );

    let (status, body) = pipeline.post("O|1|456|F|123.45|2024-02-30|urgent|clerk1|1|comment");
    assert_eq!(status, 400, "{body}");
    assert!(body.to_string().contains("order_date"), "{body}");
    let (status, body) = pipeline.post("L|1|155190|7706|1|17|21168.23|0.04|0.02|N|O|1996-03-13|1996-02-12|1996-03-22|DELIVER IN PERSON|TRUCK|");
    assert_eq!(status, 200, "{body}");
    let (status, found) = pipeline.status(body["message_id"].as_str().unwrap());
    assert_eq!(
        (status, found["status"].as_str()),
        (200, Some("persisted")),
        "{found}"
    );

    let columns = pipeline.kubectl(&["get", "ipl"]);
    assert!(
        columns.contains("Sync") && columns.contains("/api/ingest/message"),
        "{columns}"
    );

    pipeline.kubectl(&["delete", "ipl", "orders", "--wait"]);
    eventually(PATIENCE, "the pipeline's objects are gone", || {
        pipeline.children().is_empty()
    });
    let tally = pipeline.check(&ledger);
    assert_eq!(tally.persisted, 1_000, "the rows stay when the pipeline goes");
}

#[test]
fn a_killed_pod_loses_nothing_that_was_answered() {
    let bed = Bed::lock();
    let pipeline = Pipeline::apply(&bed, "kill");
    pipeline.wait_until_ready();
    let ledger = under_load(&bed, &pipeline, || {
        for pod in pipeline.pods() {
            pipeline.kubectl(&["delete", "pod", &pod, "--force", "--grace-period=0"]);
            pipeline.wait_until_ready();
        }
    });
    let tally = pipeline.check(&ledger);
    assert!(tally.persisted > 100, "{tally:?} {:?}", ledger.failures());
}

#[test]
fn a_stopped_database_is_a_503_and_heals_without_a_restart() {
    let bed = Bed::lock();
    let pipeline = Pipeline::apply(&bed, "outage");
    pipeline.wait_until_ready();
    let pods = pipeline.pods();
    let ledger = under_load(&bed, &pipeline, || {
        bed.cluster.postgres().stop().unwrap();
        eventually(PATIENCE, "records are answered 503", || {
            pipeline.post(bed::RECORD).0 == 503
        });
        pipeline.wait_for("DatabaseReady=False");
        bed.cluster.postgres().start().unwrap();
        eventually(PATIENCE, "records are answered 200", || {
            pipeline.post(bed::RECORD).0 == 200
        });
    });
    pipeline.wait_until_ready();
    assert_eq!(pipeline.pods(), pods, "no pod was replaced");
    assert_eq!(pipeline.restarts(), 0);
    let tally = pipeline.check(&ledger);
    assert!(tally.persisted > 0 && tally.refused > 0, "{tally:?}");
}

#[test]
fn a_roll_out_under_load_fails_no_request() {
    let bed = Bed::lock();
    let pipeline = Pipeline::apply(&bed, "roll");
    pipeline.wait_until_ready();
    let before = pipeline.pods();
    let ledger = under_load(&bed, &pipeline, || {
        pipeline.patch(r#"{"spec":{"ingest":{"requestLimits":{"timeout":"9s"}}}}"#);
        pipeline.wait_until_ready();
        eventually(PATIENCE, "the old pods are gone", || {
            pipeline.pods().iter().all(|pod| !before.contains(pod))
        });
    });
    let tally = pipeline.check(&ledger);
    assert!(tally.persisted > 100, "{tally:?}");
    assert_eq!((tally.refused, tally.unknown), (0, 0), "{:?}", ledger.failures());
}

#[test]
fn a_secret_that_comes_later_is_noticed() {
    let bed = Bed::lock();
    let pipeline = Pipeline::apply_without_secret(&bed, "secret");
    eventually(PATIENCE, "the condition names the Secret", || {
        pipeline.condition("DatabaseReady").is_some_and(|condition| {
            condition["reason"] == "SecretNotFound" && condition["message"].to_string().contains("orders-db")
        })
    });
    eventually(PATIENCE, "records are answered 503", || {
        pipeline
            .try_post(bed::RECORD)
            .is_some_and(|(status, _)| status == 503)
    });
    pipeline.create_secret();
    pipeline.wait_until_ready();
    assert_eq!(pipeline.post(bed::RECORD).0, 200);
    assert_eq!(pipeline.restarts(), 0);
}

#[test]
fn a_bad_edit_keeps_the_last_good_spec_serving() {
    let bed = Bed::lock();
    let pipeline = Pipeline::apply(&bed, "edit");
    pipeline.wait_until_ready();
    // Two columns of one name pass the API server's schema: only the operator can refuse them.
    pipeline.patch(
        r#"{"spec":{"records":[{"match":"O","table":"orders","columns":[{"name":"a","type":"text"},{"name":"A","type":"text"}]}]}}"#,
    );
    pipeline.wait_for("Accepted=False");
    pipeline.kubectl(&["delete", "service", "orders"]);
    let pod = pipeline.pods().remove(0);
    pipeline.kubectl(&["delete", "pod", &pod, "--wait=false"]);
    eventually(PATIENCE, "the Service is back and records are stored", || {
        pipeline
            .try_post(bed::RECORD)
            .is_some_and(|(status, _)| status == 200)
    });
    eventually(PATIENCE, "a new pod serves", || {
        let pods = pipeline.pods();
        pods.len() == 2 && !pods.contains(&pod)
    });
}

/// Posts while `fault` happens, and a little on either side of it.
fn under_load(bed: &Bed, pipeline: &Pipeline<'_>, fault: impl FnOnce()) -> Arc<Ledger> {
    let ledger = Arc::new(Ledger::default());
    std::thread::scope(|scope| {
        let load = scope.spawn(|| bed.run(post(&ledger, pipeline, 16, i64::MAX / 2)));
        let persisted = |at_least: usize| ledger.tally().persisted >= at_least;
        eventually(PATIENCE, "the load runs", || persisted(50));
        fault();
        let target = ledger.tally().persisted + 50;
        eventually(PATIENCE, "the load goes on", || persisted(target));
        ledger.stop();
        load.join().unwrap();
    });
    ledger
}

fn post(
    ledger: &Arc<Ledger>,
    pipeline: &Pipeline<'_>,
    connections: usize,
    records: i64,
) -> impl Future<Output = ()> + Send + 'static {
    let load = Load {
        url: pipeline.url(),
        connections,
        records,
    };
    let ledger = Arc::clone(ledger);
    async move { ledger.post(&load).await.unwrap() }
}
