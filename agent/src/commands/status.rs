//! `veer status`: the node at a glance. Exit 0 when the agent answers and everything is attached.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use serde::Serialize;

use super::view::{self, PodView, PolicyView, ProgramView};
use super::{Failure, ask, broken_off, enrolments, place, print_json};
use crate::cli::ReadFlags;
use crate::control::{AgentStatus, Question};
use crate::enrol::versions::{OtherVersion, OtherVersions};
use crate::install::Placed;
use crate::installer::{InstallState, Phase, Writer};
use crate::model::BeforeProxy;
use crate::platform::bpf::load::build_text;
use crate::platform::bpf::maps::Maps;
use crate::proxy::ads::Standing;
use crate::proxy::state::{ProxyHealth, ProxyState};
use crate::proxy::supervise::ProxyProcess;
use crate::proxy::watch::PodProxy;
use crate::proxy::zds;
use crate::reconcile::Unrepaired;
use crate::wall_clock;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    agent: Option<AgentStatus>,
    agent_error: Option<String>,
    pins: Option<String>,
    /// The build whose programs are attached; absent while another one replaces them, or that was interrupted.
    build: Option<String>,
    programs: Vec<ProgramView>,
    /// Other ABI versions whose programs redirect pods.
    other_versions: Vec<OtherVersion>,
    enrolled: usize,
    listening: usize,
    handing_over: usize,
    /// Pods whose proxy should be known by its container, and shares its cgroup with others.
    shared_cgroups: usize,
    /// Pods whose proxy has not listened yet, and whose connections go direct until it does.
    awaiting_proxy: usize,
    faults: u64,
}

/// Runs the command.
///
/// # Errors
/// If there is no datapath, no agent, or a program is not attached.
pub fn run(flags: &ReadFlags) -> Result<(), Failure> {
    let place = place(&flags.place)?;
    let enrolments = enrolments(&place)?;
    let pods = view::pods(&enrolments)?;
    let (agent, agent_error) = match ask(&place, &Question::Status).and_then(read_status) {
        Ok(status) => (Some(status), None),
        Err(Failure::Unavailable(text) | Failure::Failed(text)) => (None, Some(text)),
        Err(other) => return Err(other),
    };
    let maps = enrolments.maps.as_ref();
    let status = NodeStatus {
        agent,
        agent_error,
        pins: maps.map(|_maps| enrolments.pins.root().display().to_string()),
        build: maps.and_then(|maps| maps.build().ok()).filter(|build| *build != 0).map(build_text),
        programs: maps.map(|_maps| view::programs(&enrolments.pins)).unwrap_or_default(),
        other_versions: OtherVersions::below(&place.bpffs).alive()?,
        enrolled: pods.len(),
        listening: pods.iter().filter(|pod| listens(pod)).count(),
        handing_over: maps.map_or(0, Maps::hand_offs),
        shared_cgroups: pods.iter().filter(|pod| shares_cgroup(pod)).count(),
        awaiting_proxy: pods.iter().filter(|pod| awaits_proxy(pod)).count(),
        faults: pods.iter().flat_map(|pod| pod.faults.values()).sum(),
    };
    if flags.json {
        print_json(&status)?;
    } else {
        io::stdout().lock().write_all(render(&status).as_bytes())?;
    }
    verdict(status)
}

fn verdict(status: NodeStatus) -> Result<(), Failure> {
    if let Some(error) = status.agent_error {
        return Err(Failure::Unavailable(error));
    }
    let detached: Vec<_> =
        status.programs.iter().filter(|program| !program.attached).map(|program| program.name).collect();
    if detached.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "not attached: {}; a restart of the agent attaches them",
        detached.join(", ")
    )))
}

fn listens(pod: &PodView) -> bool {
    pod.policy.as_ref().is_some_and(PolicyView::has_listeners)
}

fn awaits_proxy(pod: &PodView) -> bool {
    pod.policy.as_ref().is_some_and(|policy| policy.before_proxy == BeforeProxy::Direct.name())
}

fn shares_cgroup(pod: &PodView) -> bool {
    let container = pod.policy.as_ref().and_then(|policy| policy.proxy_container.as_ref());
    container.is_some_and(|container| container.shared)
}

fn read_status(mut answer: impl BufRead) -> Result<AgentStatus, Failure> {
    let mut line = String::new();
    answer.read_line(&mut line).map_err(|error| broken_off(&error))?;
    serde_json::from_str(&line).map_err(|error| Failure::Failed(format!("the agent's answer: {error}")))
}

fn render(status: &NodeStatus) -> String {
    let mut lines = Vec::new();
    match &status.agent {
        Some(agent) => {
            let up = uptime(agent.started_at);
            lines.push(format!("agent      running, pid {}, version {}, up {up}", agent.pid, agent.version));
            let health =
                agent.source.as_ref().map_or_else(String::new, |health| format!(", {}", health.text()));
            lines.push(format!("pods from  {}{health}", agent.pods_from));
            lines.push(format!("backend    {} ({})", agent.backend.name(), agent.backend_reason));
            lines.extend(agent.cgroup.iter().map(|cgroup| format!("cgroup     {cgroup}")));
            lines.push(format!("identity   the proxy is known by its {}", agent.proxy_identity));
            lines.push(format!("before     the proxy listens: {}", agent.before_proxy));
            lines.extend(agent.before_proxy_problem.iter().map(|problem| format!("warning    {problem}")));
            lines.extend(agent.identity_problem.iter().map(|problem| format!("warning    {problem}")));
            lines.extend(
                agent
                    .unrepaired
                    .iter()
                    .map(|Unrepaired { pod, problem }| format!("warning    {pod}: {problem}")),
            );
            lines.extend(cni(&agent.cni));
            lines.extend(proxies(agent));
            lines.extend(agent.runs_before.iter().map(|program| format!("warning    {program}")));
        }
        None => lines
            .push("agent      not running; enrolled pods stay redirected, new pods cannot start".to_owned()),
    }
    if let Some(pins) = &status.pins {
        let attached = status.programs.iter().filter(|program| program.attached).count();
        let build = status.build.as_ref().map_or_else(
            || {
                "of no one build: replacing them was interrupted, and the agent's next start ends it"
                    .to_owned()
            },
            |build| format!("build {build}"),
        );
        lines.push(format!("datapath   {attached} of {} programs attached, {build}", status.programs.len()));
        lines.push(format!("pins       {pins}"));
    }
    lines.push(format!(
        "pods       {} enrolled, {} with a listening proxy",
        status.enrolled, status.listening
    ));
    if status.awaiting_proxy > 0 {
        lines.push(format!(
            "awaited    the proxies of {} pods, whose connections go direct, past the mesh, until then",
            status.awaiting_proxy
        ));
    }
    lines.extend(status.other_versions.iter().map(|version| format!("warning    {version}")));
    if status.shared_cgroups > 0 {
        lines.push(format!(
            "warning    in {} pods the proxy's cgroup is the one that veer is attached to, and holds other containers, \
             too: the ids alone say who is the proxy",
            status.shared_cgroups
        ));
    }
    lines.push(format!("faults     {}", status.faults));
    lines.push(String::new());
    lines.join("\n")
}

/// Proxies by driver and state, the first few of which somebody should know, and the node's own.
fn proxies(agent: &AgentStatus) -> Vec<String> {
    const MOST: usize = 5;
    let states = |states: &BTreeMap<ProxyState, usize>| {
        let counts: Vec<_> =
            states.iter().map(|(state, count)| format!("{count} {}", state.name())).collect();
        counts.join(", ")
    };
    let drivers =
        agent.proxies.iter().map(|(driver, by_state)| format!("{}: {}", driver.name(), states(by_state)));
    let drivers: Vec<_> = drivers.collect();
    let mut lines = Vec::new();
    if !drivers.is_empty() {
        lines.push(format!("proxies    {}", drivers.join("; ")));
    }
    lines.extend(agent.proxy_problems.iter().take(MOST).map(|one| {
        let PodProxy { namespace, name, proxy: ProxyHealth { state, since, .. }, .. } = one;
        format!("warning    {namespace}/{name}: its proxy is {} for {}", state.name(), uptime(*since))
    }));
    let more = agent.proxy_problems.len().saturating_sub(MOST);
    lines.extend((more > 0).then(|| format!("warning    and {more} more; `veer pods` lists them")));
    lines.extend(agent.node_proxy.iter().flat_map(node_proxy));
    lines.extend(agent.node_proxy_process.iter().flat_map(proxy_process));
    lines.extend(agent.ztunnel.iter().flat_map(ztunnel));
    lines
}

fn node_proxy(standing: &Standing) -> Vec<String> {
    let refused = standing.refused.iter();
    let refused =
        refused.map(|(pod, words)| format!("warning    {pod}: the node's proxy refuses it: {words}"));
    let config = standing.config_problem.iter();
    let config = config.map(|problem| format!("warning    --proxy-config is not in use as it is: {problem}"));
    [format!("node proxy {}", standing.text())].into_iter().chain(refused).chain(config).collect()
}

fn proxy_process(process: &ProxyProcess) -> Vec<String> {
    let mut lines = vec![format!("process    {}", process.text())];
    lines.extend(process.problem.iter().map(|problem| format!("warning    {problem}")));
    if let Some(crash) = &process.crash {
        lines.push(format!("crash      {}", crash.text()));
        lines.extend(crash.last_words.iter().map(|line| format!("           {line}")));
    }
    lines
}

fn ztunnel(standing: &zds::Standing) -> Vec<String> {
    let refused = standing.refused.iter();
    let refused = refused.map(|(pod, words)| format!("warning    {pod}: ztunnel refuses it: {words}"));
    [format!("ztunnel    {}", standing.text())].into_iter().chain(refused).collect()
}

fn cni(state: &InstallState) -> Vec<String> {
    let InstallState { phase, directory, placed, problem, other_writer, .. } = state;
    let mut lines = vec![match (phase, placed) {
        (Phase::Off, _) => {
            "cni        somebody else puts the plugin into the runtime's configuration".to_owned()
        }
        (Phase::Installed, Some(Placed { mode, file, network, .. })) => {
            format!("cni        in {directory}/{file} ({mode}), for the network {network}")
        }
        _ => format!("cni        not in {directory}, pods that start now are not redirected"),
    }];
    lines.extend(problem.iter().map(|problem| format!("warning    {problem}")));
    lines.extend(placed.iter().flat_map(|placed| &placed.notes).map(|note| format!("warning    {note}")));
    lines.extend(other_writer.iter().map(|Writer { file, vendor, times, .. }| {
        let who = vendor.as_deref().unwrap_or("somebody");
        format!("warning    {who} took it out by writing {file}, {times} times since the agent started")
    }));
    lines
}

fn uptime(started_at: u64) -> String {
    let seconds = wall_clock::seconds().saturating_sub(started_at);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
