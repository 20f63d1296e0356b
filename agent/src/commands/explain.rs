//! `veer explain`: why a connection goes where it goes.
//!
//! What the kernel holds is read from the pins; what the pod said comes from the agent, and without an agent
//! the explanation goes without causes.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::net::{IpAddr, SocketAddr};

use veer_common::address::{Address, Port};
use veer_common::cni::PodReference;
use veer_common::maps::{NetnsCookie, PodPolicy, ProxyContainer, flag};
use veer_common::verdict::{Inbound, Outbound, Sender, ambient};

use super::{Failure, ask, broken_off, enrolments, place, view};
use crate::capture::{MapEntries, padded};
use crate::cli::ExplainFlags;
use crate::config::Place;
use crate::control;
use crate::enrol::Enrolled;
use crate::enrol::record::Record;
use crate::explain::causes::PodFacts;
use crate::explain::report::{Protocol, Question, Report};
use crate::explain::{Connection, explain, line, text};
use crate::model::IdSpace;
use crate::platform::bpf::maps::{ListEntries, Maps};
use crate::platform::records::Records;

/// Who dials where nobody says: any ids do that are not the proxy's.
const SOMEBODY: u32 = 1000;

/// What the flags ask, checked as far as they can be without the pod.
#[derive(Clone, Debug)]
enum Asked {
    /// About a connection that the pod might open.
    To {
        pod: PodReference,
        to: SocketAddr,
        identity: Option<(u32, u32)>,
        /// Whether the identity is in another container than the proxy's, if that was said.
        elsewhere: Option<bool>,
        mark: u32,
        source: Option<IpAddr>,
        interface: Option<String>,
    },
    /// About a connection that might arrive.
    From { pod: PodReference, from: IpAddr, at: Option<IpAddr>, port: u16, interface: Option<String> },
    /// About lines of `veer monitor`.
    Line(String),
    /// About lines of `veer monitor` on stdin.
    Lines,
}

/// A pod, as far as it is known.
struct Subject {
    /// What the kernel holds of it.
    held: Option<(NetnsCookie, MapEntries)>,
    /// Which container is the proxy's, where that counts.
    proxy: Option<ProxyContainer>,
    /// Whether its proxy is awaited, and what it would get goes direct.
    is_before_proxy: bool,
    /// The node's own addresses, which count in ambient mode alone.
    node_addresses: BTreeSet<IpAddr>,
    /// Whose numbers its uids and gids are: rules of nftables count as the pod does.
    ids: IdSpace,
    /// What the agent says of it, or why it says nothing.
    facts: Result<PodFacts, String>,
}

/// Runs the command.
///
/// # Errors
/// If the question is none, or nobody knows the pod.
pub fn run(flags: &ExplainFlags) -> Result<(), Failure> {
    let asked = Asked::parse(flags).map_err(|errors| Failure::Usage(errors.join("\n")))?;
    let place = place(&flags.read.place)?;
    let mut answers = Answers { place, json: flags.read.json, first: true };
    let protocol = if flags.protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
    match asked {
        Asked::To { .. } | Asked::From { .. } => answers.hypothetical(&asked, protocol),
        Asked::Line(line) => answers.shown(&line),
        Asked::Lines => {
            for line in io::stdin().lock().lines() {
                answers.shown(&line?)?;
            }
            Ok(())
        }
    }
}

impl Asked {
    /// Everything that is wrong with the flags, at once. What may stand beside what is clap's to say.
    fn parse(flags: &ExplainFlags) -> Result<Self, Vec<String>> {
        if let Some(event) = &flags.event {
            return Ok(if event == "-" { Self::Lines } else { Self::Line(event.clone()) });
        }
        let mut errors = Vec::new();
        let interface = flags.interface.clone();
        let pod = pod(flags.pod.as_deref().unwrap_or_default(), &mut errors);
        let source = parsed(&mut errors, "--source", flags.source.as_deref(), "an IP", ip);
        let identity = parsed(&mut errors, "--as", flags.identity.as_deref(), "UID:GID", identity);
        let mark = parsed(&mut errors, "--mark", flags.mark.as_deref(), "a number, 0x539 or 1337", mark);
        let from = parsed(&mut errors, "--from", flags.from.as_deref(), "an IP", ip);
        let at = parsed(&mut errors, "--at", flags.at.as_deref(), "an IP", ip);
        let to: Option<SocketAddr> =
            parsed(&mut errors, "--to", flags.to.as_deref(), "IP:PORT or [IP]:PORT", |text| {
                text.parse().ok()
            });
        let is_v4 = |ip: IpAddr| ip.to_canonical().is_ipv4();
        // What is bound to an IPv4 address may dial ::, its own localhost.
        let two_families = |one: IpAddr, other: IpAddr| is_v4(one) != is_v4(other) && !one.is_unspecified();
        if let (Some(to), Some(source)) = (to, source)
            && two_families(to.ip(), source)
        {
            errors.push(format!("--source {source} and --to {to} are of two families"));
        }
        if let (Some(from), Some(at)) = (from, at)
            && two_families(from, at)
        {
            errors.push(format!("--from {from} and --at {at} are of two families"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        match (to, from, flags.port) {
            (Some(to), None, None) => {
                let elsewhere = flags.container.as_deref().map(|container| container == "other");
                let mark = mark.unwrap_or_default();
                Ok(Self::To { pod, to, identity, elsewhere, mark, source, interface })
            }
            (None, Some(from), Some(port)) => Ok(Self::From { pod, from, at, port, interface }),
            _ => Err(vec![
                "what is to be explained: --to IP:PORT, or --from IP with --port PORT, or --event LINE"
                    .to_owned(),
            ]),
        }
    }
}

fn parsed<T>(
    errors: &mut Vec<String>,
    flag: &str,
    value: Option<&str>,
    accepted: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let value = value?;
    let parsed = parse(value);
    if parsed.is_none() {
        errors.push(format!("{flag}: {value:?} is not {accepted}"));
    }
    parsed
}

fn ip(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

fn mark(text: &str) -> Option<u32> {
    let hexadecimal = text.strip_prefix("0x");
    hexadecimal.map_or_else(|| text.parse(), |digits| u32::from_str_radix(digits, 16)).ok()
}

fn identity(text: &str) -> Option<(u32, u32)> {
    let (uid, gid) = text.split_once(':')?;
    let id = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX);
    Some((id(uid)?, id(gid)?))
}

fn pod(name: &str, errors: &mut Vec<String>) -> PodReference {
    let Some((namespace, name)) = name.split_once('/') else {
        errors.push(format!("pod {name:?} is not NAMESPACE/NAME"));
        return PodReference { namespace: String::new(), name: String::new(), uid: None };
    };
    PodReference { namespace: namespace.to_owned(), name: name.to_owned(), uid: None }
}

fn full_name(pod: &PodReference) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// Answers questions, one after the other. Each looks at the pod anew: lines may come for hours.
struct Answers {
    place: Place,
    json: bool,
    first: bool,
}

impl Answers {
    /// On a connection that might be.
    fn hypothetical(&mut self, asked: &Asked, protocol: Protocol) -> Result<(), Failure> {
        let (Asked::To { pod, .. } | Asked::From { pod, .. }) = asked else { return Ok(()) };
        let subject = subject(&self.place, pod)?;
        let entries = subject.held.as_ref().map(|(_, entries)| entries);
        let (connection, assumed) = connection(asked, protocol, entries, &subject)?;
        let name = full_name(pod);
        let question =
            Question { pod: name, connection, protocol, ids: subject.ids, observed: None, assumed };
        self.answer(pod, &subject, &question)
    }

    /// On a connection that `veer monitor` has shown.
    fn shown(&mut self, line: &str) -> Result<(), Failure> {
        let shown = line::read(line).map_err(|error| Failure::Usage(error.to_string()))?;
        let (namespace, name) = shown.pod.split_once('/').unwrap_or_default();
        let pod = PodReference { namespace: namespace.to_owned(), name: name.to_owned(), uid: None };
        let subject = subject(&self.place, &pod)?;
        let question = Question {
            pod: shown.pod.clone(),
            connection: shown.connection,
            protocol: match shown.connection {
                Connection::Datagram(_) => Protocol::Udp,
                Connection::Outbound(_) | Connection::Inbound(_) => Protocol::Tcp,
            },
            ids: subject.ids,
            observed: Some(shown.reason),
            assumed: None,
        };
        self.answer(&pod, &subject, &question)
    }

    fn answer(&mut self, pod: &PodReference, subject: &Subject, question: &Question) -> Result<(), Failure> {
        let report = report(subject, question).ok_or_else(|| unknown(pod, &subject.facts))?;
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            let gap = if self.first { "" } else { "\n" };
            write!(out, "{gap}{}", text::render(&report))?;
        }
        self.first = false;
        out.flush()?;
        Ok(())
    }
}

fn report(subject: &Subject, question: &Question) -> Option<Report> {
    match (&subject.held, &subject.facts) {
        (Some(_), _) if question.protocol == Protocol::Udp && is_inbound(&question.connection) => {
            Some(Report::on_arriving_udp(question))
        }
        (Some((cookie, entries)), facts) => {
            let explanation = explain(*cookie, entries, &question.connection);
            Some(Report::on_enrolled(question, &explanation, facts.as_ref().map_err(String::as_str)))
        }
        (None, Ok(facts)) => Report::on_other(question, facts),
        (None, Err(_)) => None,
    }
}

fn is_inbound(connection: &Connection) -> bool {
    matches!(connection, Connection::Inbound(_))
}

fn unknown(pod: &PodReference, facts: &Result<PodFacts, String>) -> Failure {
    let name = full_name(pod);
    Failure::Unavailable(match facts {
        Ok(facts) => format!(
            "pod {name} is not enrolled on this node and not known in {}; `veer pods` lists those that are enrolled",
            facts.source
        ),
        Err(problem) => {
            format!("pod {name} is not enrolled on this node, and only the agent knows why: {problem}")
        }
    })
}

/// Looks at a pod: in the maps, then at the agent.
fn subject(place: &Place, pod: &PodReference) -> Result<Subject, Failure> {
    let enrolments = enrolments(place)?;
    let facts = match facts(place, pod) {
        Ok(facts) => Ok(facts),
        Err(Failure::Unavailable(problem)) => Err(problem),
        Err(other) => return Err(other),
    };
    let of_nftables = held_by_nftables(&enrolments.records, pod)?;
    let ids = if of_nftables.is_some() { IdSpace::Pod } else { IdSpace::Node };
    let (None, Some(maps)) = (&of_nftables, &enrolments.maps) else {
        let node_addresses = BTreeSet::new();
        return Ok(Subject {
            held: of_nftables,
            proxy: None,
            is_before_proxy: false,
            node_addresses,
            ids,
            facts,
        });
    };
    let held = held(maps, pod)?;
    let cookie = held.as_ref().map(|(cookie, _)| *cookie);
    let proxy = cookie.map(|cookie| maps.proxy_container(cookie)).transpose()?.flatten();
    let is_before_proxy = cookie.map(|cookie| maps.is_before_proxy(cookie)).transpose()?.unwrap_or_default();
    let node_addresses = maps.node_addresses()?;
    Ok(Subject { held, proxy, is_before_proxy, node_addresses, ids, facts })
}

/// What the kernel holds of a pod; of two of its name, the younger one.
fn held(maps: &Maps, pod: &PodReference) -> Result<Option<(NetnsCookie, MapEntries)>, Failure> {
    let enrolled = maps.enrolments()?.into_iter();
    let enrolled =
        enrolled.map(|(cookie, record)| Enrolled::from_map(cookie, &record, ListEntries::default()));
    let named =
        enrolled.filter(|other| (&other.pod.namespace, &other.pod.name) == (&pod.namespace, &pod.name));
    let Some(found) = named.max_by_key(|pod| (pod.enrolled_at, pod.cookie)) else { return Ok(None) };
    let Some(policy) = maps.policy(found.cookie)? else { return Ok(None) };
    let lists = maps.list_entries()?.remove(&found.cookie).unwrap_or_default();
    Ok(Some((found.cookie, maps.entries(policy, lists)?)))
}

/// The same of a pod that nftables redirects.
fn held_by_nftables(
    records: &Records,
    pod: &PodReference,
) -> Result<Option<(NetnsCookie, MapEntries)>, Failure> {
    let records: Vec<(NetnsCookie, Record)> = records.read_all()?.into_iter().collect::<Result<_, _>>()?;
    let is_named = |other: &PodReference| (&other.namespace, &other.name) == (&pod.namespace, &pod.name);
    let named = records.into_iter().filter(|(_, record)| is_named(&record.pod));
    let Some((cookie, record)) = named.max_by_key(|(cookie, record)| (record.enrolled_at, *cookie)) else {
        return Ok(None);
    };
    Ok(view::nftables::entries(cookie, &record)?.map(|entries| (cookie, entries)))
}

fn facts(place: &Place, pod: &PodReference) -> Result<PodFacts, Failure> {
    let question = control::Question::Pod { namespace: pod.namespace.clone(), name: pod.name.clone() };
    let mut line = String::new();
    ask(place, &question)?.read_line(&mut line).map_err(|error| broken_off(&error))?;
    if line.is_empty() {
        return Err(Failure::Unavailable("the agent does not answer: it is of another release".to_owned()));
    }
    serde_json::from_str(&line).map_err(|error| Failure::Failed(format!("the agent's answer: {error}")))
}

/// The connection that is asked about, and what was taken for granted.
fn connection(
    asked: &Asked,
    protocol: Protocol,
    entries: Option<&MapEntries>,
    subject: &Subject,
) -> Result<(Connection, Option<String>), Failure> {
    let policy = entries.map(|entries| &entries.policy);
    match asked {
        Asked::To { to, identity, elsewhere, mark, source, interface, .. } => {
            let interface = index_of(interface.as_deref(), entries)?;
            let ((uid, gid), is_impostor, assumed) = if let Some(identity) = identity {
                let (is_impostor, assumed) = container(policy, subject.proxy, *identity, *elsewhere);
                (*identity, is_impostor, assumed)
            } else {
                let (identity, assumed) = somebody(policy);
                (identity, false, assumed)
            };
            let destination = Address::from(to.ip());
            let unbound = if to.is_ipv4() { Address::v4([0; 4]) } else { Address::UNSPECIFIED };
            let source = source.map_or(unbound, Address::from);
            let port = Port::new(to.port());
            let waits = |policy: &PodPolicy| policy.flags & flag::DIRECT_BEFORE_PROXY != 0;
            let is_before_proxy = subject.is_before_proxy && policy.is_some_and(waits);
            let outbound = Outbound {
                uid,
                gid,
                is_impostor,
                is_before_proxy,
                is_marked: ambient::is_ztunnels(*mark),
                source,
                destination,
                port,
                interface,
            };
            let connection = match protocol {
                Protocol::Tcp => Connection::Outbound(outbound),
                Protocol::Udp => Connection::Datagram(outbound),
            };
            Ok((connection, assumed))
        }
        Asked::From { from, at, port, interface, .. } => {
            let interface = index_of(interface.as_deref(), entries)?;
            let (local, assumed) = match at {
                Some(at) => (Address::from(*at), None),
                None => own_address(*from, policy)?,
            };
            let port = Port::new(*port);
            let is_node = subject.node_addresses.contains(&from.to_canonical());
            let sender = if is_node { Sender::Node } else { Sender::Client };
            let inbound = Inbound { remote: Address::from(*from), local, port, interface, sender };
            Ok((Connection::Inbound(inbound), assumed))
        }
        Asked::Line(_) | Asked::Lines => Err(Failure::Failed("a line is read, not made".to_owned())),
    }
}

/// Whether somebody with these ids has the proxy's and is not it, and what was taken for granted.
fn container(
    policy: Option<&PodPolicy>,
    proxy: Option<ProxyContainer>,
    (uid, gid): (u32, u32),
    elsewhere: Option<bool>,
) -> (bool, Option<String>) {
    let is_asked = |policy: &PodPolicy| {
        policy.flags & flag::BY_CONTAINER != 0 && (uid == policy.proxy_uid || gid == policy.proxy_gid)
    };
    if !policy.is_some_and(is_asked) {
        return (false, None);
    }
    match (proxy, elsewhere) {
        (None, _) => {
            let note = "nobody has listened on the proxy's ports with its ids yet, so nobody is the proxy";
            (true, Some(note.to_owned()))
        }
        (Some(_), Some(elsewhere)) => (elsewhere, None),
        (Some(ProxyContainer { cgroup, .. }), None) => {
            let note = format!(
                "{uid}:{gid} is taken to be in the proxy's container (cgroup {cgroup}); --container other asks for another"
            );
            (false, Some(note))
        }
    }
}

/// The index of an interface. Of those that no annotation names nobody knows it, and nothing depends on it.
fn index_of(name: Option<&str>, entries: Option<&MapEntries>) -> Result<u32, Failure> {
    const OF_NO_NAME: u32 = u32::MAX;
    let (Some(name), Some(entries)) = (name, entries) else { return Ok(0) };
    let padded = padded(name);
    let interfaces = &entries.interfaces;
    if let Some((key, _)) = interfaces.interfaces.iter().find(|(_, interface)| interface.name == padded) {
        return Ok(key.index);
    }
    if interfaces.names.iter().any(|(key, _)| key.name == padded) {
        return Err(Failure::Usage(format!(
            "--interface: the pod's annotations name {name}, and its netns has no such interface now"
        )));
    }
    Ok(OF_NO_NAME)
}

/// Somebody who is not the proxy, by neither of the ids.
fn somebody(policy: Option<&PodPolicy>) -> ((u32, u32), Option<String>) {
    let other_than = |id: Option<u32>| if id == Some(SOMEBODY) { SOMEBODY + 1 } else { SOMEBODY };
    let (uid, gid) = (other_than(policy.map(|p| p.proxy_uid)), other_than(policy.map(|p| p.proxy_gid)));
    let note = format!("{uid}:{gid} stands for anybody who is not the proxy; --as UID:GID asks for another");
    ((uid, gid), Some(note))
}

/// The pod's address that a client of this family dials.
fn own_address(from: IpAddr, policy: Option<&PodPolicy>) -> Result<(Address, Option<String>), Failure> {
    let v4 = from.to_canonical().is_ipv4();
    let Some(policy) = policy else {
        // Of a pod that is not enrolled nobody knows an address, and nothing depends on it.
        return Ok((if v4 { Address::v4([0; 4]) } else { Address::UNSPECIFIED }, None));
    };
    let address = if v4 { policy.source_v4 } else { policy.source_v6 };
    if address.is_unspecified() {
        let family = if v4 { "IPv4" } else { "IPv6" };
        return Err(Failure::Usage(format!(
            "the pod has no {family} address that {from} could dial; --at IP names another"
        )));
    }
    Ok((address, None))
}
