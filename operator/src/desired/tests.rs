//! YAML in, objects out: a picture of each child, and what must hold whatever the picture.

use std::collections::BTreeMap;

use nomnom_crds::{IngestionPipelineSpec, ResolvedSpec, runtime::RuntimeConfig};
use serde_json::{Value, json};

use super::*;

const SPEC: &str = r"
records:
  - {match: O, table: orders, columns: [{name: order_key, type: bigint}, {name: comment, type: text, nullable: true}]}
database: {urlSecretRef: {name: orders-db, key: dsn}}
ingest:
  autoscaling: {minReplicas: 2}
  requestLimits: {timeout: 1m500ms}
";

fn identity() -> PipelineIdentity {
    PipelineIdentity {
        namespace: "shop".into(),
        name: "orders".into(),
        uid: "5a1e".into(),
    }
}

fn resolved(yaml: &str) -> ResolvedSpec {
    let spec: IngestionPipelineSpec = serde_yaml::from_str(yaml).unwrap();
    ResolvedSpec::resolve(&spec).unwrap()
}

fn build_from(yaml: &str) -> Desired {
    build(&Input {
        pipeline: &identity(),
        spec: &resolved(yaml),
        accepted_generation: 4,
        runtime_image: "docker.io/nomnom/ingest-runtime:0.1.0",
        receipt_key_fingerprint: "0123456789abcdef",
    })
    .unwrap()
}

#[test]
fn pictures_of_the_children() {
    let desired = build_from(SPEC);
    insta::assert_yaml_snapshot!("config_map", desired.config_map);
    insta::assert_yaml_snapshot!("service_account", desired.service_account);
    insta::assert_yaml_snapshot!("revision", desired.revision);
    insta::assert_yaml_snapshot!("service", desired.service);
    insta::assert_yaml_snapshot!("deployment", desired.deployment);
    insta::assert_yaml_snapshot!("receipt_secret", receipt_secret::build(&identity(), [7; 32]));
}

#[test]
fn the_same_input_gives_the_same_objects() {
    let all = |desired: Desired| {
        json!([
            desired.config_map,
            desired.service_account,
            desired.revision,
            desired.service,
            desired.deployment
        ])
    };
    assert_eq!(
        all(build_from(SPEC)).to_string(),
        all(build_from(SPEC)).to_string()
    );
}

#[test]
fn the_configuration_is_what_the_runtime_reads() {
    let desired = build_from(SPEC);
    let data = &desired.config_map.data.as_ref().unwrap()["pipeline.json"];
    let config = RuntimeConfig::from_json(data.as_bytes()).unwrap();
    assert_eq!(config, RuntimeConfig::new(identity(), &resolved(SPEC)));
    let name = desired.config_map.metadata.name.unwrap();
    assert_eq!(name, format!("orders-ingest-{}", content_hash(data.as_bytes())));
}

#[test]
fn only_what_pods_use_names_the_configuration() {
    let hash = |yaml: &str| build_from(yaml).config_hash;
    let more_pods = SPEC.replace("minReplicas: 2", "minReplicas: 9");
    assert_eq!(hash(&more_pods), hash(SPEC));
    assert_ne!(hash(&SPEC.replace("bigint", "integer")), hash(SPEC));
}

#[test]
fn selectors_ports_and_volumes_agree() {
    let desired = json!({
        "deployment": build_from(SPEC).deployment,
        "service": build_from(SPEC).service,
    });
    let at = |pointer: &str| {
        desired
            .pointer(pointer)
            .unwrap_or_else(|| panic!("no {pointer}"))
            .clone()
    };
    let map = |value: Value| serde_json::from_value::<BTreeMap<String, String>>(value).unwrap();
    let (selector, service) = (
        map(at("/deployment/spec/selector/matchLabels")),
        map(at("/service/spec/selector")),
    );
    let labels = map(at("/deployment/spec/template/metadata/labels"));
    assert_eq!(selector, service);
    assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
    // Another pipeline of the name takes over the pods: what selects them must not name this one.
    assert!(!selector.values().any(|value| value == "5a1e"));

    let container = at("/deployment/spec/template/spec/containers/0");
    let ports: BTreeMap<_, _> = container["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| {
            (
                port["name"].as_str().unwrap(),
                port["containerPort"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(ports, BTreeMap::from([("admin", 9090), ("http", 8080)]));
    assert_eq!(at("/service/spec/ports/0/targetPort"), "http");
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "admin", "{probe}");
    }
    let names = |list: &Value| -> Vec<String> {
        list.as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names(&container["volumeMounts"]),
        names(&at("/deployment/spec/template/spec/volumes"))
    );
    assert!(desired.pointer("/deployment/spec/replicas").is_none());
    // Longer than the longest request.
    assert_eq!(
        at("/deployment/spec/template/spec/terminationGracePeriodSeconds"),
        81
    );
}

#[test]
fn names_of_the_longest_pipeline_fit() {
    let longest = "a".repeat(nomnom_crds::spec::MAX_NAME_LENGTH);
    let hash = content_hash(b"");
    for name in [
        names::deployment(&longest),
        names::service(&longest),
        names::service_account(&longest),
        names::receipt_secret(&longest),
        names::revision(&longest, &hash),
    ] {
        assert!(name.len() <= 63, "{name}");
    }
    assert!(names::config_map(&longest, &hash).len() <= 253);
}
