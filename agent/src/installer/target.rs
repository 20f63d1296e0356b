//! Where on the node an installation goes.

use std::path::{Path, PathBuf};

use crate::config::CniConfig;
use crate::conflist::VEER;
use crate::install::{Entry, Wish};
use crate::platform::probe::{self, libcni};

/// The directories of one runtime, and the plugin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The runtime's configuration.
    pub conf_dir: PathBuf,
    /// The runtime's plugins.
    pub bin_dir: PathBuf,
    /// The plugin that is copied.
    pub plugin: PathBuf,
}

impl Target {
    /// As it is configured; what is not, is found.
    pub fn find(config: &CniConfig) -> Self {
        let (conf_dir, bin_dir) =
            probe::cni::directories(config.conf_dir.as_deref(), config.bin_dir.as_deref());
        let beside = || std::env::current_exe().unwrap_or_default().with_file_name(VEER);
        Self { conf_dir, bin_dir, plugin: config.plugin.clone().unwrap_or_else(beside) }
    }

    /// Where the plugin goes.
    pub fn program(&self) -> PathBuf {
        self.bin_dir.join(VEER)
    }

    /// A file of the configuration.
    pub fn file(&self, name: &str) -> PathBuf {
        self.conf_dir.join(name)
    }
}

/// What is wanted, as it is configured and as the node's runtime can do it.
pub fn wish(config: &CniConfig, entry: Entry) -> Wish {
    Wish {
        mode: config.mode,
        entry,
        primary: config.primary.clone(),
        reads_dropins: libcni::reads_dropins(),
        passes_broken: false,
    }
}

/// What the plugin is told by an agent with these settings.
pub fn entry(
    run_dir: &Path,
    level: tracing::Level,
    exclude_namespaces: &std::collections::BTreeSet<String>,
) -> Entry {
    // The plugin has nothing below debug.
    let level = if level == tracing::Level::TRACE { tracing::Level::DEBUG } else { level };
    Entry {
        run_dir: run_dir.to_owned(),
        log_level: level.to_string().to_lowercase(),
        exclude_namespaces: exclude_namespaces.clone(),
    }
}
