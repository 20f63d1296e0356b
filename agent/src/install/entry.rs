//! Our entry in a list of plugins.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use crate::conflist::VEER;
use crate::conflist::text::MARK;

/// What the plugin is told: its own keys are told in the README of `cni-plugin`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Directory of the agent's socket.
    pub run_dir: PathBuf,
    /// Level of the plugin's log, as it names them.
    pub log_level: String,
    /// Namespaces whose pods start without the agent.
    pub exclude_namespaces: BTreeSet<String>,
}

impl Entry {
    /// One line of JSON. The order of its keys is always the same.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Keys<'a> {
            r#type: &'a str,
            run_dir: &'a str,
            log_level: &'a str,
            exclude_namespaces: &'a BTreeSet<String>,
            installed_by: &'a str,
        }
        let keys = Keys {
            r#type: VEER,
            run_dir: &self.run_dir.to_string_lossy(),
            log_level: &self.log_level,
            exclude_namespaces: &self.exclude_namespaces,
            installed_by: MARK.1,
        };
        // Texts and a set of them: there is nothing that could not be encoded.
        serde_json::to_string(&keys).unwrap_or_default()
    }
}
