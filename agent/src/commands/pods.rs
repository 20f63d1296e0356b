//! `veer pods`: who is enrolled, and where their connections went.

use std::io::{self, Write};

use veer_common::reason::Reason;

use super::view::{self, PodView, PolicyView};
use super::{Failure, enrolments, place, print_json, table};
use crate::cli::PodsFlags;
use crate::model::{BeforeProxy, ProxyIdentity};

/// Runs the command.
///
/// # Errors
/// If there is no datapath, or the named pod is not enrolled.
pub fn run(flags: &PodsFlags) -> Result<(), Failure> {
    let place = place(&flags.read.place)?;
    let mut pods = view::pods(&enrolments(&place)?)?;
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
            let mode = pod.policy.as_ref().map_or("-", |policy| policy.mode);
            let (backend, driver) = (pod.backend.name(), pod.driver.name());
            let mut row = vec![full_name(pod), backend.to_owned(), mode.to_owned()];
            row.extend([driver.to_owned(), state(pod)]);
            row.extend(
                [t.to_outbound, t.to_inbound, t.to_dns, t.direct, t.dropped, faults].map(|n| n.to_string()),
            );
            row
        })
        .collect();
    let heading = [
        "POD",
        "BACKEND",
        "MODE",
        "DRIVER",
        "PROXY",
        "TO-OUTBOUND",
        "TO-INBOUND",
        "TO-DNS",
        "DIRECT",
        "DROPPED",
        "FAULTS",
    ];
    table::render(&heading, &rows, &[false, false, false, false, false, true, true, true, true, true, true])
}

/// One word on whether the pod's traffic flows.
fn state(pod: &PodView) -> String {
    let listens = |policy: &PolicyView| policy.outbound.listeners > 0 && policy.inbound.listeners > 0;
    match &pod.policy {
        None => "half-enrolled".to_owned(),
        Some(_) if !pod.inbound_attached => "detached".to_owned(),
        Some(policy) if policy.before_proxy == BeforeProxy::Direct.name() => "awaited".to_owned(),
        Some(policy) if listens(policy) => "listening".to_owned(),
        Some(_) => "not-listening".to_owned(),
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

fn detail(pod: &PodView) -> String {
    let mut lines = vec![
        format!("pod            {}", full_name(pod)),
        format!("proxy          {}", state(pod)),
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
