//! The pods that take records. `spec.replicas` is not set here: leaving it out of a later apply would reset it, so
//! it is set through `/scale` alone.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, HTTPGetAction, KeyToPath,
            PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile,
            SecretVolumeSource, SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use nomnom_crds::{
    resolved::ResolvedDatabase,
    runtime::{
        ADMIN_PORT, CONFIG_DIRECTORY, CONFIG_FILE, DATABASE_DIRECTORY, DATABASE_URL_FILE, HTTP_PORT,
        RECEIPT_DIRECTORY, RECEIPT_KEY_FILE, RECEIPT_KEY_FINGERPRINT_VARIABLE,
    },
    spec::ResourceAmounts,
};

use super::{Input, labels, metadata, names};

/// The name of the port for clients.
pub const HTTP_PORT_NAME: &str = "http";
/// The name of the port for probes, metrics and state.
pub const ADMIN_PORT_NAME: &str = "admin";
/// The container of the runtime.
pub const CONTAINER: &str = "ingest";

/// A user without a name and without rights, as in the distroless images.
const UID: i64 = 65_532;
/// After the longest request has been answered: time for the last commit, for load balancers to notice, and to close.
const DRAIN_MARGIN_SECONDS: i64 = 20;
/// How many former ReplicaSets are kept for `kubectl rollout undo`; each keeps its ConfigMap.
const REVISION_HISTORY: i32 = 3;
/// How long a roll-out may stand still before the Deployment says so; the API server's default.
const PROGRESS_DEADLINE_SECONDS: i32 = 600;
/// Only the owner and the group of the pod read the files.
const FILE_MODE: i32 = 0o440;

/// The Deployment of the pods that take records.
#[must_use]
pub fn build(input: &Input<'_>, config_hash: &str) -> Deployment {
    let pipeline = input.pipeline;
    Deployment {
        metadata: metadata::owned(pipeline, names::deployment(&pipeline.name)),
        spec: Some(DeploymentSpec {
            selector: LabelSelector {
                match_labels: Some(labels::ingest_selector(&pipeline.name)),
                ..LabelSelector::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                // Never fewer pods than asked for, and never more connections to the database than one pod more needs.
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            // Said although it is the default: what is not in an apply stays as somebody else set it.
            paused: Some(false),
            revision_history_limit: Some(REVISION_HISTORY),
            progress_deadline_seconds: Some(PROGRESS_DEADLINE_SECONDS),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels::ingest_pod(pipeline, config_hash)),
                    annotations: Some(BTreeMap::from([(
                        labels::RECEIPT_KEY_FINGERPRINT.to_owned(),
                        input.receipt_key_fingerprint.to_owned(),
                    )])),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(input, config_hash)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// The hash of the configuration that a Deployment's pods mount.
#[must_use]
pub fn config_hash(deployment: &Deployment) -> String {
    let labels = template_metadata(deployment).and_then(|metadata| metadata.labels.as_ref());
    let hash = labels.and_then(|labels| labels.get(labels::CONFIG_HASH));
    hash.cloned().unwrap_or_default()
}

/// The fingerprint of the receipt key that a Deployment's pods are started with.
#[must_use]
pub fn key_fingerprint(deployment: &Deployment) -> Option<String> {
    let annotations = template_metadata(deployment)?.annotations.as_ref()?;
    let fingerprint = annotations.get(labels::RECEIPT_KEY_FINGERPRINT)?;
    (!fingerprint.is_empty()).then(|| fingerprint.clone())
}

fn template_metadata(deployment: &Deployment) -> Option<&ObjectMeta> {
    deployment.spec.as_ref()?.template.metadata.as_ref()
}

fn pod(input: &Input<'_>, config_hash: &str) -> PodSpec {
    let name = &input.pipeline.name;
    let timeout = input.spec.ingest.timeout.as_std();
    let timeout_seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX - DRAIN_MARGIN_SECONDS - 1) + 1;
    PodSpec {
        service_account_name: Some(names::service_account(name)),
        automount_service_account_token: Some(false),
        // No variables for each Service of the namespace: they would come and go with other people's objects.
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(timeout_seconds + DRAIN_MARGIN_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(UID),
            run_as_group: Some(UID),
            fs_group: Some(UID),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(input)],
        volumes: Some(volumes(name, config_hash, &input.spec.database)),
        topology_spread_constraints: Some(vec![
            spread(name, "kubernetes.io/hostname"),
            spread(name, "topology.kubernetes.io/zone"),
        ]),
        ..PodSpec::default()
    }
}

fn container(input: &Input<'_>) -> Container {
    let ingest = &input.spec.ingest;
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(input.runtime_image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(vec!["serve".to_owned()]),
        // A pod that mounts another key than the pipeline's does not start.
        env: Some(vec![EnvVar {
            name: RECEIPT_KEY_FINGERPRINT_VARIABLE.to_owned(),
            value: Some(input.receipt_key_fingerprint.to_owned()),
            value_from: None,
        }]),
        ports: Some(vec![
            port(HTTP_PORT_NAME, HTTP_PORT),
            port(ADMIN_PORT_NAME, ADMIN_PORT),
        ]),
        volume_mounts: Some(vec![
            mount("config", CONFIG_DIRECTORY),
            mount("database", DATABASE_DIRECTORY),
            mount("receipt", RECEIPT_DIRECTORY),
        ]),
        // Ready 1 s after the start: the first look is at once, the next ones each second.
        startup_probe: Some(probe("/readyz", 1, 60)),
        readiness_probe: Some(probe("/readyz", 5, 2)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        resources: Some(ResourceRequirements {
            requests: quantities(&ingest.requests),
            limits: quantities(&ingest.limits),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN_PORT_NAME.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failure_threshold),
        timeout_seconds: Some(2),
        ..Probe::default()
    }
}

fn volumes(pipeline: &str, config_hash: &str, database: &ResolvedDatabase) -> Vec<Volume> {
    let item = |key: &str, path: &str| {
        Some(vec![KeyToPath {
            key: key.to_owned(),
            path: path.to_owned(),
            mode: None,
        }])
    };
    let secret = |name: &str, secret_name: String, items, optional| Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret_name),
            items,
            optional: Some(optional),
            default_mode: Some(FILE_MODE),
        }),
        ..Volume::default()
    };
    vec![
        Volume {
            name: "config".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: names::config_map(pipeline, config_hash),
                items: item(CONFIG_FILE, CONFIG_FILE),
                default_mode: Some(FILE_MODE),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        // Optional: a Secret that is missing is a state that the pod reports, and not a pod that does not start.
        secret(
            "database",
            database.secret_name.clone(),
            item(&database.secret_key, DATABASE_URL_FILE),
            true,
        ),
        secret(
            "receipt",
            names::receipt_secret(pipeline),
            item(RECEIPT_KEY_FILE, RECEIPT_KEY_FILE),
            false,
        ),
    ]
}

/// Spread where that is possible; a cluster of one node runs all pods.
fn spread(pipeline: &str, topology_key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: topology_key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(labels::ingest_selector(pipeline)),
            ..LabelSelector::default()
        }),
        // Pods of the outgoing configuration do not count.
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    }
}

fn quantities(
    amounts: &ResourceAmounts,
) -> Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>> {
    let given: BTreeMap<_, _> = [("cpu", &amounts.cpu), ("memory", &amounts.memory)]
        .into_iter()
        .filter_map(|(name, amount)| Some((name.to_owned(), amount.as_ref()?.to_kubernetes())))
        .collect();
    (!given.is_empty()).then_some(given)
}
