//! The PostgreSQL of the tests is a real one: it checks passwords, keeps its data, and leaves nothing behind.
#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use e2e::Postgres;
use sqlx::{Connection, PgConnection};

async fn count(postgres: &Postgres) -> i64 {
    let mut connection = postgres.connect("shop").await.unwrap();
    sqlx::query_scalar("SELECT count(*) FROM t")
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

#[tokio::test]
async fn keeps_its_data_through_a_stop_and_a_kill() {
    let mut postgres = Postgres::start().await.unwrap();
    postgres.create_database("shop").await.unwrap();
    postgres
        .execute("shop", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        .await
        .unwrap();

    postgres.stop().unwrap();
    assert!(
        PgConnection::connect(&postgres.superuser_url("shop"))
            .await
            .is_err()
    );
    postgres.start_again().await.unwrap();
    assert_eq!(count(&postgres).await, 1);

    postgres.kill().unwrap();
    postgres.start_again().await.unwrap();
    assert_eq!(count(&postgres).await, 1);
}

#[tokio::test]
async fn refuses_a_wrong_password_and_writes_when_read_only() {
    let postgres = Postgres::start().await.unwrap();
    let url = postgres.url("postgres", "wrong", "postgres");
    assert!(PgConnection::connect(&url).await.is_err());

    postgres.set_read_only(true).await.unwrap();
    assert!(postgres.create_database("shop").await.is_err());
    postgres.set_read_only(false).await.unwrap();
    postgres.create_database("shop").await.unwrap();
}

#[tokio::test]
async fn leaves_no_process_behind() {
    let mut postgres = Postgres::start().await.unwrap();
    let connection = postgres.connect("postgres").await.unwrap();
    let mut second = connection;
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut second)
        .await
        .unwrap();
    postgres.kill().unwrap();
    assert!(second.ping().await.is_err());
    // The kernel takes a moment; then it is a zombie until its parent's end has been noticed, and runs nothing any more.
    let stat = Path::new("/proc").join(backend.to_string()).join("stat");
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&stat).is_ok_and(|state| !state.contains(") Z ")) {
        assert!(Instant::now() < deadline, "backend {backend} still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
