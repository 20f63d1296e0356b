//! Manifests as they are published: YAML, brought to the API server and taken away again as `kubectl` does it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::client::Client;

/// The objects of a file, in its order.
#[derive(Clone, Debug)]
pub struct Manifests(Vec<Value>);

impl Manifests {
    /// Reads a file of one or more documents.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let documents = serde_yaml_ng::Deserializer::from_str(&text).map(Value::deserialize);
        let objects = documents.collect::<Result<Vec<_>, _>>();
        let mut objects = objects.with_context(|| format!("parse {}", path.display()))?;
        objects.retain(Value::is_object);
        Ok(Self(objects))
    }

    /// `kubectl apply --server-side`.
    pub fn apply(&self, client: &Client) -> Result<()> {
        self.0.iter().try_for_each(|object| client.apply(&path(client, object)?, object).map(drop))
    }

    /// `kubectl delete`, the last first: waits until all of it is gone.
    pub fn delete(&self, client: &Client) -> Result<()> {
        let paths = self.0.iter().rev().map(|object| path(client, object)).collect::<Result<Vec<_>>>()?;
        paths.iter().try_for_each(|path| client.delete(path).map(drop))?;
        paths.iter().try_for_each(|path| client.wait_gone(path))
    }
}

/// What the API server has in a group: `APIResourceList`.
#[derive(Deserialize)]
struct Group {
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    kind: String,
    namespaced: bool,
}

/// Where an object is, by what the API server says of its kind.
fn path(client: &Client, object: &Value) -> Result<String> {
    let text = |pointer: &str| {
        let found = object.pointer(pointer).and_then(Value::as_str);
        found.with_context(|| format!("{pointer} is missing: {object}"))
    };
    let (version, kind, name) = (text("/apiVersion")?, text("/kind")?, text("/metadata/name")?);
    let group = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let known = client.get(&group)?;
    let known: Group = serde_json::from_value(known).with_context(|| format!("decode what {group} has"))?;
    // A name with a slash is a part of such an object: its status.
    let is_it = |resource: &&Resource| resource.kind == kind && !resource.name.contains('/');
    let Resource { name: plural, namespaced, .. } =
        known.resources.iter().find(is_it).with_context(|| format!("{group} knows no {kind}"))?;
    Ok(if *namespaced {
        format!("{group}/namespaces/{}/{plural}/{name}", text("/metadata/namespace")?)
    } else {
        format!("{group}/{plural}/{name}")
    })
}
