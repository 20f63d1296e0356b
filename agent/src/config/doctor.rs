//! The settings of `veer doctor`.

use std::path::PathBuf;

use super::cni::{BIN_DIR, CONF_DIR};
use super::{CGROUP, ConfigErrors, Place, Setting, absolute};
use crate::cli::DoctorFlags;
use crate::platform::probe::Where;

/// Where `veer doctor` looks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DoctorConfig {
    /// The agent's directories.
    pub place: Place,
    /// The pods' cgroup; `None` finds it.
    pub cgroup: Option<PathBuf>,
    /// The runtime's configuration; `None` finds it.
    pub cni_conf_dir: Option<PathBuf>,
    /// The runtime's plugins; `None` finds them.
    pub cni_bin_dir: Option<PathBuf>,
}

impl DoctorConfig {
    /// Parses the settings.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn parse(flags: &DoctorFlags) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let place = Place::collect(&flags.read.place, &mut errors);
        let mut auto = |setting: &Setting, value: &str| match value {
            "auto" => None,
            path => Some(absolute(setting, path, &mut errors)),
        };
        let config = Self {
            cgroup: auto(&CGROUP, &flags.cgroup),
            cni_conf_dir: auto(&CONF_DIR, &flags.cni_conf_dir),
            cni_bin_dir: auto(&BIN_DIR, &flags.cni_bin_dir),
            place,
        };
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }

    /// The directories that are looked at.
    pub fn places(&self) -> Where {
        Where {
            run_dir: self.place.run_dir.clone(),
            bpffs: self.place.bpffs.clone(),
            cni_conf_dir: self.cni_conf_dir.clone(),
            cni_bin_dir: self.cni_bin_dir.clone(),
        }
    }
}
