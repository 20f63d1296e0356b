//! What the plugin prints: results, errors and versions in the form of the CNI specification.
//!
//! Owns: the supported versions, and the JSON on stdout. Never does: decide whether a verb succeeded, or
//! look into a `prevResult` further than its top-level keys.
//! Used by: [`crate::plugin`]; the pure modules build their errors of [`Problem`]s.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// As many characters of a wrong value as an error shows.
const MAX_SHOWN: usize = 60;

/// A version of the CNI specification that the plugin speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum SpecVersion {
    /// 0.3.0: results of today's shape, chains.
    V0_3_0,
    /// 0.3.1: 0.3.0 with a typing error corrected.
    V0_3_1,
    /// 0.4.0: CHECK, and `prevResult` at DEL.
    V0_4_0,
    /// 1.0.0: no `version` in an address of a result.
    V1_0_0,
    /// 1.1.0: GC and STATUS.
    V1_1_0,
}

impl SpecVersion {
    /// All of them, the oldest first.
    pub(crate) const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// What an error carries that is found before the configuration's version is known.
    pub(crate) const NEWEST: Self = Self::V1_1_0;

    /// As it is written in `cniVersion`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of that name, if the plugin speaks it.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == name)
    }

    /// The names of all of them, for people.
    pub(crate) fn list() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl Serialize for SpecVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Why a verb failed, as the runtime gets to read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    /// One of [`veer_common::cni::code`].
    pub(crate) code: u32,
    /// One line: what failed.
    pub(crate) msg: String,
    /// What to look at; runtimes print it behind `msg`.
    pub(crate) details: String,
}

impl Failure {
    /// One failure that names everything that is wrong with an input.
    pub(crate) fn of_problems(code: u32, input: &str, problems: &[Problem]) -> Self {
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        let details: Vec<String> = problems.iter().map(Problem::to_string).collect();
        Self { code, msg: format!("invalid {input}: {}", keys.join(", ")), details: details.join("; ") }
    }
}

/// One thing that is wrong with an input: a variable of the environment or a key of the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Problem {
    /// The name of the variable or key.
    pub(crate) key: String,
    /// What it is, in short; `None` when it is missing.
    pub(crate) value: Option<String>,
    /// What is accepted.
    pub(crate) expected: String,
}

impl Problem {
    /// A value that is not one of those accepted.
    pub(crate) fn wrong(key: &str, value: &str, expected: &str) -> Self {
        Self { key: key.into(), value: Some(shortened(value)), expected: expected.into() }
    }

    /// A value that must be there.
    pub(crate) fn missing(key: &str, expected: &str) -> Self {
        Self { key: key.into(), value: None, expected: expected.into() }
    }
}

/// A wrong value as an error shows it: on one line, and not all of it.
pub(crate) fn shortened(value: &str) -> String {
    let line: String = value.split_ascii_whitespace().flat_map(|word| [word, " "]).collect();
    let line = line.trim_end();
    match line.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} is {value}", self.key)?,
            None => write!(f, "{} is missing", self.key)?,
        }
        write!(f, ", expected {}", self.expected)
    }
}

/// A JSON object as its keys in order, each value the text that it was. Nothing is lost between reading
/// and printing it: neither unknown keys nor the digits of a number.
#[derive(Debug)]
pub(crate) struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Object<'a> {
    /// The value of a key. The last one counts where a key is there twice, as in the runtimes.
    pub(crate) fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| *value)
    }
}

impl<'a, 'de: 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// What ADD prints: the previous plugin's result as it came, except that its `cniVersion` is the
/// configuration's. Without one, the plugin is the first of its chain and has nothing to report.
pub(crate) fn result(
    version: SpecVersion,
    previous: Option<&Object<'_>>,
) -> Result<String, serde_json::Error> {
    match previous {
        Some(previous) => serde_json::to_string(&VersionedResult { version, previous }),
        None => Ok(format!(
            r#"{{"cniVersion":"{}","interfaces":[],"ips":[],"routes":[],"dns":{{}}}}"#,
            version.name()
        )),
    }
}

struct VersionedResult<'a> {
    version: SpecVersion,
    previous: &'a Object<'a>,
}

impl Serialize for VersionedResult<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("cniVersion", &self.version)?;
        for (key, value) in self.previous.0.iter().filter(|(key, _)| key != "cniVersion") {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// What VERSION prints: the version that was asked with, and all that are spoken.
pub(crate) fn versions(given: &str) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions<'a> {
        cni_version: &'a str,
        supported_versions: [SpecVersion; 5],
    }
    serde_json::to_string(&Versions { cni_version: given, supported_versions: SpecVersion::ALL })
}

/// What a verb prints that failed.
pub(crate) fn error(version: SpecVersion, failure: &Failure) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct CniError<'a> {
        cni_version: SpecVersion,
        code: u32,
        msg: &'a str,
        details: &'a str,
    }
    let Failure { code, msg, details } = failure;
    serde_json::to_string(&CniError { cni_version: version, code: *code, msg, details })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn printed(version: SpecVersion, previous: &str) -> String {
        result(version, Some(&serde_json::from_str(previous).unwrap())).unwrap()
    }

    #[test]
    fn unknown_keys_order_and_digits_of_a_result_are_kept() {
        let previous = r#"{"cniVersion":"1.0.0","z":123456789012345678901234567890,"a":1.10,"ips":[{"x":1e400}],"A":"\u00e9\/"}"#;
        assert_eq!(printed(SpecVersion::V1_0_0, previous), previous);
    }

    #[test]
    fn a_result_carries_the_version_of_the_configuration_once() {
        let expected = r#"{"cniVersion":"0.3.1","ips":[]}"#;
        for previous in [
            r#"{"ips":[]}"#,
            r#"{"cniVersion":"1.0.0","ips":[]}"#,
            r#"{"ips":[],"cniVersion":null}"#,
            r#"{"cniVersion":"0.3.1","ips":[],"cniVersion":"0.4.0"}"#,
        ] {
            assert_eq!(printed(SpecVersion::V0_3_1, previous), expected);
        }
    }

    #[test]
    fn the_result_of_the_first_plugin_of_a_chain_is_empty_and_whole() {
        let empty: Value = serde_json::from_str(&result(SpecVersion::V0_4_0, None).unwrap()).unwrap();
        assert_eq!(
            empty,
            json!({"cniVersion": "0.4.0", "interfaces": [], "ips": [], "routes": [], "dns": {}})
        );
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_result_is_passed_through_in_meaning(
            entries in prop::collection::btree_map(any::<String>(), any_json(), 0..8),
            pretty: bool,
        ) {
            let value: Map<String, Value> = entries.into_iter().collect();
            let text =
                if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let out: Map<String, Value> =
                serde_json::from_str(&printed(SpecVersion::V1_1_0, &text)).unwrap();
            let mut expected: Map<String, Value> = serde_json::from_str(&text).unwrap();
            expected.insert("cniVersion".into(), "1.1.0".into());
            prop_assert_eq!(out, expected);
        }
    }
}
