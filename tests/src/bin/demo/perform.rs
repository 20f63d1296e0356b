//! The story: set the stage, send the requests, look at what everybody saw, say whether it is true.

use std::io::{ErrorKind, Write, stdout};
use std::mem;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::utsname::uname;
use veer_tests::envoy::Direction;
use veer_tests::supervise;

use crate::counters::{self, Sent};
use crate::node::{Lifetime, Node};
use crate::pod::Pod;
use crate::progress::step;
use crate::proxy::{Driver, Requests};
use crate::render::{self, Style};
use crate::report::{AgentFacts, Family, Journey, PodFacts, PodProcess, ProxyFacts, Report, Route, Tally};
use crate::traffic::{self, Cast};
use crate::{Options, look_around, place, proof};

/// Runs the demo. Exit code 0 if everything is true.
pub(crate) fn perform(options: &Options) -> Result<ExitCode> {
    supervise::be_supervised()?;
    let start = Instant::now();
    let speaker = Speaker { json: options.json, style: Style::for_stdout() };
    let lifetime = if options.keep { Lifetime::Kept } else { Lifetime::Demo };
    let with_it = match options.proxy {
        Driver::Sidecar => " and start its sidecar",
        Driver::Node => "",
    };
    let attach = |name| format!("attach pod {name}{with_it}");
    let node = step("set up a node and start the agent", || Node::set_up(lifetime, options.proxy))?;
    let cart = step(&attach("cart"), || Pod::make(&node, "cart"))?;
    let orders = step(&attach("orders"), || Pod::make(&node, "orders"))?;

    let mut report = tell(speaker, Cast { node: &node, cart: &cart, orders: &orders })?;
    if options.keep {
        speaker.say(&look_around::commands(&node, &cart, &orders)?)?;
        place::mark_kept()?;
        // Their guards would take everything down.
        mem::forget((node, cart, orders));
    } else {
        report.faults.extend(step("detach the pods", || take_down(node, [cart, orders]))?);
    }

    report.took_ms = start.elapsed().as_millis();
    report.all_true = report.faults.is_empty();
    if options.json {
        write(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    }
    speaker.say(&render::verdict(speaker.style, &report.agent, &report.faults, report.took_ms))?;
    Ok(if report.all_true { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says things as they become known, unless all is said at the end.
#[derive(Clone, Copy)]
struct Speaker {
    json: bool,
    style: Style,
}

impl Speaker {
    fn say(self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { write(text) }
    }
}

fn write(text: &str) -> Result<()> {
    match stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush()) {
        // Whoever reads has seen enough; the demo goes on to its end, and cleans up.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to standard output"),
    }
}

/// Everything that is shown, and all that is not true of it.
fn tell(speaker: Speaker, cast: Cast<'_>) -> Result<Report> {
    let Cast { node, cart, orders } = cast;
    let pods = [cart, orders];
    let mut agent = AgentFacts {
        pid: node.agent.process().pid(),
        kernel: uname().context("ask for the kernel's version")?.release().display().to_string(),
        ready_after_ms: node.agent_took.as_millis(),
        resident_kb: 0,
    };
    let facts = pods.map(facts);
    let proxy = ProxyFacts::of(node);
    speaker.say(&render::scene(speaker.style, &agent, &proxy, &facts))?;

    let journeys = journeys(speaker, cast)?;
    let mut faults: Vec<_> = journeys.iter().flat_map(|journey| journey.faults.clone()).collect();

    let processes: Vec<PodProcess> =
        pods.into_iter().map(proof::processes).collect::<Result<Vec<_>>>()?.concat();
    faults.extend(pods.iter().flat_map(|pod| proof::faults(pod.name, node.driver(), &processes)));
    speaker.say(&render::processes(speaker.style, &processes))?;

    let netfilter = step("ask iptables, nft and conntrack", || proof::netfilter(node, &pods))?;
    let found = netfilter.iter().filter(|(_, netfilter)| !netfilter.none());
    faults.extend(found.map(|(name, netfilter)| format!("{name} has netfilter: {netfilter:?}")));
    speaker.say(&render::netfilter(speaker.style, &netfilter))?;

    let (tallies, troubles) = books(cast, &journeys)?;
    let wrong = tallies.iter().filter(|tally| !tally.adds_up());
    faults.extend(wrong.map(|tally| format!("the counts of {} differ: {}", tally.pod, tally.what)));
    faults.extend(troubles);
    speaker.say(&render::tallies(speaker.style, &tallies))?;

    let requests = requests(cast, &journeys)?;
    let wrong = requests.iter().filter(|requests| !requests.adds_up());
    faults
        .extend(wrong.map(|requests| format!("{} requests of {} differ", requests.direction, requests.pod)));
    speaker.say(&render::requests(speaker.style, &requests))?;

    agent.resident_kb = proof::resident_kb(agent.pid)?;
    let pods = facts.to_vec();
    Ok(Report {
        all_true: false,
        faults,
        took_ms: 0,
        agent,
        proxy,
        pods,
        journeys,
        processes,
        netfilter,
        tallies,
        requests,
    })
}

fn facts(pod: &Pod) -> PodFacts {
    PodFacts {
        name: pod.name.to_owned(),
        v4: pod.v4,
        v6: pod.v6,
        attached_us: pod.attached.iter().map(|(plugin, took)| (plugin.clone(), took.as_micros())).collect(),
        envoy_ready_after_ms: pod.sidecar.as_ref().map(|own| own.took.as_millis()),
    }
}

fn journeys(speaker: Speaker, cast: Cast<'_>) -> Result<Vec<Journey>> {
    let mut journeys = Vec::new();
    for route in Route::ALL {
        for family in Family::ALL {
            let what = format!("send requests from {}, {family}", route.name());
            let journey = step(&what, || traffic::travel(cast, route, family))?;
            speaker.say(&render::journey(speaker.style, journeys.len() + 1, &journey))?;
            journeys.push(journey);
        }
    }
    Ok(journeys)
}

/// The requests that went a way.
fn sent(journeys: &[Journey], counts: fn(Route) -> bool) -> u64 {
    let requests = journeys.iter().filter(|journey| counts(journey.route)).map(|journey| journey.requests);
    requests.sum::<usize>() as u64
}

/// The statistics of the node's Envoy, by pod and direction; of sidecars none, for each has its own.
fn requests(cast: Cast<'_>, journeys: &[Journey]) -> Result<Vec<Requests>> {
    let Cast { node, cart, orders } = cast;
    if node.driver() == Driver::Sidecar {
        return Ok(Vec::new());
    }
    let rows = [
        (cart, Direction::Outbound, sent(journeys, Route::leaves_a_pod)),
        (cart, Direction::Inbound, 0),
        (orders, Direction::Outbound, 0),
        (orders, Direction::Inbound, sent(journeys, Route::enters_a_pod)),
    ];
    rows.into_iter().map(|(pod, direction, sent)| pod.requests(node, direction, sent)).collect()
}

/// The three counts of every kind of connection, and what veer counted that must not be.
fn books(cast: Cast<'_>, journeys: &[Journey]) -> Result<(Vec<Tally>, Vec<String>)> {
    let said = cast.node.agent.json(&["pods"])?;
    let sent = |counts| sent(journeys, counts);
    // cart only calls, orders is only called.
    let rows = [
        (cast.cart, Sent { by_app: sent(Route::leaves_a_pod), to_app: 0 }),
        (cast.orders, Sent { by_app: 0, to_app: sent(Route::enters_a_pod) }),
    ];
    let (mut tallies, mut troubles) = (Vec::new(), Vec::new());
    for (pod, sent) in rows {
        let counters = counters::of_pod(&said, pod.name)?;
        tallies.extend(counters::compare(cast.node, pod, &counters, sent)?);
        troubles.extend(counters::troubles(pod.name, &counters));
    }
    Ok((tallies, troubles))
}

/// Detaches the pods through the chain, and asks the agent whether it has forgotten them.
fn take_down(node: Node, pods: [Pod; 2]) -> Result<Vec<String>> {
    let runtime = node.runtime()?;
    let names = pods.each_ref().map(|pod| pod.name);
    for pod in pods {
        pod.remove(&runtime, &node)?;
    }
    let said = node.agent.json(&["pods"])?;
    let remembered = names.into_iter().filter(|name| counters::of_pod(&said, name).is_ok());
    let faults = remembered.map(|name| format!("the agent still knows {name} after DEL")).collect();
    drop(node);
    Ok(faults)
}
