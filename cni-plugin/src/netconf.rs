//! The network configuration on stdin, as types.
//!
//! Pure: bytes in, types out. Owns: the keys of the plugin's entry in a conflist, their defaults and
//! accepted forms. Keys it does not know are the runtime's or the user's and are left alone. Never does:
//! guess; what is wrong becomes a [`Problem`], all of them at once, and the verb decides what that means.
//! Used by: [`crate::plugin`].

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use veer_common::cni::{SOCKET_NAME, ValidAttachment, code};

use crate::environment::{IDENTIFIER, is_identifier};
use crate::log::Level;
use crate::output::{Failure, Object, Problem, SpecVersion, shortened};

/// Longest configuration that is read. Those of real nodes have a few kilobytes; a GC names every pod.
pub(crate) const MAX_LENGTH: usize = 4 << 20;

const RUN_DIR: &str = "/run/veer";
const TIMEOUT_SECONDS: u64 = 10;
/// Kubernetes gives up on a whole pod sandbox after 120 s.
const MAX_TIMEOUT_SECONDS: u64 = 100;
/// Room for a path in a `sockaddr_un`, its final NUL taken off.
const MAX_SOCKET_PATH: usize = 107;

/// Why there is no configuration to work with.
#[derive(Debug, Error)]
pub(crate) enum NetConfError {
    #[error("no network configuration on stdin")]
    Empty,
    #[error("network configuration on stdin is longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error("network configuration on stdin is not a JSON object: {0}")]
    NotJson(#[source] serde_json::Error),
    #[error("CNI version {} is not supported", shortened(.given.as_deref().unwrap_or("0.1.0")))]
    Version {
        /// What `cniVersion` says; nothing means 0.1.0.
        given: Option<String>,
    },
    #[error("cniVersion is {0}, expected a version such as \"1.0.0\"")]
    VersionType(String),
}

impl From<NetConfError> for Failure {
    fn from(error: NetConfError) -> Self {
        let (code, details) = match &error {
            NetConfError::Empty | NetConfError::NotJson(_) => (
                code::DECODING,
                "the runtime writes the plugin's entry of the conflist to stdin, with name, cniVersion \
                 and prevResult added"
                    .to_owned(),
            ),
            NetConfError::TooLong => (
                code::INVALID_CONFIG,
                "is something other than a container runtime writing to stdin?".to_owned(),
            ),
            NetConfError::Version { given } => {
                let missing = if given.is_none() { "cniVersion is missing, which means 0.1.0; " } else { "" };
                (code::INCOMPATIBLE_VERSION, format!("{missing}supported versions: {}", SpecVersion::list()))
            }
            NetConfError::VersionType(_) => {
                (code::INVALID_CONFIG, format!("supported versions: {}", SpecVersion::list()))
            }
        };
        Self { code, msg: error.to_string(), details }
    }
}

/// The plugin's own keys, with defaults for those that are missing or wrong.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Settings {
    /// `runDir`: the directory of the agent's socket.
    pub(crate) run_dir: PathBuf,
    /// `logLevel`.
    pub(crate) log_level: Level,
    /// `excludeNamespaces`: exact names of namespaces whose pods start without the agent.
    pub(crate) exclude_namespaces: Vec<String>,
    /// `timeoutSeconds`: how long ADD and CHECK wait for the agent.
    pub(crate) timeout: Duration,
}

/// A network configuration: a JSON object of which each key is read when it is needed.
#[derive(Debug)]
pub(crate) struct NetConf<'a>(Object<'a>);

impl<'a> NetConf<'a> {
    /// Reads the bytes of stdin.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, NetConfError> {
        if bytes.len() > MAX_LENGTH {
            return Err(NetConfError::TooLong);
        }
        if bytes.trim_ascii().is_empty() {
            return Err(NetConfError::Empty);
        }
        serde_json::from_slice(bytes).map(Self).map_err(NetConfError::NotJson)
    }

    /// The version that it is written for.
    pub(crate) fn version(&self) -> Result<SpecVersion, NetConfError> {
        let Some(raw) = self.value("cniVersion") else { return Err(NetConfError::Version { given: None }) };
        let given = text(raw).ok_or_else(|| NetConfError::VersionType(shortened(raw.get())))?;
        let given = (!given.is_empty()).then_some(given);
        given.as_deref().and_then(SpecVersion::of_name).ok_or(NetConfError::Version { given })
    }

    /// `cniVersion` as it is written, for VERSION, which echoes also one that the plugin does not speak.
    pub(crate) fn given_version(&self) -> Option<String> {
        self.value("cniVersion").and_then(text)
    }

    /// The plugin's own keys, and what is wrong with them.
    pub(crate) fn settings(&self) -> (Settings, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut read = Reader { netconf: self, problems: &mut problems };
        let room = MAX_SOCKET_PATH - SOCKET_NAME.len() - 1;
        let settings = Settings {
            run_dir: read
                .key("runDir", &format!("an absolute path of at most {room} bytes"), |raw| {
                    text(raw).filter(|path| is_run_dir(path, room)).map(PathBuf::from)
                })
                .unwrap_or_else(|| PathBuf::from(RUN_DIR)),
            log_level: read
                .key("logLevel", &one_of(&Level::ALL.map(Level::name)), |raw| {
                    let name = text(raw)?;
                    Level::ALL.into_iter().find(|level| level.name() == name)
                })
                .unwrap_or(Level::Info),
            exclude_namespaces: read
                .key("excludeNamespaces", "a list of namespace names such as [\"kube-system\"]", |raw| {
                    let names: Vec<String> = typed(raw)?;
                    names.iter().all(|name| is_namespace(name)).then_some(names)
                })
                .unwrap_or_default(),
            timeout: Duration::from_secs(
                read.key(
                    "timeoutSeconds",
                    &format!("a whole number from 1 to {MAX_TIMEOUT_SECONDS}"),
                    |raw| typed::<u64>(raw).filter(|seconds| (1..=MAX_TIMEOUT_SECONDS).contains(seconds)),
                )
                .unwrap_or(TIMEOUT_SECONDS),
            ),
        };
        (settings, problems)
    }

    /// `name`: the network, whose attachments alone a GC speaks of.
    pub(crate) fn network(&self) -> Result<String, Problem> {
        let Some(raw) = self.value("name") else { return Err(Problem::missing("name", IDENTIFIER)) };
        let name = text(raw).filter(|name| is_identifier(name));
        name.ok_or_else(|| Problem::wrong("name", raw.get(), IDENTIFIER))
    }

    /// What the previous plugin of the chain reported; `None` for the first one.
    pub(crate) fn prev_result(&self) -> Result<Option<Object<'a>>, Problem> {
        let Some(raw) = self.value("prevResult") else { return Ok(None) };
        typed(raw).map(Some).ok_or_else(|| Problem::wrong("prevResult", raw.get(), "an object"))
    }

    /// The attachments that GC must keep. Missing is an error, for it would mean all are to be forgotten;
    /// `null` is how runtimes write an empty list.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, Problem> {
        #[derive(Deserialize)]
        struct Entry {
            #[serde(rename = "containerID")]
            container_id: String,
            ifname: String,
        }
        let key = "cni.dev/valid-attachments";
        let expected = "a list of {\"containerID\": …, \"ifname\": …}";
        // The first runtimes with GC wrote the key without `valid-`.
        let Some(raw) = self.0.get(key).or_else(|| self.0.get("cni.dev/attachments")) else {
            return Err(Problem::missing(key, expected));
        };
        let entries: Option<Vec<Entry>> =
            typed(raw).ok_or_else(|| Problem::wrong(key, raw.get(), expected))?;
        let valid =
            |entry: Entry| ValidAttachment { container_id: entry.container_id, interface: entry.ifname };
        Ok(entries.unwrap_or_default().into_iter().map(valid).collect())
    }

    /// The value of a key. `null` is no value, as in the runtimes' own language.
    fn value(&self, key: &str) -> Option<&'a RawValue> {
        self.0.get(key).filter(|raw| raw.get() != "null")
    }
}

/// Reads keys one by one and keeps what is wrong.
struct Reader<'a> {
    netconf: &'a NetConf<'a>,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn key<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&RawValue) -> Option<T>) -> Option<T> {
        let raw = self.netconf.value(key)?;
        let value = parse(raw);
        if value.is_none() {
            self.problems.push(Problem::wrong(key, raw.get(), expected));
        }
        value
    }
}

fn typed<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

fn text(raw: &RawValue) -> Option<String> {
    typed(raw)
}

fn is_run_dir(path: &str, room: usize) -> bool {
    path.starts_with('/') && path.len() <= room && !path.contains('\0')
}

/// A DNS label, as Kubernetes demands; a pattern such as `team-*` would otherwise match nothing, silently.
fn is_namespace(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn one_of(names: &[&str]) -> String {
    format!("one of {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(json: &str) -> (Settings, Vec<String>) {
        let (settings, problems) = NetConf::parse(json.as_bytes()).unwrap().settings();
        (settings, problems.iter().map(Problem::to_string).collect())
    }

    fn defaults() -> Settings {
        Settings {
            run_dir: "/run/veer".into(),
            log_level: Level::Info,
            exclude_namespaces: Vec::new(),
            timeout: Duration::from_secs(10),
        }
    }

    #[test]
    fn an_entry_without_our_keys_has_the_documented_defaults() {
        assert_eq!(
            settings(r#"{"type":"veer-cni","capabilities":{"x":true},"mine":[1]}"#),
            (defaults(), vec![])
        );
        assert_eq!(
            settings(r#"{"runDir":null,"logLevel":null,"timeoutSeconds":null}"#),
            (defaults(), vec![])
        );
    }

    #[test]
    fn every_key_is_read() {
        let json = r#"{"runDir":"/var/run/veer","logLevel":"debug","excludeNamespaces":["kube-system","a1"],"timeoutSeconds":100}"#;
        let expected = Settings {
            run_dir: "/var/run/veer".into(),
            log_level: Level::Debug,
            exclude_namespaces: vec!["kube-system".into(), "a1".into()],
            timeout: Duration::from_secs(100),
        };
        assert_eq!(settings(json), (expected, vec![]));
    }

    #[test]
    fn all_wrong_values_are_named_at_once_with_the_accepted_form() {
        let json = r#"{"runDir":5,"logLevel":"loud","excludeNamespaces":"kube-system","timeoutSeconds":0}"#;
        let problems = vec![
            "runDir is 5, expected an absolute path of at most 98 bytes".to_owned(),
            r#"logLevel is "loud", expected one of off, error, warn, info, debug"#.to_owned(),
            r#"excludeNamespaces is "kube-system", expected a list of namespace names such as ["kube-system"]"#
                .to_owned(),
            "timeoutSeconds is 0, expected a whole number from 1 to 100".to_owned(),
        ];
        assert_eq!(settings(json), (defaults(), problems));
    }

    #[test]
    fn values_at_the_edges_are_refused() {
        let long = format!(r#"{{"runDir":"/{}"}}"#, "r".repeat(98));
        for json in [
            long.as_str(),
            r#"{"runDir":"run/veer"}"#,
            r#"{"runDir":""}"#,
            r#"{"runDir":"/run\u0000"}"#,
            r#"{"logLevel":"INFO"}"#,
            r#"{"logLevel":[]}"#,
            r#"{"excludeNamespaces":["kube-*"]}"#,
            r#"{"excludeNamespaces":[""]}"#,
            r#"{"excludeNamespaces":["a",null]}"#,
            r#"{"excludeNamespaces":{}}"#,
            r#"{"timeoutSeconds":"10"}"#,
            r#"{"timeoutSeconds":1.5}"#,
            r#"{"timeoutSeconds":-1}"#,
            r#"{"timeoutSeconds":101}"#,
        ] {
            assert_eq!(settings(json).1.len(), 1, "{json}");
        }
        assert_eq!(settings(&long.replace("/r", "/")).1, Vec::<String>::new());
    }

    #[test]
    fn a_wrong_value_is_shown_on_one_line_and_not_whole() {
        let json = format!("{{\"runDir\": [1,\n\t2, \"{}\"]}}", "é".repeat(100));
        let (_, problems) = settings(&json);
        let expected = format!("runDir is [1, 2, \"{}…, expected", "é".repeat(52));
        assert!(problems[0].starts_with(&expected), "{problems:?}");
    }

    #[test]
    fn versions_that_are_not_spoken_are_told_apart_from_wrong_ones() {
        let version = |json: &str| NetConf::parse(json.as_bytes()).unwrap().version();
        assert_eq!(version(r#"{"cniVersion":"0.3.1"}"#).unwrap(), SpecVersion::V0_3_1);
        assert!(matches!(version("{}"), Err(NetConfError::Version { given: None })));
        let other = version(r#"{"cniVersion":"0.2.0"}"#);
        assert!(matches!(other, Err(NetConfError::Version { given: Some(v) }) if v == "0.2.0"));
        assert!(matches!(version(r#"{"cniVersion":1}"#), Err(NetConfError::VersionType(v)) if v == "1"));
    }

    #[test]
    fn of_a_key_that_is_there_twice_the_last_one_counts() {
        assert_eq!(settings(r#"{"logLevel":"debug","logLevel":"off"}"#).0.log_level, Level::Off);
    }

    #[test]
    fn gc_takes_both_spellings_of_its_list_and_null_but_not_its_absence() {
        let valid = |json: &str| NetConf::parse(json.as_bytes()).unwrap().valid_attachments();
        let one = vec![ValidAttachment { container_id: "a".into(), interface: "eth0".into() }];
        let list = r#"[{"containerID":"a","ifname":"eth0","later":1}]"#;
        assert_eq!(valid(&format!(r#"{{"cni.dev/valid-attachments":{list}}}"#)), Ok(one.clone()));
        assert_eq!(valid(&format!(r#"{{"cni.dev/attachments":{list}}}"#)), Ok(one));
        assert_eq!(valid(r#"{"cni.dev/valid-attachments":null}"#), Ok(vec![]));
        for wrong in ["{}", r#"{"cni.dev/valid-attachments":[{"containerID":"a"}]}"#] {
            assert_eq!(valid(wrong).unwrap_err().key, "cni.dev/valid-attachments", "{wrong}");
        }
    }

    #[test]
    fn a_network_has_a_name_of_the_form_of_the_specification() {
        let network = |json: &str| NetConf::parse(json.as_bytes()).unwrap().network();
        for name in ["pods", "0", "k8s-pod_network.v2"] {
            assert_eq!(network(&format!(r#"{{"name":"{name}"}}"#)), Ok(name.to_owned()));
        }
        for missing in ["{}", r#"{"name":null}"#] {
            assert_eq!(network(missing), Err(Problem::missing("name", IDENTIFIER)), "{missing}");
        }
        for wrong in ["\"\"", "5", "[\"pods\"]", "\"-pods\"", "\"a b\"", "\"a/b\"", "\"a\\u0000\"", "\"é\""]
        {
            let problem = Problem::wrong("name", wrong, IDENTIFIER);
            assert_eq!(network(&format!(r#"{{"name":{wrong}}}"#)), Err(problem), "{wrong}");
        }
    }

    #[test]
    fn nesting_costs_no_stack() {
        let deep =
            format!(r#"{{"a":{},"prevResult":{{"x":{}}}}}"#, "[".repeat(500_000), "{\"k\":".repeat(300_000));
        assert!(matches!(NetConf::parse(deep.as_bytes()), Err(NetConfError::NotJson(_))));
        let nested = "[".repeat(500_000) + &"]".repeat(500_000);
        let whole = format!(r#"{{"a":{nested},"prevResult":{{"x":{nested}}}}}"#);
        let netconf = NetConf::parse(whole.as_bytes()).unwrap();
        assert_eq!(netconf.prev_result().unwrap().unwrap().get("x").unwrap().get(), nested);
        let wrong =
            format!(r#"{{"runDir":{nested},"excludeNamespaces":{nested},"timeoutSeconds":{nested}}}"#);
        assert_eq!(settings(&wrong).1.len(), 3);
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            drop(NetConf::parse(&bytes));
        }

        #[test]
        fn no_value_of_a_key_panics(value in "[\\[\\]{}\",:0-9a-z\\\\u.é-]{0,40}") {
            for key in ["cniVersion", "name", "runDir", "excludeNamespaces", "prevResult", "cni.dev/valid-attachments"] {
                let json = format!("{{\"{key}\":{value}}}");
                if let Ok(netconf) = NetConf::parse(json.as_bytes()) {
                    drop((netconf.version(), netconf.network(), netconf.settings(), netconf.prev_result()));
                    drop(netconf.valid_attachments());
                }
            }
        }
    }
}
