//! What becomes of good records: committed, found again, stored once for each idempotency key.
#![allow(clippy::unwrap_used)]

mod harness;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use e2e::Postgres;
use harness::{DATABASE, ORDER, PATIENCE, Runtime, answer, example, kind, postgres};
use nomnom_crds::{
    ColumnType,
    resolved::{ResolvedColumn, ResolvedRecord},
};
use sqlx::AssertSqlSafe;

async fn count(postgres: &Postgres, condition: &str) -> i64 {
    let mut connection = postgres.connect(DATABASE).await.unwrap();
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {condition}")))
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_record_is_in_its_table_when_it_is_answered() {
    let postgres = postgres().await;
    let runtime = Runtime::start_on(&postgres, &example()).await;

    let (status, body) = runtime.ingest(ORDER).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["status"], &body["errors"]), (&"persisted".into(), &serde_json::json!([])));
    let id = body["message_id"].as_str().unwrap();
    let row = format!(
        "orders WHERE message_id = '{id}' AND order_key = 123 AND customer_key = 456 AND order_status = 'F' \
         AND total_price = 123.45 AND order_date = '2024-01-01' AND order_priority = 'urgent' AND clerk = 'clerk1' \
         AND ship_priority = 1 AND comment = 'comment'"
    );
    assert_eq!(count(&postgres, &row).await, 1);

    let line = "L|123|155190|7706|1|17|21168.23|0.04|0.02|N|O|1996-03-13|1996-02-12|1996-03-22|DELIVER IN PERSON|TRUCK|\r\n";
    assert_eq!(runtime.ingest(line).await.0, 200);
    assert_eq!(count(&postgres, "lineitem WHERE comment IS NULL AND extended_price = 21168.23").await, 1);

    let (status, found) = runtime.status(id).await;
    assert_eq!((status, &found["status"], &found["message_id"]), (200, &"persisted".into(), &id.into()));
    let head = runtime.client.head(runtime.url(&format!("/api/ingest/status/{id}")));
    assert_eq!(head.send().await.unwrap().status(), 200);

    postgres.execute(DATABASE, "DELETE FROM orders").await.unwrap();
    let (status, found) = runtime.status(id).await;
    assert_eq!((status, &found["status"]), (200, &"unknown".into()));
}

#[tokio::test]
async fn one_key_is_one_row_from_50_connections_at_once() {
    let postgres = postgres().await;
    let runtime = Runtime::start_on(&postgres, &example()).await;
    let requests = (0..50).map(|_| async {
        // A client of its own is a connection of its own.
        let request = reqwest::Client::new()
            .post(runtime.url(nomnom_crds::runtime::INGEST_PATH))
            .header("content-type", "text/plain")
            .header("idempotency-key", "\"order-123\"")
            .body(ORDER);
        answer(request.send().await.unwrap()).await
    });
    let answers = futures::future::join_all(requests).await;
    let ids: HashSet<_> = answers
        .iter()
        .map(|(status, body)| {
            assert_eq!(*status, 200, "{body}");
            body["message_id"].as_str().unwrap()
        })
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(count(&postgres, "orders").await, 1);

    let other = ORDER.replace("urgent", "lazy");
    let conflict = runtime.post(other.clone()).header("idempotency-key", "order-123");
    let (status, problem) = answer(conflict.send().await.unwrap()).await;
    assert_eq!((status, kind(&problem)), (422, "key-reused"));
    let another = runtime.post(other).header("idempotency-key", "order-124");
    assert_eq!(answer(another.send().await.unwrap()).await.0, 200);
    assert_eq!(count(&postgres, "orders").await, 2);
    let (status, found) = runtime.status(ids.iter().next().unwrap()).await;
    assert_eq!((status, &found["status"]), (200, &"persisted".into()));
}

#[tokio::test]
async fn without_a_key_the_same_record_is_another_message() {
    let postgres = postgres().await;
    let runtime = Runtime::start_on(&postgres, &example()).await;
    for _ in 0..3 {
        assert_eq!(runtime.ingest(ORDER).await.0, 200);
    }
    assert_eq!(count(&postgres, "orders").await, 3);
}

#[tokio::test]
async fn a_row_that_the_table_refuses_is_a_400() {
    let postgres = postgres().await;
    let runtime = Runtime::start_on(&postgres, &example()).await;
    let check = "ALTER TABLE orders ADD CONSTRAINT positive CHECK (total_price > 0)";
    postgres.execute(DATABASE, check).await.unwrap();
    let (status, problem) = runtime.ingest(ORDER.replace("123.45", "-1")).await;
    assert_eq!((status, kind(&problem)), (400, "invalid-record"), "{problem}");
    let error = &problem["errors"][0];
    assert_eq!((&error["code"], &error["sqlstate"]), (&"refused_by_database".into(), &"23514".into()));
    assert_eq!(runtime.ingest(ORDER).await.0, 200);
}

#[tokio::test]
async fn a_database_that_is_away_is_a_503_and_comes_back_by_itself() {
    let mut postgres = postgres().await;
    let runtime = Runtime::start_on(&postgres, &example()).await;
    let (_, body) = runtime.ingest(ORDER).await;
    let id = body["message_id"].as_str().unwrap();

    postgres.stop().unwrap();
    // What is on its way when the connection breaks is answered 504; what comes later is refused.
    let start = Instant::now();
    loop {
        let response = runtime.post(ORDER).send().await.unwrap();
        let retry_after = response.headers().contains_key("retry-after");
        match answer(response).await {
            (503, problem) => {
                assert_eq!(kind(&problem), "database-unavailable");
                assert!(retry_after);
                break;
            }
            (status, problem) => assert_eq!(status, 504, "{problem}"),
        }
        assert!(start.elapsed() < PATIENCE, "{}", runtime.log());
    }
    assert_eq!(runtime.status(id).await.0, 503);
    assert_eq!(runtime.get_admin("/readyz").await.status(), 200);

    postgres.start_again().await.unwrap();
    let start = Instant::now();
    while runtime.ingest(ORDER).await.0 != 200 {
        assert!(start.elapsed() < PATIENCE, "{}", runtime.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(runtime.status(id).await.1["status"], "persisted");
}

#[tokio::test]
async fn an_outcome_that_is_not_known_is_a_504_and_its_status_tells_later() {
    let postgres = postgres().await;
    let mut config = example();
    config.limits.timeout = nomnom_crds::Duration::from_millis(1000);
    let runtime = Runtime::start_on(&postgres, &config).await;
    assert_eq!(runtime.ingest(ORDER).await.0, 200);

    postgres.pause().unwrap();
    let (status, problem) = runtime.ingest(ORDER).await;
    assert_eq!((status, kind(&problem)), (504, "outcome-unknown"), "{problem}");
    postgres.resume().unwrap();

    let id = problem["message_id"].as_str().unwrap();
    let start = Instant::now();
    loop {
        let (status, found) = runtime.status(id).await;
        if status == 200 && found["status"] == "persisted" {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{found}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Texts that both the decoder and PostgreSQL accept.
const TEXTS: [(&str, &[&str]); 14] = [
    ("text", &["", "x", "äöü \\N 'quoted' \"\t", "日本語"]),
    ("varchar(3)", &["", "abc", "äöü"]),
    ("bigint", &["0", "-9223372036854775808", "9223372036854775807", "+007"]),
    ("integer", &["-2147483648", "2147483647"]),
    ("smallint", &["-32768", "32767"]),
    (
        "numeric(15,2)",
        &["0", "-0", "0.00", "123.45", "-9999999999999.99", "9999999999999.99", ".5", "5.", "1e3", "1.5E-1", "10000", "100000000.01", "000012.30"],
    ),
    (
        "numeric(30,20)",
        &["0.00000000000000000001", "-1234567890.12345678901234567890", "1e-20", "10000.0001", "0.0001", "0.00001"],
    ),
    ("numeric(40,0)", &["1e39", "1234567890123456789012345678901234567890", "10000000000000000"]),
    ("boolean", &["t", "true", "TRUE", "y", "yes", "on", "1", "f", "false", "n", "no", "off", "0"]),
    ("date", &["0001-01-01", "1582-10-10", "1900-02-28", "1970-01-01", "2000-02-29", "9999-12-31"]),
    (
        "timestamp",
        &["2024-01-31T23:59:59.999999", "1999-12-31 23:59", "0001-01-01T00:00:00", "9999-12-31T23:59:59.1", "2024-01-01T00:00:00.1000000"],
    ),
    (
        "timestamptz",
        &["2024-01-31T23:59:59.999999Z", "2024-02-29 12:00:00+02:00", "1969-12-31T23:59:59-1130", "2024-01-01T00:00:00+05", "0001-01-01T00:00:00+15:59"],
    ),
    ("uuid", &["018f4e3a-7b1c-7d2e-9f00-112233445566", "018F4E3A7B1C7D2E9F00112233445566"]),
    (
        "double precision",
        &["0", "-0", "1.5", "-2e10", "1e308", "1.7976931348623157e308", "5e-324", "0.1", "+3.", ".25"],
    ),
];
const JSON_TEXTS: &[&str] = &[
    "null", "[]", "{}", "\"\\u00e4\\ud83d\\ude00\"", " {\"a\" : [1, -2.5e3, true, null, {\"b\":\"c\"}] } ", "1e100000",
    "123456789012345678901234567890.5", "{\"a\":1,\"a\":2}",
];

#[tokio::test]
async fn what_is_stored_is_what_postgresql_reads_from_the_same_text() {
    let postgres = postgres().await;
    let cases: Vec<(&str, &[&str])> = TEXTS.into_iter().chain([("jsonb", JSON_TEXTS)]).collect();
    let mut config = example();
    config.records = cases
        .iter()
        .enumerate()
        .map(|(index, (column_type, _))| ResolvedRecord {
            matches: Some(format!("t{index}")),
            table: format!("t{index}"),
            columns: vec![ResolvedColumn {
                name: "value".into(),
                column_type: column_type.parse::<ColumnType>().unwrap(),
                nullable: false,
            }],
        })
        .collect();
    let runtime = Runtime::start_on(&postgres, &config).await;
    let mut connection = postgres.connect(DATABASE).await.unwrap();
    for (index, (column_type, texts)) in cases.iter().enumerate() {
        for text in *texts {
            let (status, body) = runtime.ingest(format!("t{index}|{text}")).await;
            assert_eq!(status, 200, "{column_type} {text}: {body}");
            let query = format!(
                "SELECT value::text, $1::text::{column_type}::text FROM t{index} WHERE message_id = $2::text::uuid"
            );
            let (stored, read): (String, String) = sqlx::query_as(AssertSqlSafe(query))
                .bind(text)
                .bind(body["message_id"].as_str().unwrap())
                .fetch_one(&mut connection)
                .await
                .unwrap();
            assert_eq!(stored, read, "{column_type} {text}");
        }
    }
}
