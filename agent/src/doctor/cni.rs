//! Which configuration the runtime uses, and whether veer is in it.
//!
//! What runtimes make of the files is told in [`conflist`](crate::conflist), which reads them.

use super::facts::{Cni, ConfigFile, Problem};
use super::{Area, Finding};
use crate::conflist::{Delegate, ENDINGS, MOVED_BY_CILIUM, Network, VEER, parse};

const AREA: Area = Area::Cni;

/// The runtime's configuration.
pub fn examine(cni: &Cni, looks_on: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !cni.others.is_empty() {
        findings.push(Finding::warning(
            AREA,
            "cni-directory",
            format!("{} was looked at; {} has configurations, too", cni.directory, cni.others.join(", ")),
            "name the one that the runtime reads with --cni-conf-dir",
        ));
    }
    match &cni.files {
        Ok(files) => findings.extend(used(cni, files)),
        Err(problem) if looks_on && problem.denied => {
            findings.push(Finding::untold(AREA, "cni-config", &format!("what is in {}", cni.directory)));
        }
        Err(Problem { words, .. }) => findings.push(Finding::warning(
            AREA,
            "cni-config",
            format!("{} cannot be read: {words}; no pod can be enrolled by a runtime", cni.directory),
            "name the directory that the runtime reads with --cni-conf-dir; without a runtime there is none",
        )),
    }
    findings.push(plugin(cni, looks_on));
    findings
}

fn plugin(cni: &Cni, looks_on: bool) -> Finding {
    const NAME: &str = "cni-plugin";
    match &cni.veer {
        Ok(()) => Finding::ok(AREA, NAME, format!("{VEER} is in {}", cni.plugins)),
        Err(problem) if looks_on && problem.denied => {
            Finding::untold(AREA, NAME, &format!("whether {VEER} is in {}", cni.plugins))
        }
        Err(Problem { words, .. }) => Finding::warning(
            AREA,
            NAME,
            format!("{VEER} cannot be executed in {}: {words}", cni.plugins),
            "copy it there, or name the runtime's directory with --cni-bin-dir",
        ),
    }
}

fn used(cni: &Cni, files: &[ConfigFile]) -> Vec<Finding> {
    const NAME: &str = "cni-config";
    let mut candidates = files.iter().filter(|file| ENDINGS.iter().any(|end| file.name.ends_with(end)));
    let Some(first) = candidates.next() else {
        let moved: Vec<_> = files.iter().filter(|file| file.name.ends_with(MOVED_BY_CILIUM)).collect();
        let says = format!("{} has no configuration: pods cannot start", cni.directory);
        let advice = if moved.is_empty() {
            "install a CNI network first; veer adds itself to one"
        } else {
            "Cilium has moved what was there (*.cilium_bak): set its cni.exclusive=false"
        };
        return vec![Finding::warning(AREA, NAME, says, advice)];
    };
    let rest: Vec<&ConfigFile> = candidates.collect();
    let network = match first.content.clone().and_then(|content| parse(&first.name, &content)) {
        Ok(network) => network,
        Err(problem) => {
            return vec![Finding::error(
                AREA,
                NAME,
                format!(
                    "{}/{} comes first, and {problem}: containerd starts no pod with it, CRI-O takes the next",
                    cni.directory, first.name
                ),
                "mend or remove it",
            )];
        }
    };
    let chain = network.plugins.join(", ");
    let before =
        rest.first().map_or_else(String::new, |next| format!("; it comes before {} by its name", next.name));
    let says = format!("the runtime uses {}/{} ({chain}){before}", cni.directory, first.name);
    let mut findings = vec![Finding::ok(AREA, NAME, says)];
    findings.extend(chained(first, &network, &rest));
    findings.extend(meshes(first, &network));
    findings.extend(exclusive(first, files, &network));
    findings
}

/// Whether ADD comes to us.
fn chained(first: &ConfigFile, network: &Network, rest: &[&ConfigFile]) -> Vec<Finding> {
    const NAME: &str = "cni-chain";
    let name = &first.name;
    let places = network.plugins.iter().filter(|plugin| *plugin == VEER).count();
    if places > 1 {
        return vec![Finding::warning(
            AREA,
            NAME,
            format!("{VEER} is in {name} {places} times; the second ADD of a pod changes nothing"),
            "leave it in once, as the last plugin",
        )];
    }
    if network.plugins.first().is_some_and(|plugin| plugin == VEER) {
        return vec![Finding::error(
            AREA,
            NAME,
            format!("{VEER} is the first plugin of {name}: it makes no interface, and so every ADD fails"),
            "put it behind the plugin that makes the pod's interface",
        )];
    }
    if places == 1 {
        return vec![Finding::ok(AREA, NAME, format!("{VEER} is in it, behind the network's own plugins"))];
    }
    if let Some(finding) = delegated(name, network, rest) {
        return vec![finding];
    }
    let others: Vec<&str> =
        rest.iter().filter(|file| names_veer(file)).map(|file| file.name.as_str()).collect();
    let (says, advice) = if others.is_empty() {
        (
            format!("{VEER} is not in {name}: pods of this node start without being redirected"),
            if name.ends_with(".conflist") {
                format!("add {{\"type\": \"{VEER}\"}} to the end of its \"plugins\"")
            } else {
                format!("make a .conflist of it with {{\"type\": \"{VEER}\"}} as its last plugin")
            },
        )
    } else {
        (
            format!("{VEER} is in {}, and the runtime uses {name}, which comes first", others.join(", ")),
            format!("add it to {name}, or remove {name}"),
        )
    };
    vec![Finding::warning(AREA, NAME, says, advice)]
}

fn names_veer(file: &ConfigFile) -> bool {
    let network = file.content.clone().and_then(|content| parse(&file.name, &content));
    network.is_ok_and(|network| network.plugins.iter().any(|plugin| plugin == VEER))
}

/// What a meta plugin delegates to, where there is one.
fn delegated(name: &str, network: &Network, rest: &[&ConfigFile]) -> Option<Finding> {
    const NAME: &str = "cni-chain";
    let delegate = network.delegates.first()?;
    let (there, whose) = match delegate {
        Delegate::Copy { plugins, .. } => {
            (plugins.iter().any(|plugin| plugin == VEER), format!("the copy that {name} holds"))
        }
        Delegate::Named(named) => {
            let file = rest
                .iter()
                .find(|file| named.ends_with(&file.name) || network_name(file).as_deref() == Some(named));
            let Some(file) = file else {
                return Some(Finding::warning(
                    AREA,
                    NAME,
                    format!("{name} delegates to {named}, which is not in this directory"),
                    format!("see that {VEER} is in what it names"),
                ));
            };
            (names_veer(file), file.name.clone())
        }
    };
    Some(if there {
        Finding::ok(AREA, NAME, format!("{VEER} is in {whose}, which a meta plugin delegates to"))
    } else {
        Finding::warning(
            AREA,
            NAME,
            format!("a meta plugin delegates to {whose}, and {VEER} is not in it: pods are not redirected"),
            "add it to the primary network's configuration, and restart Multus where it holds a copy",
        )
    })
}

fn network_name(file: &ConfigFile) -> Option<String> {
    parse(&file.name, file.content.as_ref().ok()?).ok()?.name
}

/// Plugins of other meshes in the same chain.
fn meshes(first: &ConfigFile, network: &Network) -> Vec<Finding> {
    const NAME: &str = "cni-meshes";
    let with_us = network.plugins.iter().any(|plugin| plugin == VEER);
    let copies = network.delegates.iter().filter_map(|delegate| match delegate {
        Delegate::Copy { plugins, .. } => Some(plugins),
        Delegate::Named(_) => None,
    });
    let all: Vec<&String> = network.plugins.iter().chain(copies.flatten()).collect();
    let known = ["istio-cni", "linkerd-cni", "kuma-cni", "consul-cni"];
    let found = known.into_iter().filter(|mesh| all.iter().any(|plugin| plugin == mesh));
    found
        .map(|mesh| {
            let says = |meaning: &str| format!("{mesh} is in {}{meaning}", first.name);
            match (mesh, with_us) {
                ("istio-cni", true) => Finding::error(
                    AREA,
                    NAME,
                    says(", beside veer-cni: the connections of every pod would be redirected twice"),
                    "take one of the two out of the chain",
                ),
                (_, true) => Finding::warning(
                    AREA,
                    NAME,
                    says(", beside veer-cni: a pod with the annotations of both would be redirected twice"),
                    "give no pod the annotations of both meshes",
                ),
                (_, false) => Finding::warning(
                    AREA,
                    NAME,
                    says(": it redirects this node's pods now"),
                    "take it out of the chain when you put veer-cni in",
                ),
            }
        })
        .collect()
}

/// Cilium renames what others write, unless it is told not to.
fn exclusive(first: &ConfigFile, files: &[ConfigFile], network: &Network) -> Option<Finding> {
    let cilium = network.plugins.iter().any(|plugin| plugin == "cilium-cni");
    let moved: Vec<&str> = files
        .iter()
        .filter(|file| file.name.ends_with(MOVED_BY_CILIUM))
        .map(|file| file.name.as_str())
        .collect();
    let own_file = first.name.starts_with("05-cilium.conf");
    if !cilium || (moved.is_empty() && !own_file) {
        return None;
    }
    let seen = if moved.is_empty() { String::new() } else { format!(" (it has moved {})", moved.join(", ")) };
    Some(Finding::warning(
        AREA,
        "cni-exclusive",
        format!("Cilium writes its file anew at each start{seen}: an entry that was added is lost"),
        "Cilium's Helm values: cni.exclusive=false, and cni.customConf=true with veer-cni in your conflist",
    ))
}
