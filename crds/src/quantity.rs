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

impl Quantity {
    /// The amount as a number, such as 536870912 for `512Mi`; none where it is no quantity.
    #[must_use]
    pub fn to_number(&self) -> Option<f64> {
        let digits = |character: char| character.is_ascii_digit() || character == '.';
        let end = self
            .0
            .find(|character| !digits(character))
            .unwrap_or(self.0.len());
        let (number, suffix) = self.0.split_at(end);
        let power = |base: f64, names: &str| {
            let exponent = names.find(suffix.chars().next()?)?;
            Some(base.powi(i32::try_from(exponent).ok()? + 1))
        };
        let factor = match suffix {
            "" => 1.0,
            "n" => 1e-9,
            "u" => 1e-6,
            "m" => 1e-3,
            _ if suffix.len() == 1 => power(1e3, "kMGTPE")?,
            _ if suffix.len() == 2 && suffix.ends_with('i') => power(1024.0, "KMGTPE")?,
            _ => 10_f64.powi(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
        };
        Some(number.parse::<f64>().ok()? * factor)
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
    fn is_a_number() {
        for (text, number) in [
            ("512Mi", 536_870_912.0),
            ("1Ki", 1024.0),
            ("1.5Gi", 1_610_612_736.0),
            ("500M", 5e8),
            ("1E", 1e18),
            ("64k", 64_000.0),
            ("100m", 0.1),
            ("5e8", 5e8),
            ("5E2", 500.0),
            ("7", 7.0),
        ] {
            assert_eq!(Quantity::from(text).to_number(), Some(number), "{text}");
        }
        for text in ["", "Mi", "lots", "1Xi", "1ki", "1.2.3"] {
            assert_eq!(Quantity::from(text).to_number(), None, "{text}");
        }
    }

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
