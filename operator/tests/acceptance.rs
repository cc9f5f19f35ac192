//! What the API server takes as a pipeline and what it refuses, with what words. The rules are in `crds/src/spec.rs`; only
//! an API server can say whether they are affordable.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(clippy::needless_pass_by_value, clippy::too_many_lines)] // tables

use std::{fs, path::Path};

use e2e::ControlPlane;
use nomnom_crds::spec::MAX_NAME_LENGTH;
use serde_json::{Value, json};

/// `kubectl create --dry-run=server`, which is strict about unknown fields.
const CREATE: &str =
    "/apis/nomnom.dev/v1alpha1/namespaces/default/ingestionpipelines?dryRun=All&fieldValidation=Strict";

/// What the API server answers, without keeping the object.
async fn answer(plane: &ControlPlane, pipeline: &Value) -> Result<(), String> {
    let request = http::Request::post(CREATE).header("content-type", "application/json");
    let body = serde_json::to_vec(pipeline).unwrap();
    match plane.client().request::<Value>(request.body(body).unwrap()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message),
        Err(error) => panic!("{error}"),
    }
}

async fn start() -> ControlPlane {
    let plane = ControlPlane::start().await.unwrap();
    plane.apply_crds().await.unwrap();
    plane
}

/// A pipeline with the least that is needed, changed by a JSON merge patch.
fn pipeline(patch: Value) -> Value {
    let mut pipeline = json!({
        "apiVersion": "nomnom.dev/v1alpha1",
        "kind": "IngestionPipeline",
        "metadata": {"name": "orders"},
        "spec": {
            "records": [{"table": "t", "columns": [{"name": "a", "type": "text"}]}],
            "database": {"urlSecretRef": {"name": "db"}},
        },
    });
    merge(&mut pipeline, patch);
    pipeline
}

fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (field, value) in patch {
                merge(target.entry(field).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch,
    }
}

fn spec(patch: Value) -> Value {
    pipeline(json!({ "spec": patch }))
}

fn records(records: Value) -> Value {
    spec(json!({ "records": records }))
}

fn column(column: Value) -> Value {
    records(json!([{"table": "t", "columns": [column]}]))
}

fn typed(column_type: &str) -> Value {
    column(json!({"name": "a", "type": column_type}))
}

#[tokio::test]
async fn takes_what_is_right() {
    let plane = start().await;
    let name = |length: usize| pipeline(json!({"metadata": {"name": "a".repeat(length)}}));
    let mut accepted = vec![
        ("the least", pipeline(json!({}))),
        ("the longest name", name(MAX_NAME_LENGTH)),
        ("a tab", spec(json!({"text": {"delimiter": "\t"}}))),
        (
            "a timeout",
            spec(json!({"ingest": {"requestLimits": {"timeout": "1m30s", "maxBodyBytes": 1024}}})),
        ),
        (
            "cpu as a number",
            spec(json!({"ingest": {"resources": {"requests": {"cpu": 1, "memory": "1Gi"}}}})),
        ),
        (
            "the most pods",
            spec(json!({"ingest": {"autoscaling": {"minReplicas": 1000}}})),
        ),
        // CEL cannot afford to look for these: the operator does, and says so in a condition.
        (
            "a column twice",
            records(
                json!([{"table": "t", "columns": [{"name": "a", "type": "text"}, {"name": "a", "type": "text"}]}]),
            ),
        ),
    ];
    for column_type in [
        "text",
        "varchar(10485760)",
        "bigint",
        "integer",
        "smallint",
        "numeric(15,2)",
        "boolean",
        "date",
        "timestamp",
        "timestamptz",
        "uuid",
        "double precision",
        "jsonb",
    ] {
        accepted.push((column_type, typed(column_type)));
    }
    for (what, pipeline) in accepted {
        assert_eq!(answer(&plane, &pipeline).await, Ok(()), "{what}");
    }
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")).unwrap() {
        let path = file.unwrap().path();
        let mut example: Value = serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        example["metadata"]["namespace"] = "default".into();
        assert_eq!(answer(&plane, &example).await, Ok(()), "{}", path.display());
    }
}

/// Every rule is evaluated over every element, and all of them together stay within the API server's budget.
#[tokio::test]
async fn takes_the_largest_spec() {
    let plane = start().await;
    let columns: Vec<_> = (0..1000)
        .map(|index| json!({"name": format!("c{index}"), "type": "numeric(1000,1000)"}))
        .collect();
    let largest: Vec<_> = (0..32)
        .map(|index| json!({"match": format!("{index:063}"), "table": format!("t{index}"), "columns": columns}))
        .collect();
    assert_eq!(answer(&plane, &records(json!(largest))).await, Ok(()));
}

#[tokio::test]
async fn refuses_what_is_wrong_and_says_why() {
    let plane = start().await;
    let many = |count: usize| -> Vec<Value> {
        (0..count)
            .map(|index| json!({"name": format!("c{index}"), "type": "text"}))
            .collect()
    };
    let record = |matches: &str, table: &str| json!({"match": matches, "table": table, "columns": many(1)});
    let url = |reference: Value| spec(json!({"database": {"urlSecretRef": reference}}));
    let limits = |limits: Value| spec(json!({"ingest": {"requestLimits": limits}}));
    let rejected = [
        (
            pipeline(json!({"metadata": {"name": "a".repeat(MAX_NAME_LENGTH + 1)}})),
            "at most 40 characters",
        ),
        (
            pipeline(json!({"metadata": {"name": "1st"}})),
            "start with a letter",
        ),
        (
            pipeline(json!({"metadata": {"name": "a.b"}})),
            "only lower-case letters, digits and '-'",
        ),
        (spec(json!({"modes": "Sync"})), "unknown field \"spec.modes\""),
        (spec(json!({"queue": {}})), "unknown field \"spec.queue\""),
        (
            column(json!({"name": "a", "type": "text", "default": 1})),
            "unknown field",
        ),
        (spec(json!({"mode": "Queued"})), "supported values: \"Sync\""),
        (spec(json!({"records": "orders"})), "must be of type array"),
        (
            spec(json!({"ingest": {"autoscaling": {"minReplicas": "three"}}})),
            "must be of type integer",
        ),
        (
            spec(json!({"ingest": {"autoscaling": {"minReplicas": 0}}})),
            "greater than or equal to 1",
        ),
        (
            spec(json!({"ingest": {"autoscaling": {"minReplicas": 1001}}})),
            "less than or equal to 1000",
        ),
        (records(json!([])), "should have at least 1 items"),
        (
            records(json!([{"table": "t", "columns": []}])),
            "should have at least 1 items",
        ),
        (
            records(json!([{"table": "t", "columns": many(1001)}])),
            "must have at most 1000 items",
        ),
        (
            records(json!(vec![record("a", "t"); 33])),
            "must have at most 32 items",
        ),
        (
            records(json!([record("O", "a"), record("O", "b")])),
            "two record types have the same `match`",
        ),
        (
            records(json!([record("O", "a"), {"table": "b", "columns": many(1)}])),
            "each needs `match`",
        ),
        (
            records(json!([record("", "a")])),
            "should be at least 1 chars long",
        ),
        (records(json!([record("O", "nomnom_progress")])), "nomnom's own"),
        (
            records(json!([record("O", "drop table")])),
            "spec.records[0].table",
        ),
        (
            column(json!({"name": "message_id", "type": "uuid"})),
            "primary key",
        ),
        (
            column(json!({"name": "a\"b", "type": "text"})),
            "spec.records[0].columns[0].name",
        ),
        (column(json!({"name": "a"})), "columns[0].type: Required value"),
        (typed("money"), "write one of text"),
        (typed("varchar(0)"), "write one of text"),
        (typed("numeric(15)"), "write one of text"),
        (spec(json!({"text": {"delimiter": "||"}})), "spec.text.delimiter"),
        (spec(json!({"text": {"delimiter": "a"}})), "spec.text.delimiter"),
        (spec(json!({"text": {"delimiter": ""}})), "spec.text.delimiter"),
        (
            spec(json!({"database": {"schemaPolicy": "Drop"}})),
            "supported values",
        ),
        (
            spec(json!({"database": {"schema": "a.b"}})),
            "spec.database.schema",
        ),
        (url(json!({"name": "UPPER"})), "urlSecretRef.name"),
        (url(json!({"name": ""})), "urlSecretRef.name"),
        (url(json!({"name": "db", "key": "../../etc"})), "urlSecretRef.key"),
        (
            url(json!({"name": "db", "key": ".."})),
            "does not start with '..'",
        ),
        (url(json!({"name": "db", "namespace": "other"})), "unknown field"),
        (limits(json!({"timeout": "10"})), "timeout"),
        (limits(json!({"timeout": "99ms"})), "100ms to 5m"),
        (limits(json!({"timeout": "5m1ms"})), "100ms to 5m"),
        (
            limits(json!({"maxBodyBytes": 1023})),
            "greater than or equal to 1024",
        ),
        (
            limits(json!({"maxBodyBytes": 67_108_865})),
            "less than or equal to 67108864",
        ),
        (
            spec(json!({"ingest": {"resources": {"limits": {"memory": "lots"}}}})),
            "limits.memory",
        ),
        (
            spec(json!({"ingest": {"resources": {"limits": {"memory": "-1"}}}})),
            "limits.memory",
        ),
    ];
    for (pipeline, expected) in rejected {
        let answer = answer(&plane, &pipeline).await;
        assert!(
            answer.as_ref().is_err_and(|message| message.contains(expected)),
            "expected {expected:?} of {pipeline}, got {answer:?}"
        );
    }
}
