use std::time::Duration;

use super::facts::{
    Agent, Answer, Cgroups, Chain, ChosenBy, Cni, ConfigFile, CookieFrom, Ebpf, Facts, Hook, HookProgram,
    KernelSettings, Netns, PinsProblem, Places, PodProcesses, Problem, Process, Redirections, Tried,
};
use super::{Level, Report, examine, text};
use crate::conflist::parse;
use crate::model::BackendName;

const ALL_CAPABILITIES: u64 = 0x1ff_ffff_ffff;
const PODS: &str = "/sys/fs/cgroup/kubepods.slice";

fn tried(names: &[&str]) -> Vec<Tried> {
    names.iter().map(|name| Tried { name: (*name).to_owned(), outcome: Ok(()) }).collect()
}

fn failed(name: &str, words: &str) -> Tried {
    Tried { name: name.to_owned(), outcome: Err(words.to_owned()) }
}

fn hook(name: &str, programs: &[(u32, &str, &str, bool)]) -> Hook {
    let program = |(id, name, cgroup, ours): &(u32, &str, &str, bool)| HookProgram {
        id: *id,
        name: (*name).to_owned(),
        cgroup: Some((*cgroup).to_owned()),
        ours: *ours,
    };
    Hook {
        name: name.to_owned(),
        rewrites: name.starts_with("connect"),
        programs: Ok(programs.iter().map(program).collect()),
    }
}

fn file(name: &str, content: &str) -> ConfigFile {
    ConfigFile { name: name.to_owned(), content: Ok(content.to_owned()) }
}

fn conflist(name: &str, types: &[&str]) -> ConfigFile {
    let plugins: Vec<String> = types.iter().map(|kind| format!(r#"{{"type":"{kind}"}}"#)).collect();
    file(name, &format!(r#"{{"name":"n","cniVersion":"1.0.0","plugins":[{}]}}"#, plugins.join(",")))
}

fn chain(name: &str) -> Chain {
    Chain { table: "nat".to_owned(), name: name.to_owned() }
}

/// A node on which all is well, before its first agent.
fn able() -> Facts {
    Facts {
        kernel: "6.12.94 x86_64".to_owned(),
        process: Process { uid: 0, capabilities: ALL_CAPABILITIES, locked_memory: None },
        ebpf: Ebpf {
            maps: Some(Ok(13)),
            map_kinds: Vec::new(),
            programs: tried(&["veer_connect4", "veer_connect6"]),
            hooks: tried(&["connect4", "connect6", "sk_lookup"]),
            netns_cookie: Some(Ok(CookieFrom::Kernel)),
            arrival_interface: Some(Ok(())),
        },
        nftables: tried(&["ip", "ip6"]),
        kernel_settings: KernelSettings { jit: Some("1".to_owned()), lockdown: None, ipv6: true },
        cgroups: Cgroups {
            v1: Vec::new(),
            v2: vec!["/sys/fs/cgroup".to_owned()],
            target: Ok(PODS.to_owned()),
            chosen_by: ChosenBy::Auto,
            pods: PodProcesses { inside: 42, ..PodProcesses::default() },
        },
        hooks: vec![hook("connect4", &[]), hook("sockops", &[])],
        places: Places {
            pins: "/sys/fs/bpf/veer".to_owned(),
            bpffs_mounts: vec!["/sys/fs/bpf".to_owned()],
            pins_usable: Ok(()),
            versions: Vec::new(),
            our_version: "v2".to_owned(),
            run_dir: "/run/veer".to_owned(),
            run_dir_usable: Ok(()),
        },
        agent: Agent {
            answer: Err("no agent answers".to_owned()),
            socket: false,
            detached: Vec::new(),
            enrolled: None,
            our_release: "0.1.0".to_owned(),
        },
        cni: Cni {
            directory: "/etc/cni/net.d".to_owned(),
            others: Vec::new(),
            files: Ok(vec![conflist("10-aws.conflist", &["aws-cni", "portmap", "veer-cni"])]),
            plugins: "/opt/cni/bin".to_owned(),
            veer: Ok(()),
        },
        redirections: Redirections { netns: Vec::new(), node: Ok(Vec::new()), left_off: 0, hidden: 0 },
        took: Duration::from_millis(412),
    }
}

/// A node on which much is wrong at once.
fn broken() -> Facts {
    let mut facts = able();
    let log = "the BPF_PROG_LOAD syscall returned Invalid argument (os error 22). Verifier output: 0: R1=ctx()\n\
               1: (61) r2 = *(u32 *)(r1 +64)\n; let ingress = context.ingress_ifindex();\n\
               invalid bpf_context access off=64 size=4\nprocessed 2 insns (limit 1000000)\n";
    facts.process.capabilities = ALL_CAPABILITIES & !(1 << 19);
    facts.ebpf.programs.push(failed("veer_inbound", log));
    facts.ebpf.hooks = vec![
        failed("connect4", "Operation not permitted (os error 1)"),
        failed("connect6", "Operation not permitted (os error 1)"),
        Tried { name: "sk_lookup".to_owned(), outcome: Ok(()) },
    ];
    facts.nftables = vec![tried(&["ip"]).remove(0), failed("ip6", "No such file or directory (os error 2)")];
    facts.kernel_settings =
        KernelSettings { jit: Some("0".to_owned()), lockdown: Some("integrity".to_owned()), ipv6: false };
    facts.cgroups.v1 = vec!["/sys/fs/cgroup/cpu".to_owned()];
    facts.cgroups.pods =
        PodProcesses { inside: 1, outside: 2, example: Some((4711, "/".to_owned())), in_v1_alone: 0 };
    facts.hooks = vec![hook(
        "connect4",
        &[
            (7, "cil_sock4_conne", PODS, false),
            (9, "veer_connect4", PODS, true),
            (3, "other", "/sys/fs/cgroup", false),
        ],
    )];
    facts.places.versions = vec!["v1".to_owned(), "v2".to_owned()];
    facts.places.run_dir_usable =
        Err(Problem { words: "Read-only file system (os error 30)".to_owned(), denied: false });
    facts.agent.answer = Ok(Answer {
        version: "0.0.9".to_owned(),
        pid: 815,
        cgroup: Some(PODS.to_owned()),
        identity_problem: None,
        backend: BackendName::Ebpf,
        backend_reason: None,
    });
    facts.agent.enrolled = Some(2);
    facts.agent.detached = vec!["veer_connect6".to_owned()];
    facts.cni.files = Ok(vec![conflist("10-calico.conflist", &["calico", "istio-cni", "veer-cni"])]);
    facts.redirections.netns = vec![
        Netns {
            inode: 1,
            who: "pod shop/cart".to_owned(),
            enrolled: true,
            chains: Ok(vec![chain("PREROUTING"), chain("ISTIO_OUTPUT"), chain("ISTIO_INBOUND")]),
        },
        Netns {
            inode: 2,
            who: "process 4712 (evil\x1b[2Jname)".to_owned(),
            enrolled: false,
            chains: Ok(vec![chain("PROXY_INIT_OUTPUT")]),
        },
    ];
    facts
}

/// The one finding of this name.
#[track_caller]
fn only<'a>(report: &'a Report, name: &str) -> (Level, &'a str) {
    let found: Vec<_> = report.findings.iter().filter(|finding| finding.name == name).collect();
    let [finding] = found.as_slice() else { panic!("{} findings {name}: {found:#?}", found.len()) };
    (finding.level, &finding.says)
}

/// The finding of the chain, with these files.
#[track_caller]
fn of_files(name: &str, files: Vec<ConfigFile>) -> (Level, String) {
    let mut facts = able();
    facts.cni.files = Ok(files);
    let report = examine(&facts);
    let (level, says) = only(&report, name);
    (level, says.to_owned())
}

#[test]
fn an_able_node_in_words() {
    insta::assert_snapshot!(text::render(&examine(&able())));
}

#[test]
fn a_broken_node_in_words() {
    insta::assert_snapshot!(text::render(&examine(&broken())));
}

#[test]
fn a_broken_node_in_json() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&examine(&broken())).unwrap());
}

#[test]
fn a_kernel_that_tells_no_program_the_interface_is_able_and_what_redirects_instead_is_said() {
    let mut facts = able();
    facts.ebpf.arrival_interface = Some(Err("invalid bpf_context access off=64 size=4".to_owned()));
    let report = examine(&facts);
    assert_eq!((report.exit_code(), report.backend), (0, Some(BackendName::Ebpf)));
    let (level, says) = only(&report, "interfaces");
    assert_eq!(level, Level::Ok);
    assert!(says.starts_with("nftables redirects pods that exclude interfaces"), "{says}");
}

#[test]
fn the_worst_finding_is_the_exit_code() {
    assert_eq!(examine(&able()).exit_code(), 0);
    assert_eq!(examine(&broken()).exit_code(), 2);
    let mut facts = able();
    facts.kernel_settings.jit = Some("0".to_owned());
    assert_eq!(examine(&facts).exit_code(), 1);
}

#[test]
fn whatever_is_wrong_has_a_way_out() {
    for facts in [able(), broken()] {
        for finding in examine(&facts).findings {
            assert_eq!(finding.level == Level::Ok, finding.advice.is_none(), "{finding:?}");
        }
    }
}

#[test]
fn no_line_is_wider_than_100_columns() {
    for line in text::render(&examine(&broken())).lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn what_a_bystander_may_not_do_is_no_error() {
    let mut facts = broken();
    facts.process = Process { uid: 1000, capabilities: 0, locked_memory: Some(8 << 20) };
    facts.ebpf = Ebpf::default();
    facts.nftables = Vec::new();
    facts.cgroups.pods = PodProcesses::default();
    facts.places.pins_usable =
        Err(PinsProblem::Unusable(Problem { words: "Permission denied".to_owned(), denied: true }));
    facts.places.run_dir_usable = Err(Problem { words: "Permission denied".to_owned(), denied: true });
    facts.agent.answer = Err("Permission denied".to_owned());
    facts.cni = able().cni;
    let report = examine(&facts);
    assert_eq!((report.verdict, report.backend), (Level::Warning, None), "{:#?}", report.findings);
}

#[test]
fn a_load_balancer_is_before_ours_only_on_the_same_cgroup() {
    for (cgroup, level) in [(PODS, Level::Warning), ("/sys/fs/cgroup", Level::Ok)] {
        let mut facts = able();
        facts.hooks = vec![hook("connect4", &[(7, "cil_sock4_conne", cgroup, false)])];
        assert_eq!(only(&examine(&facts), "bpf-order").0, level, "{cgroup}");
    }
}

#[test]
fn that_no_proxy_is_known_by_its_container_is_a_warning_where_that_was_asked() {
    let mut facts = able();
    facts.cgroups.pods.in_v1_alone = 1;
    assert_eq!(only(&examine(&facts), "proxy-identity").0, Level::Ok);
    facts.agent.answer = broken().agent.answer;
    let problem = "--proxy-identity=container is not possible on this node";
    if let Ok(answer) = &mut facts.agent.answer {
        answer.identity_problem = Some(problem.to_owned());
    }
    assert_eq!(only(&examine(&facts), "proxy-identity"), (Level::Warning, problem));
}

#[test]
fn the_order_of_what_runs_counts_where_ours_run() {
    let mut facts = able();
    let (theirs, ours) = ((7, "lb", "/sys/fs/cgroup", false), (9, "veer_connect4", PODS, true));
    // A program above that asked to run first (BPF_F_PREORDER).
    facts.hooks = vec![hook("connect4", &[theirs, ours])];
    assert_eq!(only(&examine(&facts), "bpf-order").0, Level::Warning);
    facts.hooks = vec![hook("connect4", &[ours, theirs])];
    assert_eq!(only(&examine(&facts), "bpf-order").0, Level::Ok);
    facts.hooks = vec![hook("sockops", &[theirs, ours])];
    assert_eq!(only(&examine(&facts), "bpf-order").0, Level::Ok);
}

#[test]
fn the_first_file_by_its_name_is_the_runtimes() {
    let files = vec![
        file("10-a.conf", r#"{"type":"calico","name":"n"}"#),
        conflist("10-a.conflist", &["calico", "veer-cni"]),
    ];
    let (level, says) = of_files("cni-config", files.clone());
    assert_eq!(
        (level, says.as_str()),
        (
            Level::Ok,
            "the runtime uses /etc/cni/net.d/10-a.conf (calico); it comes before 10-a.conflist by its name"
        )
    );
    assert_eq!(of_files("cni-chain", files).0, Level::Warning);
}

#[test]
fn what_is_no_configuration_is_said_as_the_runtimes_see_it() {
    for (name, content, problem) in [
        ("a.conflist", "{", "is no JSON"),
        ("a.conflist", r#"{"type":"x"}"#, "no list \"plugins\""),
        ("a.conflist", r#"{"plugins":[]}"#, "has no plugin"),
        ("a.conflist", r#"{"plugins":[{}]}"#, "a plugin without a \"type\""),
        ("a.conf", r#"{"plugins":[{"type":"x"}]}"#, "must end in .conflist"),
        ("a.json", "[]", "has no \"type\""),
    ] {
        let error = parse(name, content).unwrap_err();
        assert!(error.contains(problem), "{content}: {error}");
        assert_eq!(of_files("cni-config", vec![file(name, content)]).0, Level::Error);
    }
}

#[test]
fn veer_belongs_behind_the_network() {
    for (types, level) in [
        (&["bridge", "veer-cni"][..], Level::Ok),
        (&["bridge", "veer-cni", "portmap"], Level::Ok),
        (&["bridge"], Level::Warning),
        (&["bridge", "veer-cni", "veer-cni"], Level::Warning),
        (&["veer-cni", "bridge"], Level::Error),
    ] {
        assert_eq!(of_files("cni-chain", vec![conflist("1.conflist", types)]).0, level, "{types:?}");
    }
}

#[test]
fn another_meshs_plugin_is_worse_beside_veer() {
    for (types, level) in [
        (&["bridge", "istio-cni", "veer-cni"][..], Level::Error),
        (&["bridge", "linkerd-cni", "veer-cni"], Level::Warning),
        (&["bridge", "istio-cni"], Level::Warning),
    ] {
        assert_eq!(of_files("cni-meshes", vec![conflist("1.conflist", types)]).0, level, "{types:?}");
    }
}

#[test]
fn what_multus_delegates_to_is_looked_into() {
    let copy = |kind: &str| {
        let delegate = format!(r#"{{"plugins":[{{"type":"bridge"}},{{"type":"{kind}"}}]}}"#);
        vec![file("00-multus.conf", &format!(r#"{{"type":"multus","delegates":[{delegate}]}}"#))]
    };
    assert_eq!(of_files("cni-chain", copy("veer-cni")).0, Level::Ok);
    assert_eq!(of_files("cni-chain", copy("portmap")).0, Level::Warning);
    let named = |name: &str| {
        let multus = format!(r#"{{"type":"multus-shim","clusterNetwork":"{name}"}}"#);
        vec![file("00-multus.conf", &multus), conflist("10-net.conflist", &["bridge", "veer-cni"])]
    };
    assert_eq!(of_files("cni-chain", named("/host/etc/cni/net.d/10-net.conflist")).0, Level::Ok);
    assert_eq!(of_files("cni-chain", named("n")).0, Level::Ok);
    assert_eq!(of_files("cni-chain", named("elsewhere")).0, Level::Warning);
}

#[test]
fn cilium_takes_away_what_others_write() {
    let cilium = conflist("05-cilium.conflist", &["cilium-cni", "veer-cni"]);
    let (level, _) = of_files("cni-exclusive", vec![cilium]);
    assert_eq!(level, Level::Warning);
    let moved = vec![conflist("10-net.conflist.cilium_bak", &["bridge"])];
    assert!(of_files("cni-config", moved).1.contains("no configuration"));
}

#[test]
fn chains_of_other_meshes_are_known_and_the_nodes_own_probe_rule_is_not_taken_for_one() {
    let mut facts = able();
    facts.redirections.node = Ok(vec![chain("ISTIO_POSTRT"), chain("KUBE-SERVICES"), chain("cali-OUTPUT")]);
    assert_eq!(only(&examine(&facts), "other-meshes").0, Level::Ok);
    for name in ["ISTIO_OUTPUT", "KUMA_MESH_OUTBOUND", "PROXY_INIT_REDIRECT", "CONSUL_PROXY_INBOUND"] {
        facts.redirections.node = Ok(vec![chain(name)]);
        assert_eq!(only(&examine(&facts), "node-rules").0, Level::Warning, "{name}");
    }
}
