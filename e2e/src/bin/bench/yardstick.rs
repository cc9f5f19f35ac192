//! What nomnom is measured against: an axum hello-world on the same route, which bounds what any HTTP service
//! can reach here, and an ordinary service, as a team would write it: one INSERT a request through a pool.

use std::{env, net::SocketAddr};

use anyhow::{Context, Result};
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use nomnom_crds::runtime::INGEST_PATH;
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::net::TcpListener;

/// The variable that tells a yardstick where to listen.
pub(crate) const LISTEN_VARIABLE: &str = "NOMNOM_BENCH_LISTEN";

/// The table of the ordinary service.
pub(crate) const ORDINARY_TABLE: &str = "ordinary_orders";

/// The connections of the ordinary service's pool: where it was fastest on two cores (of 8 to 64).
const POOL_SIZE: u32 = 32;

/// Answers every post with `hello, world`.
pub(crate) async fn serve_hello() -> Result<()> {
    serve(Router::new().route(INGEST_PATH, post(|_body: String| async { "hello, world" }))).await
}

/// Stores each record with one INSERT.
pub(crate) async fn serve_ordinary(database_url: &str) -> Result<()> {
    let pool = PgPoolOptions::new()
        .max_connections(POOL_SIZE)
        .connect(database_url)
        .await?;
    let table = format!(
        "CREATE TABLE IF NOT EXISTS {ORDINARY_TABLE} (message_id uuid PRIMARY KEY, order_key bigint NOT NULL, \
         customer_key bigint NOT NULL, order_status varchar(1) NOT NULL, total_price numeric(15,2) NOT NULL, \
         order_date date NOT NULL, order_priority varchar(15) NOT NULL, clerk varchar(15) NOT NULL, \
         ship_priority integer NOT NULL, comment varchar(79))"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(table)).execute(&pool).await?;
    serve(Router::new().route(INGEST_PATH, post(insert)).with_state(pool)).await
}

async fn serve(router: Router) -> Result<()> {
    let address = env::var(LISTEN_VARIABLE).with_context(|| format!("{LISTEN_VARIABLE} is not set"))?;
    let address: SocketAddr = address.parse().context("not an address")?;
    axum::serve(TcpListener::bind(address).await?, router)
        .await
        .context("failed to serve")
}

async fn insert(State(pool): State<PgPool>, body: String) -> Result<Json<Value>, (StatusCode, String)> {
    let bad = |detail: &str| (StatusCode::BAD_REQUEST, detail.to_owned());
    let fields: Vec<&str> = body.trim_end().split('|').collect();
    let [
        "O",
        order,
        customer,
        status,
        price,
        date,
        priority,
        clerk,
        ship_priority,
        comment,
    ] = fields[..]
    else {
        return Err(bad("not an order"));
    };
    let id = uuid::Uuid::new_v4();
    sqlx::query(
        "INSERT INTO ordinary_orders VALUES ($1, $2, $3, $4, $5::text::numeric, $6::text::date, $7, $8, $9, $10)",
    )
    .bind(id)
    .bind(order.parse::<i64>().map_err(|_| bad("order_key"))?)
    .bind(customer.parse::<i64>().map_err(|_| bad("customer_key"))?)
    .bind(status)
    .bind(price)
    .bind(date)
    .bind(priority)
    .bind(clerk)
    .bind(ship_priority.parse::<i32>().map_err(|_| bad("ship_priority"))?)
    .bind(comment)
    .execute(&pool)
    .await
    .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(
        json!({ "message_id": id, "status": "persisted", "errors": [] }),
    ))
}
