//! What the agent knows of a pod beside the maps: where its settings come from, and whether its manifest
//! still says what the kernel holds.
//!
//! The maps are the truth. A setting's origin is the cause of it only if the two agree, or if the agent has
//! kept it from the moment in which it filled the maps.

use serde::{Deserialize, Serialize};

use crate::model::{Origin, Origins, Setting};

/// What the agent says of a pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodFacts {
    /// Where pods are read from.
    pub source: String,
    /// Whether the pod is enrolled.
    pub enrolled: bool,
    /// Where its settings came from when it was enrolled, if this agent did that.
    pub at_enrolment: Option<Origins>,
    /// What its manifest says now.
    pub manifest: Manifest,
}

/// What a pod's manifest says now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Manifest {
    /// How the pod is to be captured.
    Captured {
        /// Where each setting comes from.
        origins: Origins,
        /// The settings that the kernel holds otherwise.
        changed: Vec<Setting>,
    },
    /// That it is to be left alone.
    Passed {
        /// The reason's name.
        reason: String,
        /// The reason as a sentence.
        sentence: String,
    },
    /// What cannot be.
    Invalid {
        /// Everything that is wrong with it.
        errors: Vec<String>,
    },
    /// Nothing: there is no such pod.
    Unknown,
    /// It cannot be told.
    Unreadable {
        /// Why not.
        problem: String,
    },
}

/// Why a setting is as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause<'a> {
    /// This said so.
    Origin(&'a Origin),
    /// Nobody knows any more.
    Unknown(String),
}

impl PodFacts {
    /// Why the kernel holds a setting of an enrolled pod as it does.
    pub fn cause(&self, setting: Setting) -> Cause<'_> {
        if let Some(origin) = self.at_enrolment.as_ref().and_then(|origins| origins.get(setting)) {
            return Cause::Origin(origin);
        }
        match &self.manifest {
            Manifest::Captured { origins, changed } => match origins.get(setting) {
                Some(origin) if !changed.contains(&setting) => Cause::Origin(origin),
                Some(origin) => Cause::Unknown(format!("what the manifest said then; now it says {origin}")),
                None => Cause::Unknown("what the manifest said".to_owned()),
            },
            Manifest::Passed { .. }
            | Manifest::Invalid { .. }
            | Manifest::Unknown
            | Manifest::Unreadable { .. } => Cause::Unknown("what the manifest said then".to_owned()),
        }
    }

    /// Whether uids and gids in the pod are others than the node's.
    pub fn has_own_users(&self) -> bool {
        matches!(self.cause(Setting::HostUsers), Cause::Origin(Origin::Spec { value: false, .. }))
    }

    /// What asks for one of the node's proxies in the place of a sidecar, if anything does.
    pub fn asks_for_proxy(&self) -> Option<&Origin> {
        match self.cause(Setting::Driver) {
            Cause::Origin(origin @ (Origin::Label { .. } | Origin::NamespaceLabel { .. })) => Some(origin),
            Cause::Origin(_) | Cause::Unknown(_) => None,
        }
    }

    /// What is to be known beside the verdict on an enrolled pod.
    pub fn notes(&self) -> Vec<String> {
        let since = "since the pod was enrolled, and what it said then holds until the pod is made anew";
        match &self.manifest {
            Manifest::Captured { origins, changed } => changed
                .iter()
                .filter_map(|setting| origins.get(*setting))
                .map(|origin| format!("the manifest has changed {since}; now: {origin}"))
                .collect(),
            Manifest::Passed { sentence, .. } => {
                vec![format!("the manifest has changed {since}; now the pod would be left alone: {sentence}")]
            }
            Manifest::Invalid { errors } => {
                vec![format!("the manifest has changed {since}; now it is wrong: {}", errors.join("; "))]
            }
            Manifest::Unknown => {
                vec![format!("the pod is enrolled, and not known in {} any more", self.source)]
            }
            Manifest::Unreadable { problem } => vec![format!("its manifest cannot be read: {problem}")],
        }
    }
}
