//! Many pods at once, of which each is only looked at: when it runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::client::{Client, LIMIT};
use super::pods::{Shape, Sidecar};
use crate::wait;

/// How long between two looks at all of them: each costs the API server as much as a few pods do.
const LOOK: Duration = Duration::from_millis(100);
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Pods of the mesh that do nothing, since when they have been wanted.
#[derive(Debug)]
pub struct Crowd {
    since: BTreeMap<String, Instant>,
}

impl Crowd {
    /// Creates them, one after the other, as fast as the API server takes them.
    pub fn create(client: &Client, name: &str, count: usize) -> Result<Self> {
        let mut since = BTreeMap::new();
        for number in 0..count {
            let shape = Shape::new(&format!("{name}-{number}"), Sidecar::Idle);
            shape.create(client)?;
            since.insert(shape.name().to_owned(), Instant::now());
        }
        Ok(Self { since })
    }

    /// Waits until all of them run, and gives back how long each took, to a tenth of a second.
    pub fn wait_running(&self, client: &Client) -> Result<Vec<Duration>> {
        let mut took: BTreeMap<&str, Duration> = BTreeMap::new();
        wait::until_some("a crowd to run", LIMIT, || {
            let looked = Instant::now();
            // Of the API server's memory, which is as new as what it has told its watchers.
            let pods = client.get(&format!("{PODS}?resourceVersion=0")).ok()?;
            for name in pods.get("items")?.as_array()?.iter().filter_map(running) {
                if let Some((name, since)) = self.since.get_key_value(name) {
                    took.entry(name).or_insert_with(|| looked.duration_since(*since));
                }
            }
            let is_done = took.len() == self.since.len();
            if !is_done {
                wait::until("the next look", LOOK * 10, || looked.elapsed() >= LOOK).ok()?;
            }
            is_done.then_some(())
        })
        .with_context(|| format!("{} of {} pods run", took.len(), self.since.len()))?;
        Ok(took.into_values().collect())
    }

    /// Deletes them and waits until they are gone.
    pub fn delete(self, client: &Client) -> Result<()> {
        for name in self.since.keys() {
            client.delete(&format!("{PODS}/{name}"))?;
        }
        for name in self.since.keys() {
            client.wait_gone(&format!("{PODS}/{name}"))?;
        }
        Ok(())
    }
}

/// The name of a pod all of whose containers run.
fn running(pod: &Value) -> Option<&str> {
    let containers = pod.pointer("/status/containerStatuses")?.as_array()?;
    let all = containers.iter().all(|one| one.pointer("/state/running").is_some());
    (all && pod.pointer("/status/phase")? == "Running").then(|| pod.pointer("/metadata/name")?.as_str())?
}
