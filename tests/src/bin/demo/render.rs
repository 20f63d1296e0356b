//! The report for a reader, in 100 columns. Pure: facts in, text out.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;
use std::io::{IsTerminal, stdout};
use std::net::SocketAddr;

use veer_tests::credentials::Credentials;
use veer_tests::envoy::Entry;
use veer_tests::netfilter::Netfilter;

use crate::proxy::{Driver, Requests};
use crate::report::{AgentFacts, Journey, PodFacts, PodProcess, ProxyFacts, Tally};

/// As many faults as are told in one place.
const MAX_FAULTS: usize = 5;

/// Colours, or none.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    /// Colours on a terminal, unless `NO_COLOR` is set.
    pub(crate) fn for_stdout() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: stdout().is_terminal() && !refused }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn heading(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn mark(self, holds: bool) -> String {
        if holds { self.paint("32", "ok") } else { self.paint("31", "NOT TRUE") }
    }
}

/// What is up.
pub(crate) fn scene(style: Style, agent: &AgentFacts, proxy: &ProxyFacts, pods: &[PodFacts]) -> String {
    let mut text = style.heading(match proxy.driver {
        Driver::Sidecar => "Two pods of a mesh, their real Envoy sidecars, no privilege in any pod",
        Driver::Node => {
            "Two pods of a mesh without sidecars, one real Envoy for both, no privilege in any pod"
        }
    });
    text.push_str("\n\n");
    line(
        &mut text,
        "agent",
        &format!(
            "veer agent, pid {}, serves after {} ms; kernel {}",
            agent.pid, agent.ready_after_ms, agent.kernel
        ),
    );
    if let Some(shared) = &proxy.shared {
        let what = "serves both; uid 1337, CAP_SYS_ADMIN alone, to open sockets in the pods";
        line(&mut text, "Envoy", &format!("pid {}, ready after {} ms", shared.pid, shared.ready_after_ms));
        line(&mut text, "", what);
    }
    for pod in pods {
        let plugins: Vec<_> =
            pod.attached_us.iter().map(|(plugin, us)| format!("{plugin} {}", milliseconds(*us))).collect();
        let total: u128 = pod.attached_us.iter().map(|(_, us)| us).sum();
        line(&mut text, &pod.name, &format!("{} and {}", pod.v4, pod.v6));
        let ready = match pod.envoy_ready_after_ms {
            Some(took) => format!("Envoy ready after {took} ms"),
            None => "listeners included".to_owned(),
        };
        let took = format!("CNI ADD {} ms: {}; {ready}", milliseconds(total), plugins.join(", "));
        line(&mut text, "", &took);
    }
    text
}

fn line(text: &mut String, name: &str, rest: &str) {
    // Writing to a String cannot fail.
    writeln!(text, "  {name:<9}{rest}").ok();
}

fn milliseconds(us: u128) -> String {
    format!("{}.{}", us / 1000, us % 1000 / 100)
}

/// A way, hop by hop.
pub(crate) fn journey(style: Style, number: usize, journey: &Journey) -> String {
    let Journey { route, family, requests, example, faults } = journey;
    let client = &example.client;
    let (from, to) = (route.client(), route.server());
    let mut text = String::new();
    let title = format!("{number}. {}, {family}", route.name());
    // Padded before it is coloured: what colours is as long as text to the formatter.
    let columns = format!("{:<21}dialled", "from");
    writeln!(text, "\n{}{}", style.heading(&format!("{title:<26}")), style.dim(&columns)).ok();
    row(
        &mut text,
        &format!("{from} app, uid {}", client.client.uid),
        &client.local.to_string(),
        &client.to.to_string(),
        &format!("sees peer {}", client.peername),
    );
    if let Some(entry) = &example.outbound {
        hop(&mut text, &format!("{from} Envoy, :15001"), entry);
    }
    if let Some(entry) = &example.inbound {
        hop(&mut text, &format!("{to} Envoy, :15006"), entry);
    }
    if let Some(echo) = &client.echo {
        row(
            &mut text,
            &format!("{to} app, uid {}", echo.uid),
            &echo.peer.to_string(),
            &echo.local.to_string(),
            &format!("answers {}", client.status),
        );
    }
    writeln!(text, "  {}  {requests} requests went this way", style.mark(faults.is_empty())).ok();
    fault_lines(&mut text, faults);
    text
}

fn hop(text: &mut String, who: &str, entry: &Entry) {
    let address = |address: Option<SocketAddr>| address.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let then = format!("goes on from {}", address(entry.upstream_source));
    row(text, who, &address(entry.client), &address(entry.original_destination), &then);
}

fn row(text: &mut String, who: &str, from: &str, to: &str, then: &str) {
    writeln!(text, "  {who:<24}{from:<21}{to:<21}{then}").ok();
}

/// The first few; all of them are in `--json`.
fn fault_lines(text: &mut String, faults: &[String]) {
    for fault in faults.iter().take(MAX_FAULTS) {
        writeln!(text, "      {fault}").ok();
    }
    if let Some(more @ 1..) = faults.len().checked_sub(MAX_FAULTS) {
        writeln!(text, "      and {more} more").ok();
    }
}

fn table(style: Style, title: &str, columns: &str) -> String {
    format!("\n{}\n{}\n", style.heading(title), style.dim(&format!("  {columns}")))
}

/// Who runs in the pods.
pub(crate) fn processes(style: Style, processes: &[PodProcess]) -> String {
    let columns = "pod          pid  program     uid   gid  inh prm eff bnd amb  no_new_privs";
    let mut text = table(style, "Capabilities of every process in the pods", columns);
    for process in processes {
        let Credentials { pid, program, uid, gid, capabilities, no_new_privs, .. } = &process.credentials;
        let sets = [
            &capabilities.inheritable,
            &capabilities.permitted,
            &capabilities.effective,
            &capabilities.bounding,
            &capabilities.ambient,
        ];
        let sets: Vec<_> = sets.iter().map(|set| format!("{:>3}", without_zeros(set))).collect();
        let sets = sets.join(" ");
        let stays = if *no_new_privs { "yes" } else { "no" };
        let mark = style.mark(capabilities.none() && *no_new_privs);
        let pod = &process.pod;
        writeln!(text, "  {pod:<8}{pid:>8}  {program:<9}{uid:>6}{gid:>6}  {sets}  {stays:<14}{mark}").ok();
    }
    text
}

/// A set without its leading zeros.
fn without_zeros(set: &str) -> &str {
    let digits = set.trim_start_matches('0');
    if digits.is_empty() { "0" } else { digits }
}

/// What netfilter has.
pub(crate) fn netfilter(style: Style, netfilter: &BTreeMap<String, Netfilter>) -> String {
    let columns = "netns   iptables rules   ip6tables rules   nft rules   old tables   tracked connections";
    let mut text = table(style, "Netfilter in every netns", columns);
    for (name, found) in netfilter {
        let Netfilter { iptables, ip6tables, nft, legacy_tables, connections } = found;
        let mark = style.mark(found.none());
        writeln!(
            text,
            "  {name:<8}{iptables:>14}{ip6tables:>18}{nft:>12}{legacy_tables:>13}{connections:>22}  {mark}"
        )
        .ok();
    }
    text
}

/// The books.
pub(crate) fn tallies(style: Style, tallies: &[Tally]) -> String {
    let columns = "pod     which                                 requests sent   veer pods   Envoy";
    let mut text = table(style, "Connections, counted by everybody", columns);
    for tally in tallies {
        let Tally { pod, what, sent, veer, envoy } = tally;
        // Between proxies one connection carries several requests: as many as Envoy sees fit.
        let sent = sent.map_or_else(|| "-".to_owned(), |sent| sent.to_string());
        let mark = style.mark(tally.adds_up());
        writeln!(text, "  {pod:<8}{what:<37}{sent:>14}{veer:>12}{envoy:>8}  {mark}").ok();
    }
    text
}

/// What the node's Envoy has counted of each pod; nothing where there is none.
pub(crate) fn requests(style: Style, requests: &[Requests]) -> String {
    if requests.is_empty() {
        return String::new();
    }
    let columns = "pod     direction   requests sent   Envoy    2xx    5xx   passed on";
    let mut text = table(style, "Requests by pod, counted by the one Envoy", columns);
    for row in requests {
        let Requests { pod, direction, sent, received, answered_2xx, answered_5xx, passed_on } = row;
        let (direction, mark) = (direction.name(), style.mark(row.adds_up()));
        writeln!(
            text,
            "  {pod:<8}{direction:<9}{sent:>16}{received:>8}{answered_2xx:>7}{answered_5xx:>7}{passed_on:>12}  {mark}"
        )
        .ok();
    }
    text
}

/// The last words.
pub(crate) fn verdict(style: Style, agent: &AgentFacts, faults: &[String], took_ms: u128) -> String {
    let mut text = format!("\n  {:<9}{} MB resident with both pods\n", "agent", agent.resident_kb / 1024);
    let seconds = format!("{}.{} s", took_ms / 1000, took_ms % 1000 / 100);
    let what = match faults.len() {
        0 => "everything above is true".to_owned(),
        1 => "for one reason".to_owned(),
        count => format!("for {count} reasons"),
    };
    writeln!(text, "\n{}  {what}; {seconds}", style.mark(faults.is_empty())).ok();
    fault_lines(&mut text, faults);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Family, Route};
    use crate::trace::tests::trace;

    const PLAIN: Style = Style { colour: false };

    fn pod_to_pod(faults: &[&str]) -> Journey {
        let faults = faults.iter().map(ToString::to_string).collect();
        Journey { route: Route::PodToPod, family: Family::V4, requests: 5, example: trace(), faults }
    }

    #[test]
    fn a_journey_is_told_hop_by_hop() {
        let expected = "
1. pod to pod, IPv4       from                 dialled
  cart app, uid 1000      10.88.0.2:40000      10.88.0.3:8080       sees peer 10.88.0.3:8080
  cart Envoy, :15001      10.88.0.2:40000      10.88.0.3:8080       goes on from 10.88.0.2:40001
  orders Envoy, :15006    10.88.0.2:40001      10.88.0.3:8080       goes on from 127.0.0.6:40002
  orders app, uid 1000    127.0.0.6:40002      10.88.0.3:8080       answers 200
  ok  5 requests went this way
";
        assert_eq!(journey(PLAIN, 1, &pod_to_pod(&[])), expected);
    }

    #[test]
    fn what_is_not_true_is_told_and_long_lists_are_cut() {
        let text = journey(PLAIN, 1, &pod_to_pod(&["a", "b", "c", "d", "e", "f", "g"]));
        assert!(text.ends_with("  NOT TRUE  5 requests went this way\n      a\n      b\n      c\n      d\n      e\n      and 2 more\n"), "{text}");
    }

    #[test]
    fn the_longest_addresses_fit_in_100_columns() {
        let mut long = pod_to_pod(&[]);
        let address: SocketAddr = "[2001:db8::1]:40000".parse().unwrap();
        let entry = long.example.outbound.as_mut().unwrap();
        (entry.client, entry.original_destination) = (Some(address), Some(address));
        entry.upstream_source = Some(address);
        long.example.client.peername = address;
        let text = journey(PLAIN, 1, &long);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn colour_does_not_move_columns() {
        let coloured = journey(Style { colour: true }, 1, &pod_to_pod(&[]));
        let mut plain = String::new();
        for part in coloured.split('\x1b') {
            plain.push_str(
                part.strip_prefix('[').and_then(|rest| rest.split_once('m')).map_or(part, |(_, rest)| rest),
            );
        }
        assert_eq!(plain, journey(PLAIN, 1, &pod_to_pod(&[])));
    }

    #[test]
    fn an_empty_set_is_a_zero_and_a_capability_is_seen() {
        assert_eq!((without_zeros("0000000000000000"), without_zeros("0000000000000400")), ("0", "400"));
    }
}
