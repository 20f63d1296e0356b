//! `kube-suite`: veer in a real Kubernetes, check by check; `cargo xtask test kube` starts it.
//!
//! A program of its own rather than tests, because a cluster is made once for all of them, and because nobody who
//! asks for all tests wants to build a Kubernetes first. It takes a part of a check's name. Nothing is skipped:
//! without the programs of a cluster everything fails and says how to get them.

mod api;
mod bookinfo;
mod deployed;
mod mesh;
mod namespaces;
mod node;
mod runtimes;
mod source;
mod stage;
mod table;
mod told;
mod trouble;

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};

use bookinfo::{Bookinfo, apart, asked, lasting, traffic};
use deployed::{Deployed, commands, installed, removed, shared, trouble as outages};
use stage::Stage;
use table::Row;

/// One line on stdout. Whoever closes it early does not want the rest.
macro_rules! say {
    ($($text:tt)*) => { drop(writeln!(io::stdout(), $($text)*)) };
}

/// What is claimed, and what shows it.
struct Check {
    /// A sentence.
    name: &'static str,
    how: How,
}

/// Returns what was seen, in a few words.
enum How {
    /// With a control plane of its own.
    Alone(fn() -> Result<String>),
    /// On the node that all of these share.
    OnNode(fn(&mut Stage) -> Result<String>),
    /// The same, with Bookinfo on the node.
    InBookinfo(fn(&mut Stage, &Bookinfo) -> Result<String>),
    /// On the node where veer is a DaemonSet, which these share.
    Deployed(fn(&mut Deployed) -> Result<String>),
}

/// What checks share, from the first that needs it on: one node at a time.
#[derive(Default)]
struct Scene {
    bookinfo: Option<Bookinfo>,
    stage: Option<Stage>,
    deployed: Option<Deployed>,
}

const CHECKS: [Check; 58] = [
    Check { name: "an outage of the API server loses nothing", how: How::Alone(api::outage) },
    Check { name: "a client has the rights that RBAC gives it", how: How::Alone(api::rights) },
    Check { name: "controllers and scheduler work in a node's netns", how: How::Alone(api::controllers) },
    Check {
        name: "a pod of the watch is enrolled without a request for it",
        how: How::Alone(source::enrolment),
    },
    Check { name: "an unknown pod is awaited, and then asked for once", how: How::Alone(source::unknown) },
    Check {
        name: "in an outage known pods are enrolled and unknown ones refused",
        how: How::Alone(source::outage),
    },
    Check {
        name: "an agent that starts in an outage wedges nobody",
        how: How::Alone(source::start_in_outage),
    },
    Check { name: "a watch whose position has expired lists anew", how: How::Alone(source::expiry) },
    Check { name: "a token that is replaced is read anew", how: How::Alone(source::rotation) },
    Check {
        name: "a pod that was missed is redirected when it is heard of",
        how: How::Alone(source::missed),
    },
    Check { name: "a full node's pods take little memory", how: How::Alone(source::full_node) },
    Check {
        name: "namespaces: the first pod of a new one is enrolled by its label at once",
        how: How::Alone(namespaces::first_pods),
    },
    Check {
        name: "namespaces: a pod moves with the label while it runs",
        how: How::Alone(namespaces::labelled_later),
    },
    Check {
        name: "namespaces: one that is not known is asked for once, or its pods are refused",
        how: How::Alone(namespaces::unknown),
    },
    Check { name: "namespaces: in an outage what is known stays known", how: How::Alone(namespaces::outage) },
    Check {
        name: "namespaces: a watch whose position has expired lists anew",
        how: How::Alone(namespaces::expiry),
    },
    Check { name: "a pod is told once what has become of it", how: How::Alone(told::events) },
    Check { name: "an event of an outage is written after it", how: How::Alone(told::events_of_an_outage) },
    Check { name: "what went past the mesh is told of once", how: How::Alone(told::before_proxy) },
    Check { name: "the node's condition and taint are what the agent is", how: How::Alone(told::node_marks) },
    Check { name: "pods with a sidecar are redirected to it", how: How::OnNode(mesh::redirected) },
    Check { name: "pods that opted out are left alone", how: How::OnNode(mesh::opted_out) },
    Check { name: "a gateway is left alone and knows its clients", how: How::OnNode(mesh::gateway) },
    Check { name: "an agent that is killed loses nothing", how: How::OnNode(trouble::agent_killed) },
    Check { name: "veer goes on while the API server is away", how: How::OnNode(trouble::api_server_away) },
    Check { name: "a node that boots has its pods redirected again", how: How::OnNode(trouble::rebooted) },
    Check { name: "pods that started without veer are repaired", how: How::OnNode(trouble::repaired) },
    Check { name: "a hundred pods at once", how: How::OnNode(trouble::crowd) },
    Check {
        name: "bookinfo: istio-validation passes in every pod",
        how: How::InBookinfo(traffic::validated),
    },
    Check { name: "bookinfo: every service and version is reached", how: How::InBookinfo(traffic::reached) },
    Check {
        name: "bookinfo: each hop leaves by 15001 and arrives by 15006",
        how: How::InBookinfo(traffic::hops),
    },
    Check {
        name: "bookinfo: the gateway is left alone and knows its client",
        how: How::InBookinfo(traffic::gateway),
    },
    Check { name: "bookinfo: kubelet's probes work", how: How::InBookinfo(asked::probes) },
    Check {
        name: "bookinfo: 15020, 15021 and 15090 are reached directly",
        how: How::InBookinfo(asked::scraped),
    },
    Check { name: "bookinfo: opted out by the namespace's label", how: How::InBookinfo(apart::by_namespace) },
    Check { name: "bookinfo: opted out by the node's settings", how: How::InBookinfo(apart::by_policy) },
    Check { name: "bookinfo: opted out by annotations", how: How::InBookinfo(apart::by_annotation) },
    Check { name: "bookinfo: a namespace is excluded later", how: How::InBookinfo(apart::later) },
    Check { name: "bookinfo: nobody has a privilege", how: How::InBookinfo(apart::privileges) },
    Check { name: "bookinfo: no page is lost while the agent dies", how: How::InBookinfo(lasting::agent) },
    Check {
        name: "bookinfo: no page is lost while the API server is away",
        how: How::InBookinfo(lasting::api_server),
    },
    Check { name: "uninstalled under pods that run", how: How::OnNode(trouble::uninstalled) },
    Check {
        name: "DaemonSet: the chart's manifests bring agent and plugin",
        how: How::Deployed(installed::ready),
    },
    Check {
        name: "DaemonSet: pods with a sidecar are redirected to it",
        how: How::Deployed(installed::redirected),
    },
    Check {
        name: "DaemonSet: nobody has more rights than is documented",
        how: How::Deployed(installed::privileges),
    },
    Check { name: "DaemonSet: commands by exec in the agent's pod", how: How::Deployed(commands::by_exec) },
    Check {
        name: "DaemonSet: a conflist that is written anew gets veer back",
        how: How::Deployed(outages::rewritten),
    },
    Check { name: "DaemonSet: an upgrade by a rollout loses nothing", how: How::Deployed(outages::upgraded) },
    Check { name: "DaemonSet: a node says that its chain is broken", how: How::Deployed(outages::broken) },
    Check {
        name: "DaemonSet: an agent's pod that is deleted loses nothing",
        how: How::Deployed(outages::pod_deleted),
    },
    Check {
        name: "DaemonSet: a node that boots has its pods redirected again",
        how: How::Deployed(outages::rebooted),
    },
    Check {
        name: "DaemonSet: pods that started without it are repaired",
        how: How::Deployed(outages::repaired),
    },
    Check {
        name: "DaemonSet: pods without a sidecar go through the node's Envoy",
        how: How::Deployed(shared::by_the_nodes_envoy),
    },
    Check {
        name: "DaemonSet: pods of ambient mode are told to ztunnel",
        how: How::Deployed(shared::by_ztunnel),
    },
    Check {
        name: "DaemonSet: uninstalled as documented under pods that run",
        how: How::Deployed(removed::in_order),
    },
    Check {
        name: "containerd 1.7 asks the plugin, and pods are redirected",
        how: How::Alone(runtimes::trixie),
    },
    Check { name: "containerd 2.1 asks for the plugin's status, too", how: How::Alone(runtimes::forky) },
    Check { name: "containerd 2.1 boots with the DaemonSet", how: How::Alone(runtimes::boot) },
];

fn main() -> ExitCode {
    let filter = std::env::args().nth(1);
    let checks: Vec<&Check> = CHECKS
        .iter()
        .filter(|check| filter.as_ref().is_none_or(|part| check.name.contains(part.as_str())))
        .collect();
    let started = Instant::now();
    say!("\nrunning {} checks", checks.len());
    let mut scene = Scene::default();
    let rows: Vec<Row> = checks.iter().map(|check| perform(check, &mut scene)).collect();
    let failed = rows.iter().filter(|row| row.seen.is_err()).count();
    for row in rows.iter().filter(|row| row.seen.is_err()) {
        say!("\n{}", table::failure(row));
    }
    say!("\n{}", table::render(&rows));
    say!(
        "\n{} of {} checks passed in {:.0} s",
        rows.len() - failed,
        rows.len(),
        started.elapsed().as_secs_f64()
    );
    if failed == 0 && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn perform(check: &Check, scene: &mut Scene) -> Row {
    let started = Instant::now();
    let seen = catch_unwind(AssertUnwindSafe(|| scene.make(&check.how)));
    let seen = seen.unwrap_or_else(|_told| Err(anyhow!("it panicked")));
    if seen.is_err() {
        // Whatever state it is in: the next check begins with a node of its own.
        *scene = Scene::default();
    }
    let row = Row { name: check.name, seen, took: started.elapsed() };
    say!("  {}", table::progress(&row));
    row
}

impl Scene {
    fn make(&mut self, how: &How) -> Result<String> {
        match how {
            How::Alone(run) => {
                *self = Self::default();
                return run();
            }
            How::Deployed(run) => {
                (self.bookinfo, self.stage) = (None, None);
                let deployed = match &mut self.deployed {
                    Some(deployed) => deployed,
                    None => self.deployed.insert(Deployed::set()?),
                };
                return run(deployed).inspect_err(|_told| say!("--- {}---", deployed.log()));
            }
            How::OnNode(_) | How::InBookinfo(_) => self.deployed = None,
        }
        let stage = match &mut self.stage {
            Some(stage) => stage,
            None => self.stage.insert(Stage::set()?),
        };
        let seen = Self::on_node(stage, &mut self.bookinfo, how);
        seen.inspect_err(|_told| say!("--- the agent said:\n{}---", stage.agent_log()))
    }

    /// Who counts the node's pods finds none but its own.
    fn on_node(stage: &mut Stage, bookinfo: &mut Option<Bookinfo>, how: &How) -> Result<String> {
        match how {
            How::Alone(_) | How::Deployed(_) => bail!("this check has a stage of its own"),
            How::OnNode(run) => {
                if bookinfo.take().is_some() {
                    bookinfo::remove(stage)?;
                }
                run(stage)
            }
            How::InBookinfo(run) => {
                let deployed = match bookinfo {
                    Some(bookinfo) => bookinfo,
                    None => bookinfo.insert(Bookinfo::deploy(stage)?),
                };
                run(stage, deployed)
            }
        }
    }
}
