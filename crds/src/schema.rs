//! How a Rust type that is written as a string appears in JSON and in the CRD's schema.

/// Gives a type with `FromStr` and `Display` a serde form and a JSON schema of type string.
macro_rules! as_string {
    ($type:ty, description: $description:expr, pattern: $pattern:expr, max_length: $max_length:expr) => {
        crate::schema::as_string!(@serde $type);
        crate::schema::as_string!(@schema $type, schemars::json_schema!({
            "type": "string", "description": $description, "pattern": $pattern, "maxLength": $max_length
        }));
    };
    ($type:ty, description: $description:expr, rule: $rule:expr, message: $message:expr, max_length: $max_length:expr) => {
        crate::schema::as_string!(@serde $type);
        crate::schema::as_string!(@schema $type, schemars::json_schema!({
            "type": "string", "description": $description, "maxLength": $max_length,
            "x-kubernetes-validations": [{ "rule": $rule, "message": $message }]
        }));
    };
    (@serde $type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
    (@schema $type:ty, $schema:expr) => {
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $schema
            }
        }
    };
}
pub(crate) use as_string;
