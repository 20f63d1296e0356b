//! Where our entry is, and what there is to know about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Directory, Mode, PlanError, Wish};

/// Where our entry is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placed {
    /// How.
    pub mode: Mode,
    /// The file that it is in, below the directory.
    pub file: String,
    /// The file of the primary network.
    pub primary: String,
    /// The network's name.
    pub network: String,
    /// Who writes the file of the primary network, as far as its plugins tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// What there is to know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
}

/// Something that does not keep the entry out, and may keep pods from being redirected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Note {
    /// The node's operator has put an entry in; it stays as it is.
    Operators {
        /// The file.
        file: String,
    },
    /// Cilium writes its file anew.
    Cilium,
    /// A broken file comes first.
    BrokenBefore {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The runtime may not read the directory beside a list.
    DropinsUnknown,
    /// Multus holds a copy from before.
    MultusCopy {
        /// Multus's file.
        file: String,
    },
    /// `--cni-primary` names a file that is not the first.
    NotFirst {
        /// What comes first.
        first: String,
    },
    /// A file that was put aside, and whose place somebody else has taken.
    LeftAside {
        /// The file.
        file: String,
    },
}

impl Note {
    /// Whether new pods may start without being redirected because of it.
    pub const fn keeps_pods_out(&self) -> bool {
        matches!(self, Self::MultusCopy { .. } | Self::NotFirst { .. } | Self::DropinsUnknown)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operators { file } => {
                write!(f, "{file} has an entry of the operator's, which stays as it is")
            }
            Self::Cilium => f.write_str(
                "Cilium writes its file anew at each start, and at each change of this directory if it is exclusive: \
                 set its cni.exclusive=false",
            ),
            Self::BrokenBefore { file, problem } => {
                write!(f, "{file} comes before it, and {problem}: containerd starts no pod with it")
            }
            Self::DropinsUnknown => f.write_str(
                "it is not known whether this runtime reads the directory (libcni 1.3 and newer do): take mode auto",
            ),
            Self::MultusCopy { file } => write!(
                f,
                "{file} holds a copy from before, without veer-cni: restart Multus on this node, pods are not \
                 redirected until then"
            ),
            Self::NotFirst { first } => write!(f, "the runtime uses {first}, which comes first"),
            Self::LeftAside { file } => {
                write!(f, "{file} was put aside by veer, and another file has its place: remove it")
            }
        }
    }
}

impl Placed {
    /// Whether pods that are created now come to us.
    pub fn is_effective(&self) -> bool {
        !self.notes.iter().any(Note::keeps_pods_out)
    }

    /// Whether the runtime will use the file that our entry is in, or that stands before it.
    pub(super) fn is_first(&mut self, after: &Directory, wish: &Wish) -> Result<(), PlanError> {
        if self.mode == Mode::Multus {
            return Ok(());
        }
        let network = |name: &str| after.network(name).and_then(Result::ok);
        let is_network = |name: &&str| network(name).is_some();
        let first = after.candidates().find(is_network).unwrap_or_default();
        let ours = if self.mode == Mode::Dropin { &self.primary } else { &self.file };
        if first == ours {
            return Ok(());
        }
        let is_loopback =
            network(first).is_some_and(|network| after.is_only_loopback(&network, wish.reads_dropins));
        let first = first.to_owned();
        if (wish.primary.is_none() && !is_loopback) || self.mode == Mode::Owned {
            return Err(PlanError::NotFirst { first, file: ours.clone() });
        }
        self.notes.push(Note::NotFirst { first });
        Ok(())
    }
}
