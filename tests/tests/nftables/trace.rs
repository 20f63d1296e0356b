//! What is in a pod's netns before, during and after.

use veer_tests::backend::Backend;
use veer_tests::istio_init;
use veer_tests::launch::Launch;
use veer_tests::mesh::{Mesh, dial, dual_stack};

use super::{CAPTURED, DIRECT, REMOTE, dump, ends, listeners, rules, said, view, with_everything};

fn mesh() -> Mesh {
    Mesh::on_node(Launch::new(), &[&Backend::Nftables.flag()]).unwrap()
}

#[test]
fn a_pod_that_was_enrolled_and_is_no_more_is_as_before() {
    let mesh = mesh();
    let pod = &mesh.pod;
    let listeners = listeners(&mesh, pod);
    let before = dump(pod.netns());
    for mode in ["REDIRECT", "TPROXY"] {
        let manifest = with_everything(dual_stack(pod));
        let manifest = manifest.with_annotation("sidecar.istio.io/interceptionMode", mode);
        mesh.agent.enrol_as(pod, &manifest).unwrap();
        let during = dump(pod.netns());
        assert!(during[0].contains("table ip veer") && during[0].contains("table ip6 veer"), "{}", during[0]);
        assert_ne!(during[5], before[5], "::6 is on lo");
        // The way of marked packets is for TPROXY alone.
        for index in 1..4 {
            assert_eq!(during[index] == before[index], mode == "REDIRECT", "{}", during[index]);
        }
        assert_eq!(dial(pod.app(), REMOTE, &listeners).unwrap().0.at, "outbound");
        mesh.agent.unenrol(pod).unwrap();
        assert_eq!(dump(pod.netns()), before, "{mode}");
        assert_eq!(ends(&mesh, pod, &listeners), DIRECT);
    }
}

#[test]
fn enrolled_twice_is_enrolled_once_and_counts_go_on() {
    let mesh = mesh();
    let pod = &mesh.pod;
    let listeners = listeners(&mesh, pod);
    let manifest = with_everything(dual_stack(pod));
    mesh.agent.enrol_as(pod, &manifest).unwrap();
    let first = dump(pod.netns());
    assert_eq!(ends(&mesh, pod, &listeners), CAPTURED);
    let before = view(&mesh.agent, pod);
    mesh.agent.enrol_as(pod, &manifest).unwrap();
    assert_eq!(dump(pod.netns()), first);
    assert_eq!(view(&mesh.agent, pod), before);
    assert_eq!(before["reasons"]["included-range"], 1);
}

#[test]
fn rules_that_change_keep_what_they_have_counted() {
    let mesh = mesh();
    let pod = &mesh.pod;
    let listeners = listeners(&mesh, pod);
    mesh.agent.enrol_as(pod, &dual_stack(pod)).unwrap();
    assert_eq!(ends(&mesh, pod, &listeners), CAPTURED);
    mesh.agent.enrol_as(pod, &dual_stack(pod).with_traffic("excludeOutboundPorts", "80")).unwrap();
    assert_eq!(ends(&mesh, pod, &listeners), ("outside", "inbound"));
    let reasons = &view(&mesh.agent, pod)["reasons"];
    let counted =
        ["all-outbound", "excluded-port", "all-inbound"].map(|reason| reasons[reason].as_u64().unwrap());
    assert_eq!(counted, [1, 1, 2], "{reasons}");
}

#[test]
fn rules_of_others_in_the_pods_netns_are_not_touched() {
    let mesh = mesh();
    let pod = &mesh.pod;
    istio_init::apply(pod.netns()).unwrap();
    for command in [
        "add table ip other { chain veer { type filter hook input priority 0; tcp dport 9 drop; }; }",
        // A name that begins as ours.
        "add table ip6 veers { set veer { type inet_service; elements = { 1, 2 }; }; }",
        "add table inet veer { chain inbound { type filter hook output priority 0; }; }",
    ] {
        said(pod.netns(), &["nft", command]);
    }
    let before = dump(pod.netns());
    let tables = || -> Vec<String> {
        let all = said(pod.netns(), &["nft", "list", "tables"]);
        all.lines()
            .filter(|table| !["table ip veer", "table ip6 veer"].contains(table))
            .map(str::to_owned)
            .collect()
    };
    let others = || -> Vec<String> {
        let list = |table: &String| {
            let words: Vec<&str> =
                ["nft", "--stateless", "list"].into_iter().chain(table.split(' ')).collect();
            said(pod.netns(), &words)
        };
        tables().iter().map(list).collect()
    };
    let theirs = others();
    assert!(theirs.len() >= 5, "{theirs:#?}");
    mesh.agent.enrol_as(pod, &with_everything(dual_stack(pod))).unwrap();
    assert_ne!(rules(pod.netns()), before[0]);
    for (now, before) in others().iter().zip(&theirs) {
        assert_eq!(now, before);
    }
    assert_eq!(others().len(), theirs.len());
    mesh.agent.unenrol(pod).unwrap();
    // ::6 is istio-init's as well, and goes with whoever goes first.
    assert_eq!(dump(pod.netns())[..4], before[..4]);
}

#[test]
fn rules_are_of_nothing_that_linux_4_14_has_not() {
    let mesh = mesh();
    let pod = &mesh.pod;
    mesh.agent.enrol_as(pod, &with_everything(dual_stack(pod))).unwrap();
    let rules = rules(pod.netns());
    // NAT in inet tables needs 5.2; what an answer passes must have a chain of type nat before 4.18.
    assert!(!rules.contains("table inet"), "{rules}");
    let hooks = [
        "prerouting priority dstnat",
        "input priority 100",
        "output priority -100",
        "postrouting priority srcnat",
    ];
    for hook in hooks {
        let line = format!("type nat hook {hook}; policy accept;");
        assert_eq!(rules.matches(&line).count(), 2, "{line} in\n{rules}");
    }
    for younger in ["tproxy", "socket cgroupv2", "flags dynamic", "vmap", "typeof"] {
        assert!(!rules.contains(younger), "{younger} in\n{rules}");
    }
}
