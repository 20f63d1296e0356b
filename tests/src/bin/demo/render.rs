//! The report for a reader, in 100 columns. Pure: facts in, text out.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;
use std::io::{IsTerminal, stdout};
use std::net::SocketAddr;

use veer_tests::envoy::Entry;
use veer_tests::netfilter::Netfilter;

use crate::report::{AgentFacts, Journey, PodFacts, PodProcess, Tally};

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
pub(crate) fn scene(style: Style, agent: &AgentFacts, pods: &[PodFacts]) -> String {
    let mut text = style.heading("Two pods of a mesh, their real Envoy sidecars, no privilege in any pod");
    text.push_str("\n\n");
    line(
        &mut text,
        "agent",
        &format!(
            "veer agent, pid {}, serves after {} ms; kernel {}",
            agent.pid, agent.ready_after_ms, agent.kernel
        ),
    );
    for pod in pods {
        let plugins: Vec<_> =
            pod.attached_us.iter().map(|(plugin, us)| format!("{plugin} {}", milliseconds(*us))).collect();
        let total: u128 = pod.attached_us.iter().map(|(_, us)| us).sum();
        line(&mut text, &pod.name, &format!("{} and {}", pod.v4, pod.v6));
        line(
            &mut text,
            "",
            &format!(
                "CNI ADD {} ms: {}; Envoy ready after {} ms",
                milliseconds(total),
                plugins.join(", "),
                pod.envoy_ready_after_ms
            ),
        );
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
    let title = format!("{number}. {}, {family}", route.name());
    let mut text = String::new();
    // The heading of the columns is the first row, so padding comes before colour.
    let columns = format!("{:<21}{:<21}", "from", "dialled");
    writeln!(text, "\n{}{}", style.heading(&format!("{title:<28}")), style.dim(&columns)).ok();
    let client = &example.client;
    let (from, app) = if route.leaves_a_pod() { ("cart", "cart app") } else { ("outside", "client outside") };
    let to = if route.enters_a_pod() { "orders" } else { "outside" };
    let dials = format!("sees peer {}", client.peername);
    row(
        &mut text,
        &format!("{app}, uid {}", client.client.uid),
        &client.local.to_string(),
        &client.to.to_string(),
        &dials,
    );
    if let Some(entry) = &example.outbound {
        hop(&mut text, &format!("{from} Envoy, :15001"), entry);
    }
    if let Some(entry) = &example.inbound {
        hop(&mut text, &format!("{to} Envoy, :15006"), entry);
    }
    if let Some(echo) = &example.client.echo {
        row(
            &mut text,
            &format!("{to} app, uid {}", echo.uid),
            &echo.peer.to_string(),
            &echo.local.to_string(),
            &format!("answers {}", client.status),
        );
    }
    writeln!(text, "  {}  {requests} requests, each seen by all of these", style.mark(faults.is_empty()))
        .ok();
    fault_lines(&mut text, faults);
    text
}

fn hop(text: &mut String, who: &str, entry: &Entry) {
    let address = |address: Option<SocketAddr>| address.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let then = format!("goes on from {}", address(entry.upstream_source));
    row(text, who, &address(entry.client), &address(entry.original_destination), &then);
}

fn row(text: &mut String, who: &str, from: &str, to: &str, then: &str) {
    writeln!(text, "  {who:<26}{from:<21}{to:<21}{then}").ok();
}

fn fault_lines(text: &mut String, faults: &[String]) {
    for fault in faults {
        writeln!(text, "      {fault}").ok();
    }
}

/// Who runs in the pods.
pub(crate) fn processes(style: Style, processes: &[PodProcess]) -> String {
    let mut text = format!("\n{}\n", style.heading("Capabilities of every process in the pods"));
    let head = format!(
        "  {:<9}{:>8}  {:<10}{:>5}{:>6}  {:<44}{}",
        "pod", "pid", "program", "uid", "gid", "inh prm eff bnd amb", "no_new_privs"
    );
    writeln!(text, "{}", style.dim(&head)).ok();
    for process in processes {
        let it = &process.credentials;
        let sets = &it.capabilities;
        let sets = [&sets.inheritable, &sets.permitted, &sets.effective, &sets.bounding, &sets.ambient];
        // As `ls` prints a mode: the reader compares with nothing.
        let sets: Vec<_> = sets.iter().map(|set| format!("{:>3}", short(set))).collect();
        let ok = it.capabilities.none() && it.no_new_privs;
        writeln!(
            text,
            "  {:<9}{:>8}  {:<10}{:>5}{:>6}  {:<44}{:<12}  {}",
            process.pod,
            it.pid,
            it.program,
            it.uid,
            it.gid,
            sets.join(" "),
            if it.no_new_privs { "yes" } else { "no" },
            style.mark(ok)
        )
        .ok();
    }
    text
}

/// A set without its leading zeros.
fn short(set: &str) -> &str {
    let digits = set.trim_start_matches('0');
    if digits.is_empty() { "0" } else { digits }
}

/// What netfilter has.
pub(crate) fn netfilter(style: Style, netfilter: &BTreeMap<String, Netfilter>) -> String {
    let mut text = format!("\n{}\n", style.heading("Netfilter in every netns"));
    let head = format!(
        "  {:<9}{:>15}{:>16}{:>11}{:>15}{:>17}",
        "netns", "iptables rules", "ip6tables rules", "nft rules", "legacy tables", "conntrack entries"
    );
    writeln!(text, "{}", style.dim(&head)).ok();
    for (name, it) in netfilter {
        writeln!(
            text,
            "  {name:<9}{:>15}{:>16}{:>11}{:>15}{:>17}  {}",
            it.iptables,
            it.ip6tables,
            it.nft,
            it.legacy_tables,
            it.connections,
            style.mark(it.none())
        )
        .ok();
    }
    text
}

/// The books.
pub(crate) fn tallies(style: Style, tallies: &[Tally]) -> String {
    let mut text = format!("\n{}\n", style.heading("Connections, counted three times"));
    let head = format!("  {:<9}{:<34}{:>13}{:>12}{:>13}", "pod", "which", "demo sent", "veer pods", "Envoy");
    writeln!(text, "{}", style.dim(&head)).ok();
    for it in tallies {
        writeln!(
            text,
            "  {:<9}{:<34}{:>13}{:>12}{:>13}  {}",
            it.pod,
            it.what,
            it.sent,
            it.veer,
            it.envoy,
            style.mark(it.adds_up())
        )
        .ok();
    }
    text
}

/// The last words.
pub(crate) fn verdict(style: Style, agent: &AgentFacts, faults: &[String], took_ms: u128) -> String {
    let mut text = format!("\n  {:<9}{} MB resident with both pods\n", "agent", agent.resident_kb / 1024);
    let seconds = format!("{}.{} s", took_ms / 1000, took_ms % 1000 / 100);
    if faults.is_empty() {
        writeln!(text, "\n{} everything above is true; {seconds}", style.mark(true)).ok();
        return text;
    }
    writeln!(text, "\n{} {} of it; {seconds}", style.mark(false), faults.len()).ok();
    fault_lines(&mut text, faults);
    text
}
