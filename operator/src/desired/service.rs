//! Where clients post: port 8080 of the pods that are ready. The admin port is not in it.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use nomnom_crds::runtime::{HTTP_PORT, config::PipelineIdentity};

use super::{deployment::HTTP_PORT_NAME, labels, metadata, names};

/// The Service of the pods that take records.
#[must_use]
pub fn build(pipeline: &PipelineIdentity) -> Service {
    Service {
        metadata: metadata::owned(pipeline, names::service(&pipeline.name)),
        spec: Some(ServiceSpec {
            selector: Some(labels::ingest_selector(&pipeline.name)),
            ports: Some(vec![ServicePort {
                name: Some(HTTP_PORT_NAME.to_owned()),
                app_protocol: Some("http".to_owned()),
                protocol: Some("TCP".to_owned()),
                port: HTTP_PORT.into(),
                target_port: Some(IntOrString::String(HTTP_PORT_NAME.to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
