//! Where the programs are attached, whether the pods are there, and who else is.

use crate::model::BackendName;

use super::facts::{Cgroups, ChosenBy, Facts, Hook, HookProgram};
use super::{Area, Finding, first_line, said_of};

const AREA: Area = Area::Cgroup;

/// The cgroup.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![layout(&facts.cgroups)];
    findings.extend(target(&facts.cgroups));
    if let Ok(target) = &facts.cgroups.target {
        findings.extend(pods(&facts.cgroups, target));
        findings.extend(identity(facts));
        findings.extend(order(&facts.hooks, target, facts.process.looks_on()));
    }
    findings
}

fn layout(cgroups: &Cgroups) -> Finding {
    const NAME: &str = "cgroup-layout";
    match (cgroups.v2.as_slice(), cgroups.v1.len()) {
        ([], _) => Finding::error(
            AREA,
            NAME,
            "no cgroup v2 is mounted, and the programs hang on one",
            "mount -t cgroup2 none /sys/fs/cgroup/unified; it may stand beside v1",
        ),
        ([mount, ..], 0) => Finding::ok(AREA, NAME, format!("v2 at {mount}")),
        ([mount, ..], _) => Finding::ok(AREA, NAME, format!("hybrid: v2 at {mount}, beside v1")),
    }
}

fn target(cgroups: &Cgroups) -> Option<Finding> {
    const NAME: &str = "cgroup";
    match &cgroups.target {
        Ok(path) => {
            let because = match cgroups.chosen_by {
                ChosenBy::Flag => "as --cgroup says",
                ChosenBy::Agent => "where the running agent has attached them",
                ChosenBy::Auto if is_root(cgroups, path) => {
                    "auto: there is no kubepods cgroup, so it is the root; all processes of the node meet them"
                }
                ChosenBy::Auto => "auto: the pods' cgroup",
            };
            Some(Finding::ok(AREA, NAME, format!("the programs' place is {path} ({because})")))
        }
        // That there is none at all has been said.
        Err(_) if cgroups.v2.is_empty() => None,
        Err(words) => Some(Finding::error(
            AREA,
            NAME,
            words.clone(),
            "name the cgroup v2 directory of the pods with --cgroup",
        )),
    }
}

fn is_root(cgroups: &Cgroups, path: &str) -> bool {
    cgroups.v2.iter().any(|mount| mount == path)
}

fn pods(cgroups: &Cgroups, target: &str) -> Option<Finding> {
    const NAME: &str = "cgroup-pods";
    let pods = &cgroups.pods;
    match &pods.example {
        None if pods.inside == 0 => None,
        None => Some(Finding::ok(
            AREA,
            NAME,
            format!("pods' processes are below it ({}), and none elsewhere", pods.inside),
        )),
        Some((pid, path)) => Some(Finding::error(
            AREA,
            NAME,
            format!(
                "{} of the pods' processes are elsewhere (process {pid} is in {path} of the v2 tree), {} below {target}: \
                 what those elsewhere dial is not redirected",
                pods.outside, pods.inside
            ),
            "attach to a cgroup above all of them: --cgroup with the root of the v2 tree does",
        )),
    }
}

/// Whether a proxy can be known by its container.
fn identity(facts: &Facts) -> Option<Finding> {
    const NAME: &str = "proxy-identity";
    let answer = facts.agent.answer.as_ref().ok();
    if let Some((answer, problem)) =
        answer.and_then(|answer| Some((answer, answer.identity_problem.as_ref()?)))
    {
        let advice = match answer.backend {
            BackendName::Ebpf => {
                "have the node's runtime put pods into cgroup v2 (systemd.unified_cgroup_hierarchy=1), or ask for what \
                 is: --proxy-identity=uid"
            }
            BackendName::Nftables => "ask for what is: --proxy-identity=uid",
        };
        return Some(Finding::warning(AREA, NAME, problem, advice));
    }
    let says = "the pods' containers are in cgroup v1 alone: a proxy is known by its uid and gid, whatever \
                --proxy-identity says";
    (facts.cgroups.pods.in_v1_alone > 0).then(|| Finding::ok(AREA, NAME, says))
}

/// Which programs see a connection before ours do.
fn order(hooks: &[Hook], target: &str, looks_on: bool) -> Vec<Finding> {
    const NAME: &str = "bpf-order";
    let (mut findings, mut beside, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for hook in hooks {
        match &hook.programs {
            Err(words) => said_of(&mut refused, words, &hook.name),
            Ok(programs) => {
                let before = before_ours(programs, target);
                let before = before.iter().filter(|_program| hook.rewrites);
                let hiding: Vec<_> =
                    before.map(|program| hides_services(hook, program, programs, target)).collect();
                if hiding.is_empty() && programs.iter().any(|program| !program.ours) {
                    beside.push(running_order(hook, programs));
                }
                findings.extend(hiding);
            }
        }
    }
    if looks_on && !refused.is_empty() {
        return vec![Finding::untold(AREA, NAME, "whose programs are at the hooks")];
    }
    for (words, names) in refused {
        let says =
            format!("{}: cannot tell whose programs are there: {}", names.join(", "), first_line(words));
        let advice = "see the kernel's words; a missing capability looks like this";
        findings.push(Finding::warning(AREA, NAME, says, advice).with_words(words));
    }
    if !beside.is_empty() {
        let says = format!("other programs are at our hooks, and no harm to them: {}", beside.join("; "));
        findings.push(Finding::ok(AREA, NAME, says));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(AREA, NAME, "nobody else's programs are at our hooks"));
    }
    findings
}

/// The foreign programs that run before ours: those in front of them or, where ours are not attached, those that
/// hang on the same cgroup already, because a new one comes last there and before those of the cgroups above.
fn before_ours<'a>(programs: &'a [HookProgram], target: &str) -> Vec<&'a HookProgram> {
    if programs.iter().any(|program| program.ours) {
        programs.iter().take_while(|program| !program.ours).collect()
    } else {
        programs.iter().filter(|program| program.cgroup.as_deref() == Some(target)).collect()
    }
}

fn hides_services(hook: &Hook, program: &HookProgram, all: &[HookProgram], target: &str) -> Finding {
    let place = if program.cgroup.as_deref() == Some(target) { "the same cgroup" } else { "another cgroup" };
    let off = "have its translation left out for pods (Cilium: socketLB.hostNamespaceOnly=true; Calico: \
               bpfConnectTimeLoadBalancing: Disabled)";
    let advice = if program.cgroup.as_deref() == Some(target) {
        format!("attach veer below it, to the pods' own cgroup (--cgroup), or {off}")
    } else {
        off.to_owned()
    };
    Finding::warning(
        AREA,
        "bpf-order",
        format!(
            "{} of {place} runs before ours: if it translates services, proxies see backends in place of \
             the services that were dialled. {}",
            called(program),
            running_order(hook, all)
        ),
        advice,
    )
}

fn running_order(hook: &Hook, programs: &[HookProgram]) -> String {
    let names: Vec<String> = programs
        .iter()
        .map(|program| match &program.cgroup {
            Some(cgroup) => format!("{} at {cgroup}", called(program)),
            None => called(program),
        })
        .collect();
    format!("{}: {}", hook.name, names.join(", then "))
}

/// Name, id and, where the name tells, whose it is.
fn called(program: &HookProgram) -> String {
    let HookProgram { id, name, .. } = program;
    let known = [
        ("cil_sock", "Cilium's socket load balancer"),
        ("calico_", "Calico's connect-time load balancer"),
        ("cali_", "Calico's connect-time load balancer"),
    ];
    let owner = known.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, owner)| *owner);
    match (name.as_str(), owner) {
        ("", _) => format!("a program without a name (id {id})"),
        (name, Some(owner)) => format!("{name} (id {id}, {owner})"),
        (name, None) => format!("{name} (id {id})"),
    }
}
