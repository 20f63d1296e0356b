//! The `CNI_*` variables, as types.
//!
//! Pure: a lookup of variables in, types out. Owns: which variables a verb needs and their accepted forms.
//! Never does: touch the network namespace that is named, or judge who the pod is.
//! Used by: [`crate::plugin`].

use std::ffi::OsString;

use veer_common::cni::{self, PodReference, code};

use crate::output::{Failure, Problem};

/// Looks up a variable; the process environment outside of tests.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The linux limit on an interface's name, its final NUL taken off.
const MAX_INTERFACE_NAME: usize = 15;

/// A CNI verb.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    /// A pod is about to start.
    Add,
    /// Is the pod as ADD left it?
    Check,
    /// The pod is gone or going.
    Del,
    /// These pods are all that there are.
    Gc,
    /// Could an ADD succeed?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Command {
    const ALL: [Self; 6] = [Self::Add, Self::Check, Self::Del, Self::Gc, Self::Status, Self::Version];

    /// Its name in `CNI_COMMAND`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// The names of all verbs, for people.
pub(crate) fn commands() -> String {
    Command::ALL.map(Command::name).join(", ")
}

/// Whether a verb works on the network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Netns {
    /// ADD and CHECK: the runtime must name one.
    Required,
    /// DEL: it may be gone.
    Optional,
}

/// A pod's attachment and what the runtime says of its pod.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Attachment {
    /// `CNI_CONTAINERID`.
    pub(crate) container_id: String,
    /// `CNI_NETNS`; empty when the runtime gave none.
    pub(crate) netns: String,
    /// `CNI_IFNAME`.
    pub(crate) interface: String,
    /// Of `CNI_ARGS`.
    pub(crate) pod: PodArgs,
}

/// What `CNI_ARGS` says of the pod. Runtimes outside of Kubernetes say nothing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct PodArgs {
    /// `K8S_POD_NAMESPACE`.
    pub(crate) namespace: Option<String>,
    /// `K8S_POD_NAME`.
    pub(crate) name: Option<String>,
    /// `K8S_POD_UID`.
    pub(crate) uid: Option<String>,
}

impl PodArgs {
    /// Parses `K=V;K=V`. Unknown keys, and what is not a pair, are other plugins' business.
    fn parse(args: &str) -> Self {
        let mut pod = Self::default();
        for (key, value) in args.split(';').filter_map(|pair| pair.split_once('=')) {
            let field = match key {
                "K8S_POD_NAMESPACE" => &mut pod.namespace,
                "K8S_POD_NAME" => &mut pod.name,
                "K8S_POD_UID" => &mut pod.uid,
                _ => continue,
            };
            *field = (!value.is_empty()).then(|| value.to_owned());
        }
        pod
    }

    /// The pod, when it is named in full.
    pub(crate) fn reference(self) -> Option<PodReference> {
        Some(PodReference { namespace: self.namespace?, name: self.name?, uid: self.uid })
    }
}

impl Attachment {
    /// As the agent is told; `network` is what the configuration names.
    pub(crate) fn message(self, network: String) -> cni::Attachment {
        cni::Attachment {
            container_id: self.container_id,
            netns: self.netns,
            interface: self.interface,
            network,
            pod: self.pod.reference(),
        }
    }
}

/// The verb of `CNI_COMMAND`; `None` when nobody set it, which is how a person runs the binary.
pub(crate) fn command(variables: Variables<'_>) -> Result<Option<Command>, Failure> {
    let mut read = Reader { variables, problems: Vec::new() };
    let expected = format!("one of {}", commands());
    let command = read.optional("CNI_COMMAND", &expected, |name| {
        Command::ALL.into_iter().find(|command| command.name() == name)
    });
    if read.problems.is_empty() { Ok(command) } else { Err(failure(&read.problems)) }
}

/// What is missing when [`command`] finds none.
pub(crate) fn no_command() -> Failure {
    failure(&[Problem::missing("CNI_COMMAND", &format!("one of {}", commands()))])
}

/// The variables of ADD, CHECK and DEL.
pub(crate) fn attachment(variables: Variables<'_>, netns: Netns) -> Result<Attachment, Failure> {
    let mut read = Reader { variables, problems: Vec::new() };
    let owned = |value: &str| Some(value.to_owned());
    let container_id =
        read.required("CNI_CONTAINERID", IDENTIFIER, |id| is_identifier(id).then(|| id.to_owned()));
    let interface = read.required(
        "CNI_IFNAME",
        "an interface name: 1 to 15 bytes, without '/', ':' and white space, not '.' or '..'",
        |name| is_interface(name).then(|| name.to_owned()),
    );
    let expected = "the path of a network namespace";
    let netns = match netns {
        Netns::Required => read.required("CNI_NETNS", expected, owned),
        Netns::Optional => Some(read.optional("CNI_NETNS", expected, owned).unwrap_or_default()),
    };
    let pod =
        read.optional("CNI_ARGS", "KEY=VALUE pairs with ';' between them", |args| Some(PodArgs::parse(args)));
    match (container_id, netns, interface) {
        (Some(container_id), Some(netns), Some(interface)) if read.problems.is_empty() => {
            Ok(Attachment { container_id, netns, interface, pod: pod.unwrap_or_default() })
        }
        _ => Err(failure(&read.problems)),
    }
}

/// Reads variables one by one and keeps what is wrong.
struct Reader<'a> {
    variables: Variables<'a>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    /// A variable that may be missing. Empty is missing: runtimes set those that do not apply to nothing.
    fn optional<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = (self.variables)(key).filter(|value| !value.is_empty())?;
        let parsed = value.to_str().and_then(parse);
        if parsed.is_none() {
            self.problems.push(Problem::wrong(key, &format!("{:?}", value.to_string_lossy()), expected));
        }
        parsed
    }

    fn required<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let before = self.problems.len();
        let parsed = self.optional(key, expected, parse);
        if parsed.is_none() && self.problems.len() == before {
            self.problems.push(Problem::missing(key, expected));
        }
        parsed
    }
}

fn failure(problems: &[Problem]) -> Failure {
    Failure::of_problems(code::INVALID_ENVIRONMENT, "environment", problems)
}

/// What [`is_identifier`] takes, for people.
pub(crate) const IDENTIFIER: &str = "a letter or digit, then letters, digits, '_', '.' and '-'";

/// The form that the specification gives container ids and names of networks.
pub(crate) fn is_identifier(id: &str) -> bool {
    id.starts_with(|first: char| first.is_ascii_alphanumeric())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn is_interface(name: &str) -> bool {
    (1..=MAX_INTERFACE_NAME).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn with<T>(variables: &[(&str, &str)], read: impl FnOnce(Variables<'_>) -> T) -> T {
        let variables: BTreeMap<String, OsString> =
            variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        read(&|key| variables.get(key).cloned())
    }

    const WHOLE: [(&str, &str); 4] = [
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=cart;K8S_POD_UID=u-1;K8S_POD_NAMESPACE=shop"),
    ];

    fn changed(key: &str, value: &str) -> Result<Attachment, Failure> {
        let mut variables = WHOLE;
        for entry in &mut variables {
            if entry.0 == key {
                entry.1 = value;
            }
        }
        with(&variables, |variables| attachment(variables, Netns::Required))
    }

    #[test]
    fn all_missing_variables_are_named_at_once() {
        let failure = with(&[("CNI_IFNAME", "")], |none| attachment(none, Netns::Required)).unwrap_err();
        assert_eq!(failure.code, code::INVALID_ENVIRONMENT);
        assert_eq!(failure.msg, "invalid environment: CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS");
        assert_eq!(failure.details.matches(" is missing, expected ").count(), 3, "{}", failure.details);
    }

    #[test]
    fn a_missing_netns_is_an_error_only_where_it_is_needed() {
        let no_netns = [WHOLE[0], WHOLE[2]];
        assert!(with(&no_netns, |variables| attachment(variables, Netns::Required)).is_err());
        let attachment = with(&no_netns, |variables| attachment(variables, Netns::Optional)).unwrap();
        assert_eq!((attachment.netns.as_str(), attachment.pod.reference()), ("", None));
    }

    #[test]
    fn container_ids_have_the_form_of_the_specification() {
        for id in ["a", "0", "A_b.c-d", "0123456789abcdef"] {
            assert_eq!(changed("CNI_CONTAINERID", id).unwrap().container_id, id);
        }
        for id in ["-a", ".", "_a", "a/b", "a b", "é", "a\n", "a;b", "../a"] {
            let failure = changed("CNI_CONTAINERID", id).unwrap_err();
            assert_eq!(failure.msg, "invalid environment: CNI_CONTAINERID", "{id}");
        }
    }

    #[test]
    fn interface_names_have_the_form_of_the_kernel() {
        for name in ["eth0", "a", "123456789012345", "...", "eth0.5"] {
            assert_eq!(changed("CNI_IFNAME", name).unwrap().interface, name);
        }
        for name in ["1234567890123456", ".", "..", "a/b", "a:1", "a b", "a\tb", "a\u{7f}", "\u{a0}"] {
            let failure = changed("CNI_IFNAME", name).unwrap_err();
            assert_eq!(failure.msg, "invalid environment: CNI_IFNAME", "{name:?}");
        }
    }

    #[test]
    fn variables_that_are_not_text_are_refused_and_not_lost() {
        for key in WHOLE.map(|(key, _)| key) {
            let one_binary = |asked: &str| match asked {
                _ if asked == key => Some(OsString::from_vec(vec![b'a', 0xff])),
                _ => WHOLE.iter().find(|(key, _)| *key == asked).map(|(_, value)| value.into()),
            };
            let failure = attachment(&one_binary, Netns::Optional).unwrap_err();
            assert_eq!(failure.msg, format!("invalid environment: {key}"));
        }
    }

    #[test]
    fn args_are_pairs_in_any_order_and_the_rest_is_ignored() {
        let pod = |namespace: &str, name: &str| {
            Some(PodReference { namespace: namespace.into(), name: name.into(), uid: None })
        };
        for (args, expected) in [
            ("K8S_POD_NAME=cart;K8S_POD_NAMESPACE=shop", pod("shop", "cart")),
            ("K8S_POD_NAMESPACE=shop;;x;=;A=B=C;K8S_POD_NAME=cart;", pod("shop", "cart")),
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=cart=1;K8S_POD_NAMESPACE=b", pod("b", "cart=1")),
            ("K8S_POD_NAMESPACE=shop", None),
            ("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=", None),
            ("k8s_pod_namespace=shop;K8S_POD_NAME=cart", None),
            (";;;", None),
        ] {
            assert_eq!(PodArgs::parse(args).reference(), expected, "{args}");
        }
    }

    #[test]
    fn verbs_are_exact() {
        for verb in Command::ALL {
            assert_eq!(with(&[("CNI_COMMAND", verb.name())], command), Ok(Some(verb)));
        }
        assert_eq!(with(&[("CNI_COMMAND", "")], command), Ok(None));
        let failure = with(&[("CNI_COMMAND", "add")], command).unwrap_err();
        assert_eq!(
            failure.details,
            r#"CNI_COMMAND is "add", expected one of ADD, CHECK, DEL, GC, STATUS, VERSION"#
        );
    }
}
