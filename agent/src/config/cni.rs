//! The settings of the installation into the runtime's CNI configuration.
//!
//! Owns: their accepted forms. Never does: stop at the first error. Called by: `config`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{ABSOLUTE, ConfigError, ConfigErrors, Place, Setting, absolute, log_level, namespaces};
use crate::cli::{CniFlags, CniPlaceFlags, InstallCniFlags, UninstallCniFlags};
use crate::install::Mode;

const INSTALL: Setting =
    Setting("--cni-install", "VEER_CNI_INSTALL", "one of off, auto, chained, owned, multus, dropin");
const INSTALL_ONCE: Setting =
    Setting("--cni-install", "VEER_CNI_INSTALL", "one of auto, chained, owned, multus, dropin");
pub(super) const CONF_DIR: Setting =
    Setting("--cni-conf-dir", "VEER_CNI_CONF_DIR", "auto or an absolute path");
pub(super) const BIN_DIR: Setting = Setting("--cni-bin-dir", "VEER_CNI_BIN_DIR", "auto or an absolute path");
const PLUGIN: Setting = Setting("--cni-plugin", "VEER_CNI_PLUGIN", ABSOLUTE);
const PRIMARY: Setting = Setting(
    "--cni-primary",
    "VEER_CNI_PRIMARY",
    "the name of a file below --cni-conf-dir that ends in .conf, .conflist or .json",
);
const CNI_CACHE: Setting = Setting("--cni-cache", "VEER_CNI_CACHE", ABSOLUTE);

/// How and where veer is put into the runtime's CNI configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CniConfig {
    /// Whether somebody else sees to it.
    pub is_off: bool,
    /// The mode; `None` chooses.
    pub mode: Option<Mode>,
    /// The runtime's configuration; `None` finds it.
    pub conf_dir: Option<PathBuf>,
    /// The runtime's plugins; `None` finds them.
    pub bin_dir: Option<PathBuf>,
    /// The plugin that is copied; `None` takes the one beside this program.
    pub plugin: Option<PathBuf>,
    /// The primary network's file; `None` takes the one that the runtime uses.
    pub primary: Option<String>,
}

impl CniConfig {
    /// What `--cni-install` says.
    pub const fn asked(&self) -> &'static str {
        match (self.is_off, self.mode) {
            (true, _) => "off",
            (false, None) => "auto",
            (false, Some(mode)) => mode.name(),
        }
    }
}

/// The settings of `veer install-cni`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InstallCniConfig {
    /// Where things are.
    pub place: Place,
    /// How and where.
    pub cni: CniConfig,
    /// What the plugin logs.
    pub log_level: tracing::Level,
    /// Namespaces whose pods start without the agent.
    pub exclude_namespaces: BTreeSet<String>,
}

impl InstallCniConfig {
    /// Parses the settings.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn parse(flags: &InstallCniFlags) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let config = Self {
            place: Place::collect(&flags.place, &mut errors),
            cni: parse(&INSTALL_ONCE, &flags.cni_install, &flags.cni, &mut errors),
            log_level: log_level(&flags.common, &mut errors),
            exclude_namespaces: namespaces(&flags.common.exclude_namespaces, &mut errors),
        };
        if config.cni.is_off {
            errors.push(INSTALL_ONCE.invalid("off"));
        }
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }
}

/// The settings of `veer uninstall-cni`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UninstallCniConfig {
    /// Where things are.
    pub place: Place,
    /// Where the configuration and the plugins are.
    pub cni: CniConfig,
    /// Where the runtime keeps what it knows of attachments.
    pub cni_cache: PathBuf,
}

impl UninstallCniConfig {
    /// Parses the settings.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn parse(flags: &UninstallCniFlags) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let (conf_dir, bin_dir) = directories(&flags.directories, &mut errors);
        let config = Self {
            place: Place::collect(&flags.place, &mut errors),
            cni: CniConfig { conf_dir, bin_dir, ..CniConfig::default() },
            cni_cache: absolute(&CNI_CACHE, &flags.cni_cache, &mut errors),
        };
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }
}

/// Parses the agent's flags.
pub(super) fn of_agent(mode: &str, flags: &CniFlags, errors: &mut Vec<ConfigError>) -> CniConfig {
    parse(&INSTALL, mode, flags, errors)
}

fn parse(setting: &Setting, mode: &str, flags: &CniFlags, errors: &mut Vec<ConfigError>) -> CniConfig {
    let (is_off, mode) = match mode.trim() {
        "off" => (true, None),
        "auto" => (false, None),
        "chained" => (false, Some(Mode::Chained)),
        "owned" => (false, Some(Mode::Owned)),
        "multus" => (false, Some(Mode::Multus)),
        "dropin" => (false, Some(Mode::Dropin)),
        other => {
            errors.push(setting.invalid(other));
            (false, None)
        }
    };
    let (conf_dir, bin_dir) = directories(&flags.directories, errors);
    let plugin = flags.cni_plugin.as_deref().map(|path| absolute(&PLUGIN, path, errors));
    let primary = flags.cni_primary.clone().filter(|name| !name.is_empty());
    if let Some(name) = primary.as_ref().filter(|name| !is_file_name(name)) {
        errors.push(PRIMARY.invalid(name));
    }
    CniConfig { is_off, mode, conf_dir, bin_dir, plugin, primary }
}

fn directories(flags: &CniPlaceFlags, errors: &mut Vec<ConfigError>) -> (Option<PathBuf>, Option<PathBuf>) {
    let mut auto = |setting: &Setting, value: &str| match value {
        "auto" => None,
        path => Some(absolute(setting, path, errors)),
    };
    (auto(&CONF_DIR, &flags.cni_conf_dir), auto(&BIN_DIR, &flags.cni_bin_dir))
}

fn is_file_name(name: &str) -> bool {
    !name.contains('/') && crate::conflist::ENDINGS.iter().any(|ending| name.ends_with(ending))
}
