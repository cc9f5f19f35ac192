//! Which objects are an owner's: those that it controls, and those that carry its labels and that nobody controls
//! (as an orphaning delete leaves them). Everything else is foreign, whatever its name.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// An object that owns others in its namespace.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Its namespace.
    pub namespace: String,
    /// The reference that its children carry, with `controller: true`.
    pub reference: OwnerReference,
    /// The labels by which a child without controller is known to be its.
    pub labels: BTreeMap<String, String>,
}

impl Owner {
    /// Whether an object is this owner's.
    #[must_use]
    pub fn owns(&self, metadata: &ObjectMeta) -> bool {
        match controller_of(metadata) {
            Some(controller) => controller.uid == self.reference.uid,
            None => contains(metadata.labels.as_ref(), &self.labels),
        }
    }

    /// Whether an object is this owner's by its labels alone.
    #[must_use]
    pub fn may_adopt(&self, metadata: &ObjectMeta) -> bool {
        controller_of(metadata).is_none() && self.owns(metadata)
    }

    /// Whom an object belongs to that is not this owner's, for messages.
    #[must_use]
    pub fn describe_other(&self, metadata: &ObjectMeta) -> String {
        match controller_of(metadata) {
            Some(other) if other.kind == self.reference.kind && other.name == self.reference.name => {
                format!(
                    "belongs to a deleted {} of the same name and has yet to be removed",
                    other.kind
                )
            }
            Some(other) => format!("belongs to {} {}", other.kind, other.name),
            None => "was made by somebody else".to_owned(),
        }
    }
}

/// Whether `held` has every pair of `wanted`.
#[must_use]
pub fn contains(held: Option<&BTreeMap<String, String>>, wanted: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| held.and_then(|held| held.get(key)) == Some(value))
}

fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata
        .owner_references
        .iter()
        .flatten()
        .find(|reference| reference.controller == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner {
            namespace: "shop".into(),
            reference: reference("orders", "1"),
            labels: BTreeMap::from([("pipeline".into(), "orders".into())]),
        }
    }

    fn reference(name: &str, uid: &str) -> OwnerReference {
        OwnerReference {
            kind: "Pipeline".into(),
            name: name.into(),
            uid: uid.into(),
            controller: Some(true),
            ..OwnerReference::default()
        }
    }

    #[test]
    fn a_controller_decides_before_labels() {
        let labels = Some(owner().labels);
        let with = |references: &[OwnerReference], labels: &Option<BTreeMap<_, _>>| ObjectMeta {
            owner_references: Some(references.to_vec()),
            labels: labels.clone(),
            ..ObjectMeta::default()
        };
        assert!(owner().owns(&with(&[reference("orders", "1")], &None)));
        assert!(owner().owns(&with(&[], &labels)));
        assert!(!owner().owns(&with(&[reference("orders", "0")], &labels)));
        assert!(!owner().owns(&with(&[], &None)));
    }
}
