//! What is done to a database that stays up: each fault is told from a bad row, and heals by itself.

use std::time::Duration;

use ingest_runtime::store::Outcome;
use nomnom_crds::runtime::state::DatabaseReason;
use tokio::time::Instant;

use crate::bed::{
    Bed, DATABASE, USER, config, event, eventually, note, refused, wait_for_reason, wait_until_persisted,
    write, write_all,
};

#[tokio::test]
async fn a_column_that_somebody_added_is_no_fault_of_rows() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute_as_user("ALTER TABLE events ADD COLUMN added text NOT NULL")
        .await;
    // One request at a time: there is no batch to judge by.
    let reason = refused(&write(&opened.store, event("x", None)).await);
    assert_eq!(reason, DatabaseReason::SchemaDrift);
    let state = wait_for_reason(&opened.store, DatabaseReason::SchemaMismatch).await;
    assert!(state.message.contains("\"added\""), "{}", state.message);
    for outcome in write_all(&opened.store, (0..30).map(|_| event("x", None)).collect()).await {
        refused(&outcome);
    }
    bed.execute_as_user("ALTER TABLE events DROP COLUMN added").await;
    let reasons = [DatabaseReason::SchemaDrift, DatabaseReason::SchemaMismatch];
    wait_until_persisted(&opened.store, &reasons).await;
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
    assert_eq!(bed.count("events").await, 1);
}

#[tokio::test]
async fn a_column_that_somebody_narrowed_is_no_fault_of_rows() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute_as_user(
        "ALTER TABLE notes ALTER name TYPE varchar(2); ALTER TABLE events ALTER amount SET NOT NULL",
    )
    .await;
    assert_eq!(
        refused(&write(&opened.store, note("short")).await),
        DatabaseReason::SchemaMismatch
    );
    bed.execute_as_user("ALTER TABLE notes ALTER name TYPE varchar(5)")
        .await;
    let state = wait_for_reason(&opened.store, DatabaseReason::SchemaMismatch).await;
    assert!(!state.differences.is_empty());
    bed.execute_as_user("ALTER TABLE events ALTER amount DROP NOT NULL")
        .await;
    wait_until_persisted(&opened.store, &[DatabaseReason::SchemaMismatch]).await;
    assert_eq!(write(&opened.store, note("short")).await, Outcome::Persisted);
}

#[tokio::test]
async fn a_locked_table_is_refused_for_now() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    let mut locker = bed.postgres.connect(DATABASE).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE events")
        .execute(&mut locker)
        .await
        .unwrap();
    assert_eq!(
        refused(&write(&opened.store, event("x", None)).await),
        DatabaseReason::DatabaseError
    );
    let state = wait_for_reason(&opened.store, DatabaseReason::DatabaseError).await;
    assert!(state.message.contains("lock"), "{}", state.message);
    sqlx::raw_sql("ROLLBACK").execute(&mut locker).await.unwrap();
    wait_until_persisted(&opened.store, &[DatabaseReason::DatabaseError]).await;
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
    assert_eq!(bed.count("events").await, 1);
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_refused_for_now() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NEW; END'; \
         CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
    assert_eq!(
        refused(&write(&opened.store, event("x", None)).await),
        DatabaseReason::DatabaseError
    );
    assert!(
        opened.store.state().message.contains("57014"),
        "{:?}",
        opened.store.state()
    );
    assert_eq!(bed.count("events").await, 0);
    bed.execute("DROP TRIGGER slow ON events").await;
    wait_until_persisted(&opened.store, &[DatabaseReason::DatabaseError]).await;
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
}

#[tokio::test]
async fn what_is_in_flight_at_the_deadline_is_unknown() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    let mut locker = bed.postgres.connect(DATABASE).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE events")
        .execute(&mut locker)
        .await
        .unwrap();
    let deadline = Instant::now() + Duration::from_millis(300);
    assert_eq!(
        opened.store.write(event("x", None), deadline).await,
        Outcome::Unknown
    );
    sqlx::raw_sql("ROLLBACK").execute(&mut locker).await.unwrap();
    opened.store.clone().close().await;
    assert!(bed.count("events").await <= 1);
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_refused_for_now() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute(&format!("REVOKE INSERT ON events FROM {USER}")).await;
    assert_eq!(
        refused(&write(&opened.store, event("x", None)).await),
        DatabaseReason::PermissionDenied
    );
    let lacking = || async { opened.store.state().message.contains("GRANT INSERT ON") };
    eventually("the message says what to grant", lacking).await;
    bed.execute(&format!("GRANT INSERT ON events TO {USER}")).await;
    wait_until_persisted(&opened.store, &[DatabaseReason::PermissionDenied]).await;
}

#[tokio::test]
async fn a_table_that_is_dropped_is_made_again() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute("DROP TABLE events").await;
    wait_until_persisted(&opened.store, &[DatabaseReason::TableMissing]).await;
}

#[tokio::test]
async fn a_fail_over_to_a_standby_is_noticed_with_and_without_rows() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.postgres.set_read_only(true).await.unwrap();
    wait_for_reason(&opened.store, DatabaseReason::ReadOnly).await;
    assert_eq!(
        refused(&write(&opened.store, event("x", None)).await),
        DatabaseReason::ReadOnly
    );
    bed.postgres.set_read_only(false).await.unwrap();
    wait_until_persisted(&opened.store, &[DatabaseReason::ReadOnly]).await;

    bed.postgres.set_read_only(true).await.unwrap();
    eventually("a row is refused", || async {
        matches!(
            write(&opened.store, event("x", None)).await,
            Outcome::Unavailable { .. }
        )
    })
    .await;
    assert_eq!(opened.store.state().reason, DatabaseReason::ReadOnly);
    bed.postgres.set_read_only(false).await.unwrap();
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
}

#[tokio::test]
async fn a_url_is_read_until_it_works() {
    let bed = Bed::start().await;
    std::fs::remove_file(bed.url_file()).unwrap();
    let opened = bed.open_unconnected(config());
    let state = wait_for_reason(&opened.store, DatabaseReason::SecretNotFound).await;
    assert!(
        state.message.contains("Secret \"orders-db\", key \"url\""),
        "{}",
        state.message
    );
    assert_eq!(
        refused(&write(&opened.store, event("x", None)).await),
        DatabaseReason::SecretNotFound
    );
    for (url, reason) in [
        (
            "mysql://user:verysecret@host/db".to_owned(),
            DatabaseReason::InvalidUrl,
        ),
        (
            bed.postgres.url(USER, "verysecret", DATABASE),
            DatabaseReason::AuthenticationFailed,
        ),
        (
            bed.postgres.url("verysecret", "x", DATABASE),
            DatabaseReason::AuthenticationFailed,
        ),
        (
            bed.url().replace("/shop", "/verysecret"),
            DatabaseReason::DatabaseNotFound,
        ),
        (
            "postgres://user:verysecret@127.0.0.1:1/shop".to_owned(),
            DatabaseReason::Unreachable,
        ),
    ] {
        bed.write_url(&url);
        let state = wait_for_reason(&opened.store, reason).await;
        assert!(!state.message.contains("verysecret"), "{}", state.message);
    }
    bed.write_url(&format!("{}\n", bed.url()));
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
}

#[tokio::test]
async fn a_password_is_rotated_without_a_restart_and_a_wrong_one_breaks_nothing() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.write_url(&bed.postgres.url(USER, "wrong", DATABASE));
    eventually("the state says so", || async {
        opened.store.state().message.contains("former URL")
    })
    .await;
    assert!(opened.store.state().ready);
    assert_eq!(write(&opened.store, event("x", None)).await, Outcome::Persisted);
    bed.execute(&format!("ALTER ROLE {USER} PASSWORD 'wrong'")).await;
    eventually("the new one is used", || async {
        opened.store.state().message.is_empty()
    })
    .await;
    assert_eq!(write(&opened.store, event("x", None)).await, Outcome::Persisted);
}

#[tokio::test]
async fn a_useless_url_does_not_turn_a_passing_fault_into_an_outage() {
    let mut bed = Bed::start().await;
    let opened = bed.open(config()).await;
    // It takes connections, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for url in [
        format!("postgres://user:verysecret@127.0.0.1:{port}/shop"),
        bed.postgres.url(USER, "verysecret", DATABASE),
    ] {
        bed.write_url(&url);
        bed.postgres.kill().unwrap();
        wait_for_reason(&opened.store, DatabaseReason::Unreachable).await;
        bed.postgres.start_again().await.unwrap();
        eventually("the former URL is used", || async {
            write(&opened.store, event("x", None)).await == Outcome::Persisted
        })
        .await;
        let state = wait_for_reason(&opened.store, DatabaseReason::Connected).await;
        assert!(state.message.contains("former URL"), "{}", state.message);
        assert!(!state.message.contains("verysecret"), "{}", state.message);
    }
    bed.write_url(&bed.url());
    eventually("nothing is amiss", || async {
        opened.store.state().message.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_row_that_a_trigger_fails_for_does_not_stop_the_others() {
    let bed = Bed::start().await;
    let opened = bed.open(config()).await;
    bed.execute(
        "CREATE FUNCTION pick() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.name LIKE ''bad%'' THEN \
         RAISE EXCEPTION ''no % here'', NEW.name USING ERRCODE = ''P0002''; END IF; RETURN NEW; END'; \
         CREATE TRIGGER pick BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION pick()",
    )
    .await;
    let names = |n| if n % 50 == 7 { "bad verysecret" } else { "good" };
    let messages = (0..200).map(|n| event(names(n), None)).collect();
    for (n, outcome) in write_all(&opened.store, messages).await.iter().enumerate() {
        match names(n) {
            "good" => assert_eq!(*outcome, Outcome::Persisted),
            _ => assert_eq!(refused(outcome), DatabaseReason::DatabaseError),
        }
        assert!(opened.store.state().ready);
    }
    assert_eq!(bed.count("events").await, 196);
    // Where it fails for every row, that is told, without what the rows hold.
    let messages = (0..30).map(|_| event("bad verysecret", None)).collect();
    for outcome in write_all(&opened.store, messages).await {
        refused(&outcome);
    }
    eventually("every row fails", || async {
        write(&opened.store, event("bad verysecret", None)).await;
        opened.store.state().reason == DatabaseReason::SchemaDrift
    })
    .await;
    let state = opened.store.state();
    assert!(state.message.contains("SQLSTATE P0002"), "{}", state.message);
    assert!(!state.message.contains("verysecret"), "{}", state.message);
    wait_until_persisted(
        &opened.store,
        &[DatabaseReason::SchemaDrift, DatabaseReason::DatabaseError],
    )
    .await;
}

#[tokio::test]
async fn sessions_are_durable_and_limited() {
    let bed = Bed::start().await;
    bed.execute(&format!(
        "ALTER ROLE {USER} SET synchronous_commit = off; ALTER ROLE {USER} SET statement_timeout = '1ms'"
    ))
    .await;
    let opened = bed.open(config()).await;
    bed.execute(
        "CREATE TABLE seen (name text, setting text); \
         CREATE FUNCTION show() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN INSERT INTO seen \
         SELECT name, setting FROM pg_settings; RETURN NEW; END'; \
         CREATE TRIGGER show BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION show()",
    )
    .await;
    assert_eq!(write(&opened.store, event("x", None)).await, Outcome::Persisted);
    for (name, expected) in [
        ("synchronous_commit", "on"),
        ("statement_timeout", "2000"),
        ("lock_timeout", "1000"),
        ("idle_in_transaction_session_timeout", "10000"),
        ("application_name", "nomnom shop/orders"),
    ] {
        let query = format!("SELECT setting FROM seen WHERE name = '{name}'");
        assert_eq!(bed.scalar::<String>(&query).await, expected, "{name}");
    }
}
