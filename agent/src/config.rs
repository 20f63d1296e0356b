//! From flags and environment to settings that cannot be wrong.
//!
//! Owns: the accepted form of each value. Never does: stop at the first error; an operator who fixes a
//! manifest wants to hear everything at once.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use crate::cli::{AgentFlags, CommonFlags, PlaceFlags};
use crate::model::{BackendName, BeforeProxy, OwnerGroups, ProxyIdentity};
use crate::proxy::command::ProxyCommand;

mod admin;
mod cni;
mod doctor;
mod heal;
mod kube;
mod node;
mod proxy;

pub use admin::AdminConfig;
pub use cni::{CniConfig, InstallCniConfig, UninstallCniConfig};
pub use doctor::DoctorConfig;
pub use heal::HealConfig;
pub use kube::{KubeConfig, PodsFrom};
pub use proxy::proxy_dir;

/// Where things are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Directory of the sockets.
    pub run_dir: PathBuf,
    /// Directory of the pins.
    pub bpffs: PathBuf,
}

/// The agent's settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentConfig {
    /// Where pods are read from.
    pub pods_from: PodsFrom,
    /// Where things are.
    pub place: Place,
    /// What redirects the pods.
    pub backend: BackendChoice,
    /// The pods' cgroup; `None` finds it.
    pub cgroup: Option<PathBuf>,
    /// Namespaces that are left alone.
    pub exclude_namespaces: BTreeSet<String>,
    /// Whose outbound connections are captured.
    pub owner_groups: OwnerGroups,
    /// What counts as the pods' localhost.
    pub loopback: Ipv4Net,
    /// What makes a process the proxy.
    pub proxy_identity: ProxyIdentity,
    /// What becomes of connections before a pod's proxy has listened.
    pub before_proxy: BeforeProxy,
    /// Where the agent and the node's proxy meet, if there is one.
    pub proxy_dir: Option<PathBuf>,
    /// What the node's proxy is started with, if the agent starts it.
    pub proxy_command: Option<ProxyCommand>,
    /// Where ztunnel is told of its pods, if it is.
    pub ztunnel_socket: Option<PathBuf>,
    /// What users add to what the node's proxy is told.
    pub proxy_config: Option<PathBuf>,
    /// How what is lost or was missed is found again.
    pub heal: HealConfig,
    /// Where metrics and health are served.
    pub admin: AdminConfig,
    /// How the plugin comes into the runtime's configuration.
    pub cni: CniConfig,
    /// How the agent logs.
    pub log: LogConfig,
}

/// What redirects the pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendChoice {
    /// eBPF, if the kernel takes its programs.
    Auto,
    /// This one, or none.
    Only(BackendName),
}

/// How the agent logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// Least important level.
    pub level: tracing::Level,
    /// Form of a line.
    pub format: LogFormat,
}

/// Form of a line of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Everything that is wrong with the configuration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that is needed is not there.
    #[error("{flag} (or {variable}) is missing: {accepted}")]
    Missing {
        /// The flag.
        flag: &'static str,
        /// The variable.
        variable: &'static str,
        /// What it takes.
        accepted: &'static str,
    },
    /// A value that is there is wrong.
    #[error("{flag} (or {variable}): {value:?} is not {accepted}")]
    Invalid {
        /// The flag.
        flag: &'static str,
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it takes.
        accepted: &'static str,
    },
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// A flag, its variable, and what is accepted.
struct Setting(&'static str, &'static str, &'static str);

impl Setting {
    fn invalid(&self, value: &str) -> ConfigError {
        ConfigError::Invalid { flag: self.0, variable: self.1, value: value.to_owned(), accepted: self.2 }
    }

    fn missing(&self) -> ConfigError {
        ConfigError::Missing { flag: self.0, variable: self.1, accepted: self.2 }
    }
}

const ABSOLUTE: &str = "an absolute path";
const ZTUNNEL_SOCKET: Setting = Setting("--ztunnel-socket", "VEER_ZTUNNEL_SOCKET", ABSOLUTE);
const PROXY_CONFIG: Setting =
    Setting("--proxy-config", "VEER_PROXY_CONFIG", "an absolute path, beside --proxy-dir");
const RUN_DIR: Setting = Setting("--run-dir", "VEER_RUN_DIR", ABSOLUTE);
const BPFFS: Setting = Setting("--bpffs", "VEER_BPFFS", ABSOLUTE);
const BACKEND: Setting = Setting("--backend", "VEER_BACKEND", "one of auto, ebpf, nftables");
const CGROUP: Setting = Setting("--cgroup", "VEER_CGROUP", "auto or an absolute path");
const NAMESPACES: Setting = Setting(
    "--exclude-namespaces",
    "VEER_EXCLUDE_NAMESPACES",
    "a list of Kubernetes namespaces (a-z, 0-9 and -, 63 at most) separated by commas",
);
const LOG_LEVEL: Setting = Setting("--log-level", "VEER_LOG_LEVEL", "one of error, warn, info, debug, trace");
const LOG_FORMAT: Setting = Setting("--log-format", "VEER_LOG_FORMAT", "text or json");

impl Place {
    /// Parses where things are.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn parse(flags: &PlaceFlags) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let place = Self::collect(flags, &mut errors);
        if errors.is_empty() { Ok(place) } else { Err(ConfigErrors(errors)) }
    }

    fn collect(flags: &PlaceFlags, errors: &mut Vec<ConfigError>) -> Self {
        Self {
            run_dir: absolute(&RUN_DIR, &flags.run_dir, errors),
            bpffs: absolute(&BPFFS, &flags.bpffs, errors),
        }
    }

    /// The plugin's socket.
    pub fn cni_socket(&self) -> PathBuf {
        self.run_dir.join(veer_common::cni::SOCKET_NAME)
    }

    /// The socket of the commands.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join(crate::control::SOCKET_NAME)
    }

    /// The records of the pods that nftables redirects.
    pub fn records(&self) -> PathBuf {
        self.run_dir.join("nftables")
    }

    /// What a running agent holds locked.
    pub fn lock(&self) -> PathBuf {
        self.run_dir.join("agent.lock")
    }
}

impl AgentConfig {
    /// Parses the agent's settings.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn parse(flags: &AgentFlags) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let pods_from = kube::parse(flags, &mut errors);
        let place = Place::collect(&flags.place, &mut errors);
        let backend = backend(&flags.backend, &mut errors);
        let cgroup = match flags.cgroup.as_str() {
            "auto" => None,
            path => Some(absolute(&CGROUP, path, &mut errors)),
        };
        let exclude_namespaces = namespaces(&flags.common.exclude_namespaces, &mut errors);
        let owner_groups = node::owner_groups(&flags.capture, &mut errors);
        let loopback = node::loopback(&flags.capture, &mut errors);
        let proxy_identity = node::proxy_identity(&flags.capture, &mut errors);
        let before_proxy = node::before_proxy(&flags.capture, &mut errors);
        let proxy_dir = proxy::directory(flags, &mut errors);
        let proxy_command = proxy::command(flags, &mut errors);
        let ztunnel_socket = flags.ztunnel_socket.as_deref();
        let ztunnel_socket = ztunnel_socket.map(|path| absolute(&ZTUNNEL_SOCKET, path, &mut errors));
        let proxy_config = proxy_config(flags, &mut errors);
        let heal = heal::parse(&flags.heal, &mut errors);
        let admin = admin::parse(&flags.admin, &mut errors);
        let cni = cni::of_agent(&flags.cni_install, &flags.cni, &mut errors);
        let level = log_level(&flags.common, &mut errors);
        let format = match flags.log_format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                errors.push(LOG_FORMAT.invalid(other));
                LogFormat::Text
            }
        };
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }
        let log = LogConfig { level, format };
        Ok(Self {
            pods_from,
            place,
            backend,
            cgroup,
            exclude_namespaces,
            owner_groups,
            loopback,
            proxy_identity,
            before_proxy,
            proxy_dir,
            proxy_command,
            ztunnel_socket,
            proxy_config,
            heal,
            admin,
            cni,
            log,
        })
    }
}

/// Least important messages that are logged.
fn log_level(flags: &CommonFlags, errors: &mut Vec<ConfigError>) -> tracing::Level {
    flags.log_level.parse().unwrap_or_else(|_unknown| {
        errors.push(LOG_LEVEL.invalid(&flags.log_level));
        tracing::Level::INFO
    })
}

/// Without a proxy there is nothing to add to.
fn proxy_config(flags: &AgentFlags, errors: &mut Vec<ConfigError>) -> Option<PathBuf> {
    let path = flags.proxy_config.as_deref()?;
    if flags.proxy_dir.is_none() {
        errors.push(PROXY_CONFIG.invalid(path));
    }
    Some(absolute(&PROXY_CONFIG, path, errors))
}

fn backend(value: &str, errors: &mut Vec<ConfigError>) -> BackendChoice {
    match value {
        "auto" => BackendChoice::Auto,
        "ebpf" => BackendChoice::Only(BackendName::Ebpf),
        "nftables" => BackendChoice::Only(BackendName::Nftables),
        other => {
            errors.push(BACKEND.invalid(other));
            BackendChoice::Auto
        }
    }
}

fn absolute(setting: &Setting, value: &str, errors: &mut Vec<ConfigError>) -> PathBuf {
    let path = Path::new(value);
    if !path.is_absolute() {
        errors.push(setting.invalid(value));
    }
    path.to_owned()
}

fn namespaces(value: &str, errors: &mut Vec<ConfigError>) -> BTreeSet<String> {
    let names: BTreeSet<String> =
        value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if !names.iter().all(|name| is_namespace(name)) {
        errors.push(NAMESPACES.invalid(value));
    }
    names
}

/// A DNS label (RFC 1123), as Kubernetes wants it.
fn is_namespace(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= 63 && name.bytes().all(allowed) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{AdminFlags, CaptureFlags, CniFlags, CniPlaceFlags, CommonFlags, HealFlags, KubeFlags};

    pub(super) fn flags() -> AgentFlags {
        AgentFlags {
            proxy_dir: None,
            proxy_command: None,
            ztunnel_socket: None,
            proxy_config: None,
            pods_from: Some("/pods".to_owned()),
            kube: KubeFlags { node_name: None, kubeconfig: None, node_taint: false },
            place: PlaceFlags { run_dir: "/run/veer".to_owned(), bpffs: "/sys/fs/bpf/veer".to_owned() },
            backend: "nftables".to_owned(),
            cgroup: "auto".to_owned(),
            common: common_flags("kube-system, istio-system", "info"),
            capture: capture_flags("*", "127.0.0.1/32"),
            heal: heal_flags("/var/lib/cni", "300"),
            admin: admin_flags("0.0.0.0:15014"),
            cni_install: "off".to_owned(),
            cni: cni_flags("auto", None),
            log_format: "text".to_owned(),
        }
    }

    fn common_flags(namespaces: &str, level: &str) -> CommonFlags {
        CommonFlags { exclude_namespaces: namespaces.to_owned(), log_level: level.to_owned() }
    }

    fn admin_flags(metrics: &str) -> AdminFlags {
        AdminFlags { admin_addr: metrics.to_owned(), health_addr: "off".to_owned() }
    }

    fn heal_flags(cache: &str, interval: &str) -> HealFlags {
        HealFlags { cni_cache: cache.to_owned(), reconcile_interval: interval.to_owned() }
    }

    fn cni_flags(directory: &str, primary: Option<&str>) -> CniFlags {
        CniFlags {
            directories: CniPlaceFlags {
                cni_conf_dir: directory.to_owned(),
                cni_bin_dir: directory.to_owned(),
            },
            cni_plugin: primary.map(|_| "veer-cni".to_owned()),
            cni_primary: primary.map(str::to_owned),
        }
    }

    fn capture_flags(groups: &str, loopback: &str) -> CaptureFlags {
        CaptureFlags {
            outbound_owner_groups: groups.to_owned(),
            outbound_owner_groups_exclude: String::new(),
            host_ipv4_loopback_cidr: loopback.to_owned(),
            proxy_identity: "uid".to_owned(),
            before_proxy: "refuse".to_owned(),
        }
    }

    #[test]
    fn good_flags_become_settings() {
        let config = AgentConfig::parse(&flags()).unwrap();
        assert_eq!(config.cgroup, None);
        assert_eq!(config.backend, BackendChoice::Only(BackendName::Nftables));
        assert_eq!(
            config.exclude_namespaces.into_iter().collect::<Vec<_>>(),
            ["istio-system", "kube-system"]
        );
        assert_eq!(config.place.cni_socket(), Path::new("/run/veer/cni.sock"));
    }

    #[test]
    fn no_excluded_namespace_is_a_list_too() {
        let config = AgentConfig::parse(&AgentFlags { common: common_flags("", "info"), ..flags() }).unwrap();
        assert!(config.exclude_namespaces.is_empty());
    }

    #[test]
    fn all_errors_are_reported_at_once_with_flag_variable_and_form() {
        let wrong = AgentFlags {
            proxy_dir: Some("proxy".to_owned()),
            proxy_command: Some("envoy -c mine".to_owned()),
            ztunnel_socket: Some("ztunnel.sock".to_owned()),
            proxy_config: Some("filters".to_owned()),
            pods_from: None,
            kube: KubeFlags { node_name: None, kubeconfig: None, node_taint: false },
            place: PlaceFlags { run_dir: "run".to_owned(), bpffs: "bpf".to_owned() },
            backend: "iptables".to_owned(),
            cgroup: "kubepods".to_owned(),
            common: common_flags("kube_system", "loud"),
            capture: capture_flags("staff", "10.0.0.0/8"),
            heal: heal_flags("cni", "0"),
            admin: admin_flags("15014"),
            cni_install: "yes".to_owned(),
            cni: cni_flags("net.d", Some("a/10-b.conflist")),
            log_format: "xml".to_owned(),
        };
        assert_eq!(
            AgentConfig::parse(&wrong).unwrap_err().to_string(),
            "\
--pods-from (or VEER_PODS_FROM) is missing: kube, or the absolute path of a directory of Pod manifests
--run-dir (or VEER_RUN_DIR): \"run\" is not an absolute path
--bpffs (or VEER_BPFFS): \"bpf\" is not an absolute path
--backend (or VEER_BACKEND): \"iptables\" is not one of auto, ebpf, nftables
--cgroup (or VEER_CGROUP): \"kubepods\" is not auto or an absolute path
--exclude-namespaces (or VEER_EXCLUDE_NAMESPACES): \"kube_system\" is not a list of Kubernetes namespaces \
(a-z, 0-9 and -, 63 at most) separated by commas
--outbound-owner-groups (or VEER_OUTBOUND_OWNER_GROUPS): \"staff\" is not * or a list of at most 64 group ids \
(0-4294967294) separated by commas
--host-ipv4-loopback-cidr (or VEER_HOST_IPV4_LOOPBACK_CIDR): \"10.0.0.0/8\" is not an IPv4 range within \
127.0.0.0/8, such as 127.0.0.1/32
--proxy-dir (or VEER_PROXY_DIR): \"proxy\" is not an absolute path
--proxy-command (or VEER_PROXY_COMMAND): \"envoy -c mine\" is not the absolute path of an Envoy, and flags of it, \
separated by blanks (no quotes: no shell reads it), without those that the agent gives it (--config-path, --base-id, \
--restart-epoch, --socket-path, --socket-mode), and without --disable-hot-restart
--ztunnel-socket (or VEER_ZTUNNEL_SOCKET): \"ztunnel.sock\" is not an absolute path
--proxy-config (or VEER_PROXY_CONFIG): \"filters\" is not an absolute path, beside --proxy-dir
--cni-cache (or VEER_CNI_CACHE): \"cni\" is not an absolute path
--reconcile-interval (or VEER_RECONCILE_INTERVAL): \"0\" is not a number of seconds, 1-86400
--admin-addr (or VEER_ADMIN_ADDR): \"15014\" is not off, or an address and a port such as 0.0.0.0:15014 or [::1]:0
--cni-install (or VEER_CNI_INSTALL): \"yes\" is not one of off, auto, chained, owned, multus, dropin
--cni-conf-dir (or VEER_CNI_CONF_DIR): \"net.d\" is not auto or an absolute path
--cni-bin-dir (or VEER_CNI_BIN_DIR): \"net.d\" is not auto or an absolute path
--cni-plugin (or VEER_CNI_PLUGIN): \"veer-cni\" is not an absolute path
--cni-primary (or VEER_CNI_PRIMARY): \"a/10-b.conflist\" is not the name of a file below --cni-conf-dir that ends in \
.conf, .conflist or .json
--log-level (or VEER_LOG_LEVEL): \"loud\" is not one of error, warn, info, debug, trace
--log-format (or VEER_LOG_FORMAT): \"xml\" is not text or json"
        );
    }
}
