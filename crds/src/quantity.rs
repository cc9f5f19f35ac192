//! Quantities of CPU and memory, in the form of the Kubernetes API (`500m`, `256Mi`, or a bare number).

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// The positive quantities of `resource.Quantity`, enforced by the API server.
pub const PATTERN: &str =
    "^([0-9]{1,12}([.][0-9]{0,9})?|[.][0-9]{1,9})(([KMGTPE]i)|[numkMGTPE]|([eE][0-9]{1,2}))?$";

/// An amount of a resource, kept as it was written: the API server of the cluster is its judge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quantity(pub String);

impl Quantity {
    /// The same amount for the types of Kubernetes.
    #[must_use]
    pub fn to_kubernetes(&self) -> k8s_openapi::apimachinery::pkg::api::resource::Quantity {
        k8s_openapi::apimachinery::pkg::api::resource::Quantity(self.0.clone())
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Reads a string, or an integer as in `cpu: 1`.
impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntegerOrString {
            Integer(u64),
            String(String),
        }
        match IntegerOrString::deserialize(deserializer).map_err(|_| de::Error::custom("not a quantity"))? {
            IntegerOrString::Integer(number) => Ok(Self(number.to_string())),
            IntegerOrString::String(text) => Ok(Self(text)),
        }
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": PATTERN,
            "maxLength": 32
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_and_strings() {
        assert_eq!(
            serde_json::from_str::<Quantity>("2").unwrap(),
            Quantity::from("2")
        );
        assert_eq!(
            serde_json::from_str::<Quantity>("\"250m\"").unwrap(),
            Quantity::from("250m")
        );
        assert!(serde_json::from_str::<Quantity>("-1").is_err());
    }
}
