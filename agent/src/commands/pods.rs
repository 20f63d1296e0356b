//! `veer pods`: who is enrolled, and where their connections went.

use std::io::{self, BufRead, Write};

use veer_common::reason::Reason;

use super::view::{self, PodView, PolicyView};
use super::{Failure, ask, enrolments, place, print_json, table};
use crate::cli::PodsFlags;
use crate::config::Place;
use crate::control::Question;
use crate::model::{BeforeProxy, ProxyIdentity};
use crate::proxy::watch::PodProxy;
use crate::wall_clock;

/// Runs the command.
///
/// # Errors
/// If there is no datapath, or the named pod is not enrolled.
pub fn run(flags: &PodsFlags) -> Result<(), Failure> {
    let place = place(&flags.read.place)?;
    let mut pods = view::pods(&enrolments(&place)?)?;
    ask_agent(&place, &mut pods);
    let Some(wanted) = &flags.pod else {
        if flags.read.json {
            return print_json(&pods);
        }
        return write(&list(&pods));
    };
    let pod = pods.iter_mut().find(|pod| full_name(pod) == *wanted).ok_or_else(|| {
        let hint = if wanted.contains('/') { "" } else { " (a pod is NAMESPACE/NAME)" };
        Failure::Usage(format!(
            "pod {wanted} is not enrolled on this node{hint}; `veer pods` lists those that are"
        ))
    })?;
    pod.seek_container();
    if flags.read.json { print_json(pod) } else { write(&detail(pod)) }
}

/// What only the agent knows: how proxies stand that it drives, and what others say of themselves. Without one it is as
/// the maps tell.
fn ask_agent(place: &Place, pods: &mut [PodView]) {
    let Ok(mut answer) = ask(place, &Question::Proxies) else { return };
    let mut line = String::new();
    let read = answer.read_line(&mut line);
    let proxies: Vec<PodProxy> = read.ok().and_then(|_| serde_json::from_str(&line).ok()).unwrap_or_default();
    for one in proxies {
        if let Some(pod) = pods.iter_mut().find(|pod| pod.netns_cookie == one.netns_cookie) {
            pod.proxy = one.proxy;
        }
    }
}

fn write(text: &str) -> Result<(), Failure> {
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

fn full_name(pod: &PodView) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn list(pods: &[PodView]) -> String {
    if pods.is_empty() {
        return "no pod is enrolled on this node\n".to_owned();
    }
    let rows: Vec<Vec<String>> = pods
        .iter()
        .map(|pod| {
            let t = pod.totals;
            let faults: u64 = pod.faults.values().sum();
            let mut row = vec![full_name(pod), backend(pod), pod.driver.name().to_owned(), state(pod)];
            row.push(age(pod.proxy.since));
            row.extend(
                [t.to_outbound, t.to_inbound, t.to_dns, t.direct, t.dropped, faults].map(|n| n.to_string()),
            );
            row
        })
        .collect();
    let heading =
        ["POD", "BACKEND", "DRIVER", "PROXY", "SINCE", "OUT", "IN", "DNS", "DIRECT", "DROPPED", "FAULTS"];
    table::render(&heading, &rows, &[false, false, false, false, true, true, true, true, true, true, true])
}

/// The backend, with the mode where that is not the usual one.
fn backend(pod: &PodView) -> String {
    let mode = pod.policy.as_ref().map(|policy| policy.mode).filter(|mode| *mode != "redirect");
    mode.map_or_else(|| pod.backend.name().to_owned(), |mode| format!("{}/{mode}", pod.backend.name()))
}

/// One word on whether the pod's traffic flows.
fn state(pod: &PodView) -> String {
    let state = match &pod.policy {
        None => "half-enrolled",
        Some(_) if !pod.inbound_attached => "detached",
        Some(policy) if policy.before_proxy == BeforeProxy::Direct.name() => "awaited",
        Some(_) => pod.proxy.state.name(),
    };
    state.to_owned()
}

/// How long ago a moment is, in seconds since the epoch, in one word.
fn age(moment: u64) -> String {
    let seconds = wall_clock::seconds().saturating_sub(moment);
    match seconds {
        0..100 => format!("{seconds}s"),
        100..6000 => format!("{}m", seconds / 60),
        6000..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What becomes of connections before the proxy, where that is not refusal.
fn before_proxy(policy: &PolicyView) -> Option<String> {
    let (outbound, inbound) = (policy.outbound.port, policy.inbound.port);
    match policy.before_proxy {
        "direct" => Some(format!("direct, past the mesh, until somebody listens on {outbound} or {inbound}")),
        "over" => Some("was direct until somebody listened".to_owned()),
        _ => None,
    }
}

/// Who the proxy is.
fn identity(policy: &PolicyView) -> String {
    let ids = format!("uid {}, gid {}", policy.proxy_uid, policy.proxy_gid);
    match &policy.proxy_container {
        _ if policy.proxy_identity == ProxyIdentity::Uid.name() => ids,
        None => format!("{ids}, in a container that has not listened yet: nobody is the proxy"),
        Some(container) if container.shared => {
            format!("{ids}; its container shares cgroup {} with others", container.cgroup)
        }
        Some(container) => {
            let path = container.path.as_ref().map_or_else(
                || format!("{} (its directory is gone)", container.cgroup),
                |path| path.display().to_string(),
            );
            format!("{ids}, in the container of cgroup {path}, {} listening", container.listening)
        }
    }
}

/// The proxy in a line.
fn proxy(pod: &PodView) -> String {
    let words = pod.proxy.words.as_ref().map_or_else(String::new, |words| format!(": {words}"));
    format!("{}, for {}{words}", state(pod), age(pod.proxy.since))
}

fn detail(pod: &PodView) -> String {
    let mut lines = vec![
        format!("pod            {}", full_name(pod)),
        format!("proxy          {}", proxy(pod)),
        format!("backend        {}", pod.backend.name()),
        format!("driver         {}", pod.driver.name()),
        format!("container      {}", pod.container_id),
        format!("netns          {} (cookie {})", pod.netns, pod.netns_cookie),
    ];
    if let Some(policy) = &pod.policy {
        let port = |port: &view::ProxyPort| format!("port {}, {} listening", port.port, port.listeners);
        let families = policy.families.join(" and ");
        lines.push(format!("mode           {}, {families}", policy.mode));
        lines.push(format!("identity       {}", identity(policy)));
        lines.push(format!("outbound       {}", port(&policy.outbound)));
        lines.push(format!("inbound        {}", port(&policy.inbound)));
        lines.extend(before_proxy(policy).map(|before| format!("before proxy   {before}")));
        lines.extend(policy.dns.as_ref().map(|dns| format!("dns            {}", port(dns))));
    }
    lines.push(String::new());
    let mut rows: Vec<Vec<String>> = Reason::ALL
        .into_iter()
        .filter_map(|reason| {
            let count = pod.reasons.get(reason.name())?;
            let direction = if reason.is_inbound() { "inbound" } else { "outbound" };
            Some(vec![
                reason.name().to_owned(),
                direction.to_owned(),
                reason.action().name().to_owned(),
                count.to_string(),
            ])
        })
        .collect();
    let faults = pod.faults.iter();
    rows.extend(
        faults.map(|(name, count)| {
            vec![(*name).to_owned(), String::new(), "fault".to_owned(), count.to_string()]
        }),
    );
    let counted = if rows.is_empty() {
        "no connection yet\n".to_owned()
    } else {
        let heading = ["REASON", "DIRECTION", "ACTION", "CONNECTIONS"];
        table::render(&heading, &rows, &[false, false, false, true])
    };
    format!("{}\n{counted}", lines.join("\n"))
}
