//! From files to a [`UserConfig`]: YAML or JSON, checked against Envoy's own descriptors. Pure.
//!
//! Owns: the form of a file, and the words for what is wrong with one: its name, the path to the place, and what is there.

use std::collections::BTreeSet;
use std::fmt;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage};
use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

use super::super::resources::{Direction, versioned};
use super::template::Template;
use super::text::Text;
use super::{Addition, Place, UserConfig};

/// Descriptors of all of Envoy's types, as its protobufs' crate has them: see the build script.
static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));

/// A file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct File {
    /// Its name.
    pub(super) name: String,
    /// What is in it.
    pub(super) content: Vec<u8>,
}

/// What is wrong with the files: something of each that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(super) struct ReadErrors(Vec<ReadError>);

/// What is wrong with a file.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{file}: {problem}")]
struct ReadError {
    file: String,
    problem: String,
}

/// A file's form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// Both, without one.
    direction: Option<Way>,
    resources: Vec<Map<String, Value>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    Outbound,
    Inbound,
}

impl fmt::Display for ReadErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("; "))
    }
}

/// All files together, in this order.
///
/// # Errors
/// Whatever is wrong with any of them: then none is taken.
pub(super) fn read(files: &[File]) -> Result<UserConfig, ReadErrors> {
    let failed = |file: &str, problem: String| ReadError { file: file.to_owned(), problem };
    let pool = DescriptorPool::decode(DESCRIPTORS);
    let pool = pool.map_err(|error| ReadErrors(vec![failed("Envoy's descriptors", error.to_string())]))?;
    let (mut config, mut names, mut errors) = (UserConfig::default(), BTreeSet::new(), Vec::new());
    for file in files {
        let mut reading = Reading { pool: &pool, config: &mut config, names: &mut names };
        if let Err(problem) = reading.document(&file.content) {
            errors.push(failed(&file.name, problem));
        }
    }
    if errors.is_empty() { Ok(config) } else { Err(ReadErrors(errors)) }
}

struct Reading<'a> {
    pool: &'a DescriptorPool,
    config: &'a mut UserConfig,
    /// Of the clusters so far.
    names: &'a mut BTreeSet<String>,
}

impl Reading<'_> {
    fn document(&mut self, content: &[u8]) -> Result<(), String> {
        let document: Document = serde_yaml_ng::from_slice(content).map_err(|error| error.to_string())?;
        let way = document.direction.map(|way| match way {
            Way::Outbound => Direction::Outbound,
            Way::Inbound => Direction::Inbound,
        });
        for (number, resource) in document.resources.into_iter().enumerate() {
            let path = format!("resources[{number}]");
            self.resource(&path, way, resource)?;
        }
        Ok(())
    }

    fn resource(
        &mut self,
        path: &str,
        way: Option<Direction>,
        mut resource: Map<String, Value>,
    ) -> Result<(), String> {
        let kind = resource.remove("@type");
        let kind = kind.as_ref().and_then(Value::as_str).unwrap_or_default();
        let kind = kind.rsplit('/').next().unwrap_or_default();
        let place = Place::ALL.into_iter().find(|place| place.type_name() == kind).ok_or_else(|| {
            let known = Place::ALL.map(Place::type_name).join(", ");
            format!("{path}.@type: {kind:?} is not one of {known}")
        })?;
        let value = Value::Object(resource);
        check_texts(path, &value)?;
        let template = self.template(path, kind, &value)?;
        if place == Place::Cluster {
            return self.cluster(path, &template);
        }
        self.config.additions.push(Addition { place, way, template });
        Ok(())
    }

    fn template(&self, path: &str, kind: &str, value: &Value) -> Result<Template, String> {
        let descriptor = self.pool.get_message_by_name(kind);
        let descriptor = descriptor.ok_or_else(|| format!("{path}: no descriptor of {kind}"))?;
        let options = DeserializeOptions::new().deny_unknown_fields(true);
        let mut track = serde_path_to_error::Track::new();
        let source = serde_path_to_error::Deserializer::new(value, &mut track);
        let message = DynamicMessage::deserialize_with_options(descriptor, source, &options);
        let message = message.map_err(|error| match track.path().to_string().as_str() {
            "." => format!("{path}: {error}"),
            inside => format!("{path}.{inside}: {error}"),
        })?;
        Template::of(&message, self.pool).map_err(|error| format!("{path}: {error}"))
    }

    /// Clusters are of the node, not of a pod.
    fn cluster(&mut self, path: &str, template: &Template) -> Result<(), String> {
        if !template.is_plain() {
            return Err(format!("{path}: a cluster is the same for all pods, and has no variables"));
        }
        let value = template.fill(None);
        let cluster = Cluster::decode(&*value).map_err(|error| format!("{path}: {error}"))?;
        let name = cluster.name;
        // The agent's own, and those of pods.
        if name.is_empty() || name == "veer" || name.contains('|') {
            return Err(format!("{path}.name: {name:?} is empty, veer, or has a |: such names are not free"));
        }
        if !self.names.insert(name.clone()) {
            return Err(format!("{path}.name: there are two clusters {name:?}"));
        }
        let type_url = format!("type.googleapis.com/{}", Place::Cluster.type_name());
        let seed = value.clone();
        self.config.clusters.push(versioned(name, Any { type_url, value }, &seed));
        Ok(())
    }
}

/// Whether all variables in it are known.
fn check_texts(path: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::String(text) => match Text::parse(text) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{path}: {error}")),
        },
        Value::Array(values) => {
            let mut numbered = values.iter().enumerate();
            numbered.try_for_each(|(number, value)| check_texts(&format!("{path}[{number}]"), value))
        }
        Value::Object(map) => {
            map.iter().try_for_each(|(key, value)| check_texts(&format!("{path}.{key}"), value))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}
