//! Rows: every type, batches, a bad row among good ones, keys.

use std::time::Duration;

use ingest_runtime::{
    record::Row,
    store::{Message, Outcome},
};
use nomnom_crds::runtime::state::DatabaseReason;
use tokio::time::Instant;
use uuid::Uuid;

use crate::bed::{
    Bed, LONG, config, config_of, event, eventually, fields, note, wait_for_reason, wait_until_persisted,
    write, write_all,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_is_a_row() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    let messages: Vec<_> = (0..2_000)
        .map(|n| {
            if n % 4 == 0 {
                note("short")
            } else {
                event(&format!("event {n}"), Some(n))
            }
        })
        .collect();
    let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    let outcomes = write_all(&opened.store, messages).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Persisted));
    assert_eq!(bed.count("events").await, 1_500);
    assert_eq!(bed.count("notes").await, 500);
    assert!(opened.store.find(ids[0]).await.unwrap());
    assert!(opened.store.find(ids[1]).await.unwrap());
    assert!(!opened.store.find(Uuid::nil()).await.unwrap());

    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &opened.registry).unwrap();
    for name in [
        "ingestion_db_latency_seconds_count",
        "ingestion_db_connections_active 0",
        "ingestion_db_connections_idle 4",
        "ingestion_db_batch_rows_sum 2000",
        "ingestion_db_breaker_open 0",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    opened.store.clone().close().await;
}

#[tokio::test]
async fn every_type_arrives_as_it_was_sent() {
    let bed = Bed::start().await;
    let types = [
        (
            "text",
            b"a \"text\", \\ and \xc3\xa9".to_vec(),
            "a \"text\", \\ and é",
        ),
        ("varchar(5)", b"short".to_vec(), "short"),
        ("bigint", i64::MIN.to_be_bytes().to_vec(), "-9223372036854775808"),
        ("integer", i32::MAX.to_be_bytes().to_vec(), "2147483647"),
        ("smallint", (-1_i16).to_be_bytes().to_vec(), "-1"),
        // Two groups of four digits, the first of weight 0, positive, two digits shown: 123.4500.
        (
            "numeric(15,2)",
            vec![0, 2, 0, 0, 0, 0, 0, 2, 0, 123, 17, 148],
            "123.45",
        ),
        ("boolean", vec![1], "true"),
        // Days since 2000-01-01.
        ("date", (-1_i32).to_be_bytes().to_vec(), "1999-12-31"),
        // Microseconds since then.
        (
            "timestamp",
            1_i64.to_be_bytes().to_vec(),
            "2000-01-01 00:00:00.000001",
        ),
        (
            "timestamptz",
            0_i64.to_be_bytes().to_vec(),
            "2000-01-01 00:00:00+00",
        ),
        ("uuid", vec![7; 16], "07070707-0707-0707-0707-070707070707"),
        ("double precision", 1.5_f64.to_be_bytes().to_vec(), "1.5"),
        ("jsonb", b"\x01{\"a\": [1, null]}".to_vec(), "{\"a\": [1, null]}"),
    ];
    let columns: Vec<_> = types
        .iter()
        .enumerate()
        .map(|(n, (name, ..))| serde_json::json!({"name": format!("c{n}"), "type": name, "nullable": true}))
        .collect();
    let opened = bed
        .open(config_of(
            serde_json::json!([{"table": "All\u{201c}x", "columns": columns}]),
        ))
        .await;
    let message = |values: &[Option<Vec<u8>>]| Message {
        id: Uuid::from_u128(u128::from(values[0].is_some())),
        key_hash: None,
        row: Row {
            record_type: 0,
            fields: fields(values),
        },
    };
    let values: Vec<_> = types.iter().map(|(_, value, _)| Some(value.clone())).collect();
    let messages = vec![message(&values), message(&vec![None; types.len()])];
    for outcome in write_all(&opened.store, messages).await {
        assert_eq!(outcome, Outcome::Persisted);
    }
    for (n, (name, _, expected)) in types.iter().enumerate() {
        let table = "\"All\u{201c}x\"";
        let query = format!("SELECT c{n}::text FROM {table} WHERE message_id::text LIKE '%1'");
        assert_eq!(bed.scalar::<String>(&query).await, *expected, "{name}");
        let query = format!("SELECT c{n} IS NULL FROM {table} WHERE message_id::text LIKE '%0'");
        assert!(bed.scalar::<bool>(&query).await, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_row_is_refused_alone() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute("ALTER TABLE events ADD CONSTRAINT positive CHECK (amount > 0)")
        .await;
    let mut messages: Vec<_> = (1..400).map(|n| event("good", Some(n))).collect();
    messages.extend((0..50).map(|_| note("good")));
    messages.insert(123, event("bad", Some(-5)));
    messages.insert(321, note("too long"));
    let outcomes = write_all(&opened.store, messages).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        match (n, outcome) {
            (123, Outcome::Rejected { code, message, .. }) => {
                assert_eq!(code, "23514");
                assert!(message.contains("positive"), "{message}");
                assert!(!message.contains("-5"), "{message}");
            }
            (321, Outcome::Rejected { code, .. }) => assert_eq!(code, "22001"),
            (_, outcome) => assert_eq!(*outcome, Outcome::Persisted, "{n}"),
        }
    }
    assert_eq!(bed.count("events").await, 399);
    assert_eq!(bed.count("notes").await, 50);
    assert!(opened.store.state().ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rows_that_all_fail_are_the_tables_fault() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute(
        "ALTER TABLE events ADD CONSTRAINT never CHECK (amount IS NOT NULL AND name = 'x') NOT VALID",
    )
    .await;
    // A lock makes one batch of what comes meanwhile; a batch alone says so, not many small ones.
    let mut locker = bed.postgres.connect("shop").await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE events")
        .execute(&mut locker)
        .await
        .unwrap();
    let store = opened.store.clone();
    let writes =
        tokio::spawn(async move { write_all(&store, (0..300).map(|n| event("y", Some(n))).collect()).await });
    eventually("all writers wait for the lock", || async {
        bed.scalar::<i64>("SELECT count(*) FROM pg_locks WHERE NOT granted")
            .await
            >= 4
    })
    .await;
    sqlx::raw_sql("ROLLBACK").execute(&mut locker).await.unwrap();
    let outcomes = writes.await.unwrap();
    let drifted = outcomes.iter().filter(|outcome| {
        matches!(
            outcome,
            Outcome::Unavailable {
                reason: DatabaseReason::SchemaDrift,
                ..
            }
        )
    });
    assert!(drifted.count() > 200, "{:?}", outcomes.first());
    wait_for_reason(&opened.store, DatabaseReason::SchemaDrift).await;
    assert_eq!(bed.count("events").await, 0);
    bed.execute("ALTER TABLE events DROP CONSTRAINT never").await;
    wait_until_persisted(&opened.store, &[DatabaseReason::SchemaDrift]).await;
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_one_row_however_often_it_comes() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    let keyed = |key: u8, name: &str| Message {
        id: Uuid::from_u128(u128::from(key) << 64 | name.len() as u128),
        key_hash: Some([key; 32]),
        ..event(name, None)
    };
    let outcomes = write_all(&opened.store, (0..50).map(|_| keyed(1, "same")).collect()).await;
    assert!(
        outcomes.iter().all(|outcome| *outcome == Outcome::Persisted),
        "{outcomes:?}"
    );
    assert_eq!(bed.count("events").await, 1);

    // Another payload under the same key, alone and among others.
    assert_eq!(
        write(&opened.store, keyed(1, "another")).await,
        Outcome::KeyConflict
    );
    let mixed = (0..40).flat_map(|n| [keyed(n, "first"), keyed(n, "the second"), event("keyless", None)]);
    let outcomes = write_all(&opened.store, mixed.collect()).await;
    for (n, chunk) in outcomes.chunks(3).enumerate() {
        let persisted = chunk[..2]
            .iter()
            .filter(|outcome| **outcome == Outcome::Persisted)
            .count();
        let conflicts = chunk[..2]
            .iter()
            .filter(|outcome| **outcome == Outcome::KeyConflict)
            .count();
        assert_eq!(
            (persisted, conflicts),
            if n == 1 { (0, 2) } else { (1, 1) },
            "{n}: {chunk:?}"
        );
        assert_eq!(chunk[2], Outcome::Persisted);
    }
    assert_eq!(bed.count("events").await, 1 + 39 + 40);
    assert_eq!(bed.count("nomnom_keys").await, 40);
}

#[tokio::test]
async fn an_id_that_is_taken_is_told() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    let first = event("first", None);
    assert_eq!(write(&opened.store, first.clone()).await, Outcome::Persisted);
    let again = Message {
        id: first.id,
        ..event("second", None)
    };
    let outcomes = write_all(&opened.store, vec![event("a", None), again, event("b", None)]).await;
    assert_eq!(
        outcomes,
        [Outcome::Persisted, Outcome::IdTaken, Outcome::Persisted]
    );
    assert_eq!(
        bed.scalar::<i64>("SELECT count(*) FROM events WHERE name = 'second'")
            .await,
        0
    );
}

#[tokio::test]
async fn a_unique_index_of_somebody_else_refuses_the_row() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute("CREATE UNIQUE INDEX one_name ON events (name)").await;
    assert_eq!(
        write(&opened.store, event("once", None)).await,
        Outcome::Persisted
    );
    let outcome = write(&opened.store, event("once", None)).await;
    assert!(
        matches!(&outcome, Outcome::Rejected { code, .. } if code == "23505"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_row_that_a_trigger_discards_is_not_called_stored() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute(
        "CREATE FUNCTION discard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.name = ''no'' \
         THEN RETURN NULL; END IF; RETURN NEW; END'; \
         CREATE TRIGGER discard BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION discard()",
    )
    .await;
    let messages = vec![event("yes", None), event("no", None)];
    let outcomes = write_all(&opened.store, messages).await;
    assert_eq!(outcomes[0], Outcome::Persisted);
    assert!(
        matches!(outcomes[1], Outcome::Rejected { .. }),
        "{:?}",
        outcomes[1]
    );
}

#[tokio::test]
async fn keys_are_removed_after_seven_days() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute(
        "INSERT INTO nomnom_keys SELECT sha256(n::text::bytea), gen_random_uuid(), now() - interval '7 days 1 minute' \
         FROM generate_series(1, 2500) n; \
         INSERT INTO nomnom_keys VALUES ('young', gen_random_uuid(), now() - interval '6 days 23 hours')",
    )
    .await;
    eventually("old keys are gone", || async {
        bed.count("nomnom_keys").await == 1
    })
    .await;
    drop(opened);
}

#[tokio::test]
async fn a_write_that_nobody_waits_for_is_done_all_the_same() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    let mut locker = bed.postgres.connect("shop").await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE events")
        .execute(&mut locker)
        .await
        .unwrap();
    for _ in 0..10 {
        let write = opened.store.write(event("left", None), Instant::now() + LONG);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), write)
                .await
                .is_err()
        );
    }
    sqlx::raw_sql("ROLLBACK").execute(&mut locker).await.unwrap();
    eventually("all rows are there", || async { bed.count("events").await == 10 }).await;
    opened.store.clone().close().await;
}
