//! The schema: made, extended, compared, and never altered else.

use ingest_runtime::store::{Message, Outcome};
use nomnom_crds::{runtime::RuntimeConfig, runtime::state::DatabaseReason, spec::SchemaPolicy};

use crate::bed::{
    Bed, USER, config, config_of, event, eventually, note, refused, wait_for_reason, wait_until_persisted,
    write,
};

fn with_policy(policy: SchemaPolicy) -> RuntimeConfig {
    let mut config = config();
    config.database.schema_policy = policy;
    config
}

async fn columns_of(bed: &Bed, table: &str) -> String {
    bed.scalar(&format!(
        "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN '!' ELSE '' END, \
         ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped"
    ))
    .await
}

#[tokio::test]
async fn stores_that_start_at_once_make_the_tables_once() {
    let bed = Bed::start().await;
    let stores: Vec<_> = (0..6).map(|_| bed.open_unconnected(config())).collect();
    for opened in &stores {
        wait_for_reason(&opened.store, DatabaseReason::Connected).await;
        assert_eq!(write(&opened.store, event("x", None)).await, Outcome::Persisted);
    }
    assert_eq!(bed.count("events").await, 6);
    assert_eq!(
        columns_of(&bed, "events").await,
        "message_id uuid!, name text!, amount bigint"
    );
    assert_eq!(
        columns_of(&bed, "notes").await,
        "message_id uuid!, name character varying(5)!"
    );
}

#[tokio::test]
async fn a_nullable_column_is_added_and_a_foreign_one_accepted() {
    let bed = Bed::start().await;
    bed.execute_as_user(
        "CREATE TABLE events (message_id uuid PRIMARY KEY, name text, remark text, seen timestamptz NOT NULL DEFAULT now())",
    )
    .await;
    let opened = bed.open(config()).await;
    assert_eq!(
        write(&opened.store, event("x", Some(1))).await,
        Outcome::Persisted
    );
    assert_eq!(
        columns_of(&bed, "events").await,
        "message_id uuid!, name text, remark text, seen timestamp with time zone!, amount bigint"
    );
}

#[tokio::test]
async fn a_table_that_differs_is_reported_and_left_alone() {
    let bed = Bed::start().await;
    bed.execute_as_user(
        "CREATE TABLE events (message_id uuid PRIMARY KEY, name integer, amount bigint, extra text NOT NULL)",
    )
    .await;
    let before = columns_of(&bed, "events").await;
    let opened = bed.open_unconnected(config());
    let state = wait_for_reason(&opened.store, DatabaseReason::SchemaMismatch).await;
    assert_eq!(
        state.differences,
        [
            "table \"events\": column \"name\" is integer, the spec says text",
            "table \"events\": column \"extra\" is not in the spec, so it must be nullable or have a default",
        ]
    );
    assert!(state.message.contains("(and 1 more)"), "{}", state.message);
    assert_eq!(
        refused(&write(&opened.store, event("x", None)).await),
        DatabaseReason::SchemaMismatch
    );
    assert_eq!(columns_of(&bed, "events").await, before);
    assert_eq!(
        bed.scalar::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'notes'")
            .await,
        0
    );
    bed.execute_as_user("ALTER TABLE events ALTER name TYPE text, ALTER extra DROP NOT NULL")
        .await;
    wait_until_persisted(&opened.store, &[DatabaseReason::SchemaMismatch]).await;
}

#[tokio::test]
async fn a_table_without_the_key_or_a_view_is_no_target() {
    let bed = Bed::start().await;
    bed.execute_as_user(
        "CREATE TABLE events (message_id uuid, name text, amount bigint); CREATE VIEW notes AS SELECT 1 AS name",
    )
    .await;
    let opened = bed.open_unconnected(config());
    let state = wait_for_reason(&opened.store, DatabaseReason::SchemaMismatch).await;
    assert_eq!(
        state.differences,
        [
            "table \"events\": column \"message_id\" alone must be the primary key, or have a unique index",
            "table \"notes\": it is no table; drop it, or name another one",
        ]
    );
}

#[tokio::test]
async fn verify_changes_nothing_and_ignore_does_not_look() {
    let bed = Bed::start().await;
    let verifying = bed.open_unconnected(with_policy(SchemaPolicy::Verify));
    let state = wait_for_reason(&verifying.store, DatabaseReason::TableMissing).await;
    assert!(state.message.contains("\"events\""), "{}", state.message);
    assert_eq!(
        bed.scalar::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'events'")
            .await,
        0
    );

    let managing = bed.open(config()).await;
    wait_for_reason(&verifying.store, DatabaseReason::Connected).await;
    drop(managing);
    bed.execute("ALTER TABLE notes ALTER name TYPE varchar(9)").await;
    let ignoring = bed.open(with_policy(SchemaPolicy::Ignore)).await;
    assert_eq!(write(&ignoring.store, event("x", None)).await, Outcome::Persisted);
    let verifying = bed.open_unconnected(with_policy(SchemaPolicy::Verify));
    let state = wait_for_reason(&verifying.store, DatabaseReason::SchemaMismatch).await;
    assert_eq!(
        state.differences,
        ["table \"notes\": column \"name\" is character varying(9), the spec says varchar(5)"]
    );
}

#[tokio::test]
async fn a_schema_that_is_missing_is_said_and_used_when_it_comes() {
    let bed = Bed::start().await;
    let mut config = config();
    config.database.schema = "My \"schema\"".into();
    let opened = bed.open_unconnected(config);
    wait_for_reason(&opened.store, DatabaseReason::SchemaMissing).await;
    bed.execute("CREATE SCHEMA \"My \"\"schema\"\"\"").await;
    let state = wait_for_reason(&opened.store, DatabaseReason::PermissionDenied).await;
    assert!(state.message.contains("grant"), "{}", state.message);
    bed.execute(&format!("GRANT USAGE ON SCHEMA \"My \"\"schema\"\"\" TO {USER}"))
        .await;
    let state = wait_for_reason(&opened.store, DatabaseReason::PermissionDenied).await;
    assert!(
        state.message.contains("CREATE") || state.message.contains("USAGE"),
        "{}",
        state.message
    );
    bed.execute(&format!("GRANT CREATE ON SCHEMA \"My \"\"schema\"\"\" TO {USER}"))
        .await;
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
    assert_eq!(write(&opened.store, event("x", None)).await, Outcome::Persisted);
}

#[tokio::test]
async fn tables_joined_by_a_foreign_key_are_refused() {
    let bed = Bed::start().await;
    let records = serde_json::json!([
        {"match": "A", "table": "parents", "columns": [{"name": "id", "type": "bigint", "nullable": true}]},
        {"match": "B", "table": "children", "columns": [{"name": "parent", "type": "bigint", "nullable": true}]},
    ]);
    bed.execute_as_user(
        "CREATE TABLE parents (message_id uuid PRIMARY KEY, id bigint UNIQUE); \
         CREATE TABLE children (message_id uuid PRIMARY KEY, \
                                parent bigint CONSTRAINT family REFERENCES parents (id))",
    )
    .await;
    let opened = bed.open_unconnected(config_of(&records));
    let state = wait_for_reason(&opened.store, DatabaseReason::ForeignKeyBetweenTargets).await;
    assert!(state.message.contains("\"family\""), "{}", state.message);
    bed.execute("ALTER TABLE children DROP CONSTRAINT family").await;
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
}

#[tokio::test]
async fn another_receipt_key_is_noticed() {
    let bed = Bed::start().await;
    let opened = bed.open_with_key(config(), "aaaaaaaaaaaaaaaa");
    let state = wait_for_reason(&opened.store, DatabaseReason::Connected).await;
    assert_eq!(state.receipt_key_fingerprint.as_deref(), Some("aaaaaaaaaaaaaaaa"));
    let other = bed.open_with_key(config(), "bbbbbbbbbbbbbbbb");
    let state = wait_for_reason(&other.store, DatabaseReason::ReceiptKeyLost).await;
    assert_eq!(state.receipt_key_fingerprint.as_deref(), Some("aaaaaaaaaaaaaaaa"));
    assert_eq!(
        refused(&write(&other.store, event("x", None)).await),
        DatabaseReason::ReceiptKeyLost
    );
}

#[tokio::test]
async fn a_table_that_is_locked_while_it_is_extended_is_waited_for() {
    let bed = Bed::start().await;
    bed.execute_as_user("CREATE TABLE events (message_id uuid PRIMARY KEY, name text)")
        .await;
    let mut locker = bed.postgres.connect("shop").await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE events IN ACCESS SHARE MODE")
        .execute(&mut locker)
        .await
        .unwrap();
    let opened = bed.open_unconnected(config());
    let state = wait_for_reason(&opened.store, DatabaseReason::DatabaseError).await;
    assert!(
        state.message.contains("add column \"events\".\"amount\""),
        "{}",
        state.message
    );
    sqlx::raw_sql("ROLLBACK").execute(&mut locker).await.unwrap();
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
}

#[tokio::test]
async fn a_user_with_no_more_rights_than_are_named_will_do() {
    let bed = Bed::start().await;
    drop(bed.open(config()).await);
    bed.execute(&format!(
        "REASSIGN OWNED BY {USER} TO postgres; REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {USER}; \
         REVOKE ALL ON SCHEMA public FROM {USER}, PUBLIC; GRANT USAGE ON SCHEMA public TO {USER}; \
         INSERT INTO nomnom_keys VALUES ('old', gen_random_uuid(), now() - interval '8 days')"
    ))
    .await;
    let opened = bed.open_unconnected(with_policy(SchemaPolicy::Verify));
    let state = wait_for_reason(&opened.store, DatabaseReason::PermissionDenied).await;
    let (_, grants) = state.message.split_once(": ").unwrap();
    for grant in grants.strip_suffix(" to it").unwrap().split(", GRANT ") {
        let grant = grant.trim_start_matches("GRANT ");
        bed.execute(&format!("GRANT {grant} TO {USER}")).await;
    }
    wait_for_reason(&opened.store, DatabaseReason::Connected).await;
    let keyed = Message {
        key_hash: Some([1; 32]),
        ..event("x", None)
    };
    assert_eq!(write(&opened.store, keyed.clone()).await, Outcome::Persisted);
    assert_eq!(write(&opened.store, keyed).await, Outcome::Persisted);
    eventually("the old key is removed", || async {
        bed.count("nomnom_keys").await == 1
    })
    .await;
}

#[tokio::test]
async fn a_message_is_found_where_it_was_written_whatever_the_spec_says_by_now() {
    let bed = Bed::start().await;
    bed.execute(&format!("CREATE SCHEMA other AUTHORIZATION {USER}"))
        .await;
    let first = bed.open(config()).await;
    let (old_event, old_note) = (event("x", None), note("x"));
    for message in [&old_event, &old_note] {
        assert_eq!(write(&first.store, message.clone()).await, Outcome::Persisted);
    }

    // Another table, one record type less, another schema.
    let records = serde_json::json!([{"table": "renamed", "columns": [
        {"name": "name", "type": "text", "nullable": false}, {"name": "amount", "type": "bigint", "nullable": true}]}]);
    let mut changed = config_of(&records);
    changed.database.schema = "other".to_owned();
    let second = bed.open(changed).await;
    let new_event = event("x", None);
    assert_eq!(write(&second.store, new_event.clone()).await, Outcome::Persisted);
    for opened in [&first, &second] {
        for message in [&old_event, &old_note, &new_event] {
            assert!(opened.store.find(message.id).await.unwrap());
        }
        assert!(!opened.store.find(event("x", None).id).await.unwrap());
    }

    // Another pipeline's messages are not this one's.
    let mut config = config();
    config.pipeline.uid = "another-uid".to_owned();
    let stranger = bed.open_with_key(config, "fedcba9876543210");
    wait_for_reason(&stranger.store, DatabaseReason::Connected).await;
    assert!(!stranger.store.find(new_event.id).await.unwrap());

    bed.execute("DROP TABLE notes; ALTER TABLE events RENAME message_id TO id")
        .await;
    assert!(!second.store.find(old_note.id).await.unwrap());
    assert!(!second.store.find(old_event.id).await.unwrap());
    assert!(second.store.find(new_event.id).await.unwrap());
}
