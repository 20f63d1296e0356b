//! What is fuzzed of the agent: one function for each kind of text that comes from outside.
//!
//! Each takes any bytes, panics for what must never be, and knows nothing of the fuzzer: the same functions run
//! over the committed corpus in the tests (`main.rs` beside this file) and under libFuzzer (`fuzz/`).

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Instant;

use veer::explain::line;
use veer::install::{self, Directory, Entry, File, Mode, Wish};
use veer::model::annotation::{self, ValueError};
use veer::model::{Decision, Manifest, NodeSettings, Origins, Pod, decide};
use veer::platform::netns::NetnsId;
use veer::proxy::zds::message;
use veer::proxy::zds::protocol::{self, Protocol, State, Step, Workload};
use veer_common::cni::{Request, encode, read_message};

/// A line of a log that nobody wants to read. Names and values are cut before they make it this long.
const LONGEST_ERROR: usize = 512;

/// Values of annotations and variables, through every parser.
pub(crate) fn annotations(data: &[u8]) {
    let Ok(value) = std::str::from_utf8(data) else { return };
    judge(annotation::interception_mode(value).map_err(|error| vec![error]));
    judge(annotation::included_inbound_ports(value));
    judge(annotation::included_outbound_ranges(value));
    printed_again(annotation::ports(value), annotation::ports);
    printed_again(annotation::ranges(value), annotation::ranges);
    printed_again(annotation::interfaces(value), annotation::interfaces);
    if let Some(known) = annotation::go_bool(value) {
        assert_eq!(annotation::go_bool(&known.to_string()), Some(known));
    }
}

/// Manifests, up to what is decided about the pod.
pub(crate) fn manifest(data: &[u8]) {
    match Manifest::read(data) {
        Ok(Manifest::Pod(mut pod)) => {
            let ztunnel = NodeSettings { ztunnel: true, ..NodeSettings::default() };
            decided(&pod, &NodeSettings::default());
            pod.namespace_labels.ambient = true;
            decided(&pod, &ztunnel);
            pod.namespace_labels.node_proxy = true;
            decided(&pod, &ztunnel);
        }
        Ok(Manifest::Namespace(name, _)) => assert!(!name.is_empty()),
        Err(error) => assert_readable(&error),
    }
}

fn decided(pod: &Pod, node: &NodeSettings) {
    match decide(pod, node) {
        Ok(Decision::Pass(reason)) => assert!(!reason.name().is_empty()),
        Ok(Decision::Capture(_)) => drop(Origins::of(pod, node)),
        Err(errors) => {
            assert!(!errors.errors.is_empty(), "refused for nothing");
            errors.errors.iter().for_each(assert_readable);
            assert!(errors.to_string().starts_with(&format!("pod {}", pod.full_name())), "{errors}");
        }
    }
}

/// Messages of the plugin. Whoever may open the socket is root, but not every root process is the plugin.
pub(crate) fn cni_message(data: &[u8]) {
    let Ok(request) = read_message::<Request>(&mut &*data) else { return };
    let Ok(bytes) = encode(&request) else { return };
    let again: Request = match read_message(&mut &*bytes) {
        Ok(again) => again,
        Err(error) => panic!("{request:?} is not read again: {error}"),
    };
    assert_eq!(again, request);
}

/// Lines that somebody says `veer monitor` has printed.
pub(crate) fn monitor_line(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match line::read(text) {
        Ok(shown) => assert!(shown.pod.contains('/')),
        Err(error) => assert_readable(&error),
    }
}

/// What a peer says that is said to be ztunnel: packets of up to 255 bytes, each after its length, to an agent with two pods.
/// Each message that it gets is out before the next packet comes.
pub(crate) fn zds(data: &[u8]) {
    let now = Instant::now();
    let mut protocol = Protocol::default();
    for number in 1..=2_u64 {
        drop(protocol.want(workload(number), now));
    }
    drop(protocol.complete(now));
    let (connection, _) = protocol.open(now);
    let (mut rest, mut snapshots) = (data, 0);
    while let Some((length, after)) = rest.split_first() {
        let (packet, after) = after.split_at(usize::from(*length).min(after.len()));
        rest = after;
        for step in protocol.received(connection, packet, now) {
            match step {
                Step::Close { reason, .. } => return assert_readable(&reason),
                Step::Send { to, request } => {
                    assert!(message::packet(&request).is_ok(), "{request:?}");
                    snapshots += u32::from(request == protocol::Request::SnapshotSent);
                    protocol.sent(to, now);
                }
            }
        }
        assert!(snapshots <= 1, "a second snapshot ends ztunnel");
        for workload in protocol.workloads() {
            if let State::Refused(words) = protocol.state(&workload.uid) {
                assert_readable(&words);
            }
        }
    }
}

fn workload(number: u64) -> Workload {
    Workload {
        uid: number.to_string(),
        namespace: "shop".to_owned(),
        name: format!("cart-{number}"),
        service_account: Some("seller".to_owned()),
        netns_path: "/run/netns/x".to_owned(),
        netns: NetnsId { device: 4, inode: number },
    }
}

/// Files of a CNI directory: whatever can be installed into is as it was when that is taken back. The first byte chooses
/// what the file is called and the mode.
pub(crate) fn conflist(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else { return };
    let name = match choice % 4 {
        0 => "10-a.conflist",
        1 => "10-a.conf",
        2 => "00-multus.conf",
        _ => "10-a.json",
    };
    let mode = match choice / 4 % 4 {
        0 => None,
        1 => Some(Mode::Chained),
        2 => Some(Mode::Owned),
        _ => Some(Mode::Dropin),
    };
    let entry = Entry {
        run_dir: "/run/veer".into(),
        log_level: "info".to_owned(),
        exclude_namespaces: BTreeSet::default(),
    };
    let wish =
        Wish { mode, entry, primary: None, reads_dropins: choice & 16 != 0, passes_broken: choice & 32 != 0 };
    // Without what is left of an earlier installation, which goes, too.
    let files = [(name.to_owned(), File::new(text.to_vec()))].into();
    let before = Directory { files }.cleaned();
    let planned = match install::plan(&before, &wish) {
        Ok(planned) => planned,
        Err(error) => return assert_readable(&error),
    };
    let mut state = before.clone();
    for step in &planned.steps {
        state.take(step);
    }
    let again = install::plan(&state, &wish).map(|planned| planned.steps);
    assert_eq!(again, Ok(Vec::new()), "the second time");
    for step in install::removal(&state) {
        state.take(&step);
    }
    assert_eq!(state, before);
}

/// What was taken is taken again as it is printed, and is the same then.
fn printed_again<T: Ord + Display + std::fmt::Debug>(
    parsed: Result<BTreeSet<T>, Vec<ValueError>>,
    parse: fn(&str) -> Result<BTreeSet<T>, Vec<ValueError>>,
) {
    if let Ok(values) = &parsed {
        let printed: Vec<String> = values.iter().map(ToString::to_string).collect();
        assert_eq!(parse(&printed.join(",")).as_ref(), Ok(values));
    }
    judge(parsed);
}

fn judge<T>(parsed: Result<T, Vec<ValueError>>) {
    if let Err(errors) = parsed {
        assert!(!errors.is_empty(), "refused for nothing");
        errors.iter().for_each(assert_readable);
    }
}

/// An error is one line that a terminal and a log can bear, whatever was in the input.
fn assert_readable(error: &impl Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() <= LONGEST_ERROR, "{} bytes: {text}", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
