//! JSON schemas as kubeconform takes them, out of Kubernetes' own OpenAPI description. Pure.
//!
//! What OpenAPI 2 cannot say is put right: a Quantity and an IntOrString may be numbers. And what the API server
//! refuses under strict validation is refused here: a field that a type does not have.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

const PREFIX: &str = "#/definitions/";
const NUMBERS_TOO: [&str; 2] =
    ["io.k8s.apimachinery.pkg.api.resource.Quantity", "io.k8s.apimachinery.pkg.util.intstr.IntOrString"];

/// A file name and a schema for each kind: `daemonset-apps-v1.json`, each with the definitions that it needs.
pub(super) fn all(openapi: &Value) -> Vec<(String, Value)> {
    let Some(definitions) = openapi.get("definitions").and_then(Value::as_object) else { return Vec::new() };
    let kinds = definitions.iter().flat_map(|(name, definition)| {
        let kinds = definition.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
        kinds.into_iter().flatten().filter_map(move |kind| Some((file_name(kind)?, name)))
    });
    // DeleteOptions and the like are of every group, and of no manifest.
    let of_one = |(_, name): &(String, &String)| name.starts_with("io.k8s.api.");
    kinds.filter(of_one).map(|(file, name)| (file, schema(definitions, name))).collect()
}

fn file_name(kind: &Value) -> Option<String> {
    let text = |key: &str| kind.get(key)?.as_str();
    let (group, version, kind) = (text("group")?, text("version")?, text("kind")?.to_lowercase());
    // As kubeconform's KindSuffix has it: the first part of the group.
    let group = group.split('.').next().filter(|group| !group.is_empty());
    Some(group.map_or(format!("{kind}-{version}.json"), |group| format!("{kind}-{group}-{version}.json")))
}

/// The definition, with all that it refers to.
fn schema(definitions: &Map<String, Value>, name: &str) -> Value {
    let (mut needed, mut unread) = (BTreeSet::from([name.to_owned()]), vec![name.to_owned()]);
    while let Some(definition) = unread.pop().and_then(|name| definitions.get(&name)) {
        let mut found = Vec::new();
        references(definition, &mut found);
        unread.extend(found.into_iter().filter(|name| needed.insert(name.clone())));
    }
    let definition = |name: String| Some((name.clone(), strict(&name, definitions.get(&name)?)));
    let needed: Map<String, Value> = needed.into_iter().filter_map(definition).collect();
    json!({ "$schema": "http://json-schema.org/draft-07/schema#", "$ref": format!("{PREFIX}{name}"), "definitions": needed })
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix(PREFIX));
            found.extend(name.map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn strict(name: &str, definition: &Value) -> Value {
    if NUMBERS_TOO.contains(&name) {
        return json!({ "type": ["string", "number"] });
    }
    let mut definition = definition.clone();
    if let Some(fields) = definition.as_object_mut()
        && fields.contains_key("properties")
        && !fields.contains_key("additionalProperties")
    {
        fields.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    definition
}

#[cfg(test)]
mod tests {
    use super::*;

    fn openapi() -> Value {
        json!({ "definitions": {
            "io.k8s.api.apps.v1.Thing": {
                "type": "object",
                "properties": { "part": { "$ref": "#/definitions/io.k8s.api.apps.v1.Part" } },
                "x-kubernetes-group-version-kind": [{ "group": "apps", "kind": "Thing", "version": "v1" }]
            },
            "io.k8s.api.apps.v1.Part": { "properties": { "size": {
                "$ref": "#/definitions/io.k8s.apimachinery.pkg.api.resource.Quantity" } } },
            "io.k8s.apimachinery.pkg.api.resource.Quantity": { "type": "string" },
            "io.k8s.api.core.v1.Unrelated": { "type": "object" },
        } })
    }

    #[test]
    fn a_kind_has_a_schema_with_just_what_it_needs() {
        let [(name, schema)] = all(&openapi()).try_into().unwrap();
        assert_eq!(name, "thing-apps-v1.json");
        assert_eq!(schema["$ref"], "#/definitions/io.k8s.api.apps.v1.Thing");
        let names: Vec<_> = schema["definitions"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(names, ["io.k8s.api.apps.v1.Part", "io.k8s.api.apps.v1.Thing", NUMBERS_TOO[0]]);
    }

    #[test]
    fn a_field_that_a_type_does_not_have_is_refused_and_a_quantity_may_be_a_number() {
        let [(_, schema)] = all(&openapi()).try_into().unwrap();
        assert_eq!(schema["definitions"]["io.k8s.api.apps.v1.Part"]["additionalProperties"], false);
        assert_eq!(schema["definitions"][NUMBERS_TOO[0]]["type"], json!(["string", "number"]));
    }
}
