//! Why veer cannot be put into a directory, or not yet.

use super::Mode;
use crate::conflist::text::TextError;

/// Why there is no plan.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// No vendor has written its file so far.
    #[error("there is no network to be chained to yet{}", by_cilium(.moved))]
    NoPrimary {
        /// What Cilium has moved out of the way.
        moved: Vec<String>,
    },
    /// `--cni-primary` names a file that is not there.
    #[error("{file}, the file of the primary network (--cni-primary), is not there yet")]
    Missing {
        /// The file.
        file: String,
    },
    /// The first file is no configuration; it may be in the middle of being written.
    #[error("{file} comes first, and {problem}: containerd starts no pod with it; mend or remove it{}", instead(.next.as_deref()))]
    Broken {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
        /// The file after it, which CRI-O would try.
        next: Option<String>,
    },
    /// A network without a name.
    #[error(
        "{file} has no \"name\" that a directory can have: the runtime would refuse it, or mix up addresses"
    )]
    Unnamed {
        /// The file.
        file: String,
    },
    /// The plugin does not speak the network's version, and each ADD would fail.
    #[error(
        "{file} is of CNI version {version}, and veer-cni speaks {spoken}: set its cniVersion to 0.3.1, if its plugins speak that"
    )]
    Version {
        /// The file.
        file: String,
        /// Its version.
        version: String,
        /// What is spoken.
        spoken: String,
    },
    /// Multus would take a list of ours as its primary network, and call itself.
    #[error(
        "{file} is Multus, and in mode {mode} it would be called by its own primary network: take mode multus, or auto"
    )]
    WrapsMultus {
        /// The file.
        file: String,
        /// The mode that was asked for.
        mode: Mode,
    },
    /// Mode `multus` without Multus.
    #[error("{file} is not Multus, or it is Tencent's, which has no primary network: take mode auto")]
    NoMultus {
        /// The file.
        file: String,
    },
    /// What Multus delegates to is elsewhere.
    #[error(
        "{file} delegates to {delegate}, which is not in this directory: name its directory with --cni-conf-dir"
    )]
    Elsewhere {
        /// Multus's file.
        file: String,
        /// What it names.
        delegate: String,
    },
    /// Multus names a file with one plugin, which cannot become a list under the same name.
    #[error(
        "{file}, which Multus delegates to, is one plugin and no list, and Multus reads it by that name: write it as a .conflist (its vendor's settings), and restart Multus; where the vendor has no such setting (OpenShift), nothing can be chained: turn the installer off"
    )]
    PlainDelegate {
        /// The file.
        file: String,
    },
    /// One plugin cannot have a directory beside it.
    #[error(
        "{file} is one plugin and no list: a directory beside it is read by no runtime; take mode owned or chained"
    )]
    NoList {
        /// The file.
        file: String,
    },
    /// The vendor has turned the directory off.
    #[error("{file} says loadOnlyInlinedPlugins: no directory beside it is read; take mode chained or owned")]
    OnlyInlined {
        /// The file.
        file: String,
    },
    /// Something else has the name that the list would get.
    #[error(
        "{file} is one plugin, and {list}, which would take its place, is there already: take mode owned, or remove the one that is not used"
    )]
    Collision {
        /// The file.
        file: String,
        /// The list.
        list: String,
    },
    /// A link would be replaced by a file.
    #[error("{file} is a symbolic link, which would have to be replaced: take mode owned")]
    Link {
        /// The file.
        file: String,
    },
    /// Our file would not be the first.
    #[error(
        "{first} sorts before {file}, so the runtime would not use it: rename one of them, or take mode chained"
    )]
    NotFirst {
        /// What comes first.
        first: String,
        /// Where our entry would be.
        file: String,
    },
    /// The file cannot be changed.
    #[error("{file} {source}")]
    Text {
        /// The file.
        file: String,
        /// Why.
        source: TextError,
    },
}

impl PlanError {
    /// Whether it passes when a vendor writes its file, which veer waits for.
    pub const fn is_waited_for(&self) -> bool {
        matches!(
            self,
            Self::NoPrimary { .. } | Self::Missing { .. } | Self::Broken { .. } | Self::Elsewhere { .. }
        )
    }
}

fn by_cilium(files: &[String]) -> String {
    if files.is_empty() {
        return String::new();
    }
    format!("; Cilium has moved {}: set its cni.exclusive=false", files.join(", "))
}

fn instead(file: Option<&str>) -> String {
    file.map(|file| format!(" (CRI-O takes {file} instead)")).unwrap_or_default()
}
