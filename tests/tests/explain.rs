//! `veer explain`: what it says of a connection is what the kernel did with it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Stdio;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::launch::{Identity, Launch};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, Mesh, connect, dual_stack, tcp};
use veer_tests::monitor::Monitor;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod, World};
use veer_tests::socket_maker::Maker;

/// How a command ended: its exit code, and what it wrote to either output.
#[derive(Debug)]
struct Ended {
    code: i32,
    out: String,
    errors: String,
}

fn say(agent: &Agent, arguments: &[&str], input: &str) -> Ended {
    let mut command = agent.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may have ended before it has read all.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code().unwrap(), out: text(output.stdout), errors: text(output.stderr) }
}

/// The text that a command prints, which must succeed.
#[track_caller]
fn text(agent: &Agent, arguments: &[&str]) -> String {
    let ended = say(agent, &[&["explain"], arguments].concat(), "");
    assert_eq!((ended.code, ended.errors.as_str()), (0, ""), "{arguments:?}");
    ended.out
}

/// The texts behind a label, each in one line.
fn labelled(text: &str, label: &str) -> Vec<String> {
    let joined = text.replace("\n          ", " ");
    let texts = joined.lines().filter_map(|line| line.strip_prefix(label));
    texts.map(|text| text.trim_start().to_owned()).collect()
}

/// Pods that between them have every kind of list.
fn manifests() -> [fn(Manifest) -> Manifest; 6] {
    [
        |manifest| manifest,
        |manifest| {
            manifest
                .with_traffic("includeOutboundIPRanges", "192.0.2.0/24,2001:db8::/32")
                .with_traffic("excludeOutboundIPRanges", "192.0.2.1/32")
                .with_traffic("includeOutboundPorts", "443,9001")
                .with_traffic("excludeOutboundPorts", "25")
                .with_traffic("includeInboundPorts", "8080")
        },
        |manifest| {
            manifest
                .with_traffic("includeOutboundIPRanges", "127.0.0.2/32,10.77.0.0/16")
                .with_traffic("excludeInboundPorts", "8080")
        },
        |manifest| manifest.with_proxy_env("ISTIO_DUAL_STACK", "false"),
        |manifest| manifest.with_annotation("sidecar.istio.io/interceptionMode", "TPROXY"),
        |manifest| manifest.with_traffic("excludeInterfaces", "eth0"),
    ]
}

/// Dials everything from everybody, and tells how many decisions that makes.
fn dial_all(mesh: &Mesh, makers: &[&Maker]) -> usize {
    let pod = &mesh.pod;
    let addresses: [IpAddr; 11] = [
        REMOTE_V4.into(),
        REMOTE_V6.into(),
        "198.51.100.1".parse().unwrap(),
        pod.v4().into(),
        pod.v6().into(),
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 0, 0, 2).into(),
        Ipv4Addr::new(127, 0, 0, 6).into(),
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv6Addr::UNSPECIFIED.into(),
    ];
    let mut decisions = 0;
    for maker in makers {
        for address in addresses {
            for port in [25, 443, APP, 15008] {
                let to = SocketAddr::new(address, port);
                begin(&tcp(maker, to).unwrap(), to);
                decisions += 1;
            }
            let Ok(passthrough) = passthrough(maker, address) else { continue };
            begin(&passthrough, SocketAddr::new(address, APP));
            decisions += 1;
        }
    }
    decisions
}

/// Begins to connect. Where that ends is not the question: most of it goes nowhere.
fn begin(socket: &Socket, to: SocketAddr) {
    socket.set_nonblocking(true).unwrap();
    drop(socket.connect(&to.into()));
}

/// A socket that is bound as the proxy's to its app is, for the family of an address.
fn passthrough(maker: &Maker, address: IpAddr) -> std::io::Result<Socket> {
    let source = if address.is_ipv4() { IpAddr::from([127, 0, 0, 6]) } else { "::6".parse().unwrap() };
    let source = SocketAddr::new(source, 0);
    let socket = tcp(maker, source).unwrap();
    socket.bind(&source.into())?;
    Ok(socket)
}

/// Dials ports of the pod from the world; what nobody listens at is refused.
fn dial_from_outside(mesh: &Mesh) -> usize {
    let ports = [22, APP, 15008, 15020];
    for own in [IpAddr::from(mesh.pod.v4()), mesh.pod.v6().into()] {
        for port in ports {
            let to = SocketAddr::new(own, port);
            let socket = mesh.world.socket(Domain::for_address(to), Type::STREAM, None).unwrap();
            drop(connect(&socket, to));
        }
    }
    2 * ports.len()
}

/// The flags that ask about the connection of a decision.
fn flags_of(decision: &Value) -> Vec<String> {
    let field = |name: &str| decision[name].as_str().unwrap().to_owned();
    let source = field("source");
    let destination = field("destination");
    let mut flags = vec!["explain".to_owned(), field("pod"), "--json".to_owned()];
    if field("direction") == "inbound" {
        let (from, at): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
        flags.extend([format!("--from={}", from.ip()), format!("--port={}", at.port())]);
        flags.push(format!("--at={}", at.ip()));
        // The index is of the pod's only one.
        flags.extend(decision.get("interface").map(|_index| "--interface=eth0".to_owned()));
    } else {
        flags.push(format!("--to={destination}"));
        flags.push(format!("--as={}:{}", decision["uid"], decision["gid"]));
        let source = source.parse::<SocketAddr>().map_or(source, |source| source.ip().to_string());
        if !matches!(source.as_str(), "0.0.0.0" | "::") {
            flags.push(format!("--source={source}"));
        }
    }
    flags
}

/// Opens connections of all kinds, and compares what is told of each with what the kernel did. Adds the
/// reasons that there were.
fn compare(mesh: &Mesh, reasons: &mut BTreeSet<String>) {
    let _proxy = mesh.proxy_listeners().unwrap();
    let by_gid = mesh.pod.maker(Identity::new(1000, 1337)).unwrap();
    let by_uid = mesh.pod.maker(Identity::new(1337, 1000)).unwrap();
    let monitor = Monitor::start(&mesh.agent, &["--json"]).unwrap();
    let mut count = dial_all(mesh, &[mesh.pod.app(), mesh.pod.proxy(), &by_gid, &by_uid]);
    count += dial_from_outside(mesh);
    let decisions = monitor.wait_for_decisions(count).unwrap();
    assert_eq!(decisions.len(), count, "each connection is one decision");

    let lines = monitor.lines().unwrap().join("\n");
    let ended = say(&mesh.agent, &["explain", "--event=-", "--json"], &lines);
    assert_eq!((ended.code, ended.errors.as_str()), (0, ""));
    let reports: Vec<Value> = ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.len(), count);
    for (decision, report) in decisions.iter().zip(&reports) {
        let said = (&report["reason"], &report["action"], &report["observed"]);
        assert_eq!(said, (&decision["reason"], &decision["action"], &decision["reason"]), "{decision}");
        assert_eq!(report["notes"], json!([]), "{decision}");
        assert!(!report["because"].as_array().unwrap().is_empty(), "{report}");
        reasons.insert(decision["reason"].as_str().unwrap().to_owned());
    }
    // The same by flags; each ninth is plenty, as it takes a process each.
    for decision in decisions.iter().step_by(9) {
        let flags = flags_of(decision);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let ended = say(&mesh.agent, &flags, "");
        let report: Value = serde_json::from_str(&ended.out).unwrap_or_default();
        assert_eq!(report["reason"], decision["reason"], "{decision} {flags:?} {}", ended.errors);
    }
}

#[test]
fn for_every_connection_the_explained_reason_is_the_kernels() {
    let mut reasons = BTreeSet::new();
    for manifest in manifests() {
        compare(&Mesh::with(manifest).unwrap(), &mut reasons);
    }
    let expected = [
        "all-inbound",
        "all-outbound",
        "app-to-own-address",
        "excluded-inbound-port",
        "excluded-interface",
        "excluded-interface-inbound",
        "excluded-port",
        "excluded-range",
        "included-inbound-port",
        "included-port",
        "included-range",
        "ipv6-not-captured",
        "ipv6-not-captured-inbound",
        "localhost",
        "not-included",
        "not-included-inbound",
        "passthrough-source",
        "proxy",
        "proxy-group",
        "proxy-to-own-address",
        "tunnel-port",
    ];
    assert_eq!(reasons.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn for_people_the_verdict_comes_first_and_the_rules_before_it_in_their_order() {
    let mesh =
        Mesh::with(|manifest| manifest.with_traffic("excludeOutboundIPRanges", "198.51.100.0/24")).unwrap();
    assert_eq!(
        text(&mesh.agent, &["test/pod", "--to=192.0.2.1:443"]),
        "\
test/pod -> 192.0.2.1:443 as 1000:1000
verdict   to-outbound: to the proxy's outbound port 15001
reason    all-outbound: all addresses are captured
matched   the pod includes *, all addresses
because   traffic.sidecar.istio.io/includeOutboundIPRanges is absent: default \"*\"
note      1000:1000 stands for anybody who is not the proxy; --as UID:GID asks for another
looked at before, none of which matched:
  1  excluded-interface    the pod excludes no interface
  2  excluded-port         port 443 is none of 15020
  3  proxy                 uid 1000 is not the proxy's, 1337
  4  proxy-group           gid 1000 is not the proxy's, 1337
  5  owner-group           the node captures all groups
  6  before-proxy          the node refuses what comes before the proxy
  7  dns                   port 443 is not 53
  8  localhost             192.0.2.1 is not 127.0.0.1 or ::1
  9  no-address-of-family  the pod has the IPv4 address 10.77.0.2
 10  ipv6-not-captured     192.0.2.1 is IPv4
 11  excluded-range        192.0.2.1 is in none of 198.51.100.0/24
 12  included-port         the pod includes no outbound port
"
    );
    assert_eq!(
        text(&mesh.agent, &["test/pod", "--from=10.77.0.1", "--port=15021"]),
        "\
10.77.0.1 -> test/pod at 10.77.0.2:15021
verdict   direct: where it was dialled
reason    excluded-inbound-port: the port is excluded, or one of the proxy's own
matched   port 15021 is one of 15020-15021, 15090
because   15020, 15021 and 15090 are the proxy's own
looked at before, none of which matched:
  1  within-pod                  neither 10.77.0.1 nor 10.77.0.2 is loopback, and 10.77.0.1 is no
                                 address of the pod's netns
  2  ipv6-not-captured-inbound   10.77.0.2 is IPv4
  3  rerouted-interface          the pod reroutes no interface
  4  rerouted-not-included       the pod reroutes no interface
  5  excluded-interface-inbound  the pod excludes no interface
  6  tunnel-port                 15021 is not the tunnel port 15008
"
    );
}

#[test]
fn the_cause_is_what_stands_on_the_pod() {
    let mesh = Mesh::with(|manifest| {
        manifest.with_traffic("excludeOutboundPorts", "25").with_traffic("includeInboundPorts", "8080")
    })
    .unwrap();
    let rows: [(&[&str], &[&str]); 6] = [
        (&["--to=192.0.2.1:25"], &["annotation traffic.sidecar.istio.io/excludeOutboundPorts=\"25\""]),
        (&["--to=192.0.2.1:80", "--as=1337:0"], &["container istio-proxy: securityContext.runAsUser 1337"]),
        (
            &["--to=10.77.0.2:80"],
            &[
                "10.77.0.2 is an address of the pod's netns",
                "traffic.sidecar.istio.io/includeOutboundIPRanges is absent: default \"*\"",
            ],
        ),
        (&["--to=[::1]:80", "--source=::6"], &["127.0.0.6 and ::6 are the proxy's towards its app"]),
        (
            &["--from=192.0.2.1", "--port=80"],
            &["annotation traffic.sidecar.istio.io/includeInboundPorts=\"8080\""],
        ),
        (&["--from=10.77.0.2", "--port=80"], &["10.77.0.2 is an address of the pod's netns"]),
    ];
    for (flags, causes) in rows {
        let text = text(&mesh.agent, &[&["test/pod"], flags].concat());
        assert_eq!(labelled(&text, "because"), causes, "{flags:?}\n{text}");
    }
}

#[test]
fn a_manifest_that_changed_is_told_and_what_it_said_then_is_the_cause() {
    let mut mesh = Mesh::with(|manifest| manifest.with_traffic("excludeOutboundPorts", "25")).unwrap();
    let asked = ["test/pod", "--to=192.0.2.1:25", "--as=0:0"];
    let then = "annotation traffic.sidecar.istio.io/excludeOutboundPorts=\"25\"";
    assert_eq!(labelled(&text(&mesh.agent, &asked), "note"), [""; 0]);
    // An agent that has not enrolled the pod itself reads its manifest again.
    mesh.agent.stop().unwrap();
    mesh.agent.start_again().unwrap();
    let told = text(&mesh.agent, &asked);
    assert_eq!(
        (labelled(&told, "because"), labelled(&told, "note")),
        (vec![then.to_owned()], vec![]),
        "{told}"
    );

    let pod = dual_stack(&mesh.pod).with_traffic("excludeOutboundPorts", "26");
    mesh.agent.write_manifest(&pod).unwrap();
    let told = text(&mesh.agent, &asked);
    let now = "annotation traffic.sidecar.istio.io/excludeOutboundPorts=\"26\"";
    assert_eq!(
        labelled(&told, "reason"),
        ["excluded-port: the port is excluded, which binds the proxy, too"]
    );
    let cause = format!("what the manifest said then; now it says {now}");
    assert!(labelled(&told, "because")[0].ends_with(&cause), "{told}");
    assert!(labelled(&told, "note")[0].starts_with("the manifest has changed since the pod was enrolled"));

    // A second ADD, as an installer that is in the chain twice makes it, takes the new one over.
    mesh.agent.enrol_as(&mesh.pod, &pod).unwrap();
    let told = text(&mesh.agent, &["test/pod", "--to=192.0.2.1:26", "--as=0:0"]);
    assert_eq!(
        (labelled(&told, "because"), labelled(&told, "note")),
        (vec![now.to_owned()], vec![]),
        "{told}"
    );
    // This agent knows what the manifest said, whatever becomes of that.
    mesh.agent.write_manifest(&dual_stack(&mesh.pod)).unwrap();
    let told = text(&mesh.agent, &["test/pod", "--to=192.0.2.1:26", "--as=0:0"]);
    assert_eq!(
        (labelled(&told, "because"), labelled(&told, "note").len()),
        (vec![now.to_owned()], 1),
        "{told}"
    );
}

#[test]
fn without_an_agent_the_verdict_is_told_and_its_cause_is_not() {
    let mut mesh = Mesh::new().unwrap();
    mesh.agent.kill().unwrap();
    let told = text(&mesh.agent, &["test/pod", "--to=192.0.2.1:80", "--as=0:0"]);
    assert_eq!(labelled(&told, "reason"), ["all-outbound: all addresses are captured"]);
    assert!(labelled(&told, "because")[0].starts_with("cause unknown"), "{told}");
    assert!(labelled(&told, "note")[0].starts_with("only the agent knows the causes"), "{told}");
    let ended = say(&mesh.agent, &["explain", "test/none", "--to=192.0.2.1:80"], "");
    assert_eq!(ended.code, 69);
    assert!(ended.errors.contains("is `veer agent` running?"), "{}", ended.errors);
}

#[test]
fn a_pod_that_is_left_alone_is_told_why() {
    let mesh = Mesh::not_enrolled().unwrap();
    let manifest = mesh.pod.manifest();
    let rows = [
        (
            manifest.clone().without_annotation("sidecar.istio.io/status"),
            "not-injected: it has no annotation",
        ),
        (manifest.clone().with_label("sidecar.istio.io/inject", "false"), "inject-false: its label"),
        (
            manifest.clone().with_annotation("sidecar.istio.io/interceptionMode", "NONE"),
            "mode-none: its annotation sidecar.istio.io/interceptionMode is NONE",
        ),
        (
            manifest.clone().with_traffic("excludeOutboundPorts", "x"),
            "invalid-annotations: its ADD is refused",
        ),
        (manifest, "not-enrolled: its manifest asks for capture"),
    ];
    for (manifest, reason) in rows {
        mesh.agent.write_manifest(&manifest).unwrap();
        for flags in [&["--to=192.0.2.1:80"][..], &["--from=192.0.2.1", "--port=80"]] {
            let told = text(&mesh.agent, &[&["test/pod"], flags].concat());
            assert!(told.contains(&format!("\nreason    {reason}")), "{reason}: {told}");
            assert!(told.contains("\nverdict   direct: where it was dialled\n"), "{told}");
        }
    }
    let told = text(&mesh.agent, &["kube-system/dns", "--to=192.0.2.1:80"]);
    assert!(told.contains("namespace-excluded: its namespace is excluded on this node"), "{told}");
}

#[test]
fn a_refused_connection_is_told_with_what_refused_it() {
    let mesh = Mesh::new().unwrap();
    let monitor = Monitor::start(&mesh.agent, &[]).unwrap();
    let socket = mesh.world.tcp4().unwrap();
    connect(&socket, (mesh.pod.v4(), APP)).unwrap_err();
    let line = monitor.wait_for_lines(1).unwrap().remove(0);
    assert!(line.ends_with("drop (no-listener)"), "{line}");
    let told = text(&mesh.agent, &["--event", &line]);
    assert_eq!(labelled(&told, "reason"), ["all-inbound: all ports are captured"]);
    let refused =
        "this connection was refused all the same (no-listener): nobody listened on the proxy's port";
    assert_eq!(labelled(&told, "note"), [refused]);
}

#[test]
fn a_wrong_question_is_64_and_an_unknown_pod_69_with_the_way_out() {
    let mesh = Mesh::new().unwrap();
    let rows: [(&[&str], i32, &str); 12] = [
        (&["test/none", "--to=192.0.2.1:80"], 69, "`veer pods` lists those that are enrolled"),
        (&["pod", "--to=192.0.2.1:80"], 64, "pod \"pod\" is not NAMESPACE/NAME"),
        (&["test/pod"], 64, "what is to be explained: --to IP:PORT, or"),
        (&["test/pod", "--to=192.0.2.1"], 64, "--to: \"192.0.2.1\" is not IP:PORT or [IP]:PORT"),
        (&["test/pod", "--to=::1:80x"], 64, "--to: \"::1:80x\" is not"),
        (&["test/pod", "--to=192.0.2.1:80", "--as=app"], 64, "--as: \"app\" is not UID:GID"),
        (&["test/pod", "--to=192.0.2.1:80", "--source=::1"], 64, "are of two families"),
        (&["test/pod", "--to=192.0.2.1:80", "--from=192.0.2.1"], 64, "cannot be used with"),
        (&["test/pod", "--from=192.0.2.1"], 64, "--port"),
        (&["--event=nonsense"], 64, "is no line of `veer monitor`"),
        (&["--event={}"], 64, "missing field `pod`"),
        (&["test/pod", "--event=-"], 64, "cannot be used with"),
    ];
    for (flags, code, expected) in rows {
        let ended = say(&mesh.agent, &[&["explain"], flags].concat(), "");
        assert_eq!((ended.code, ended.out.as_str()), (code, ""), "{flags:?}: {}", ended.errors);
        assert!(ended.errors.contains(expected), "{flags:?}: {}", ended.errors);
    }
    let both = say(&mesh.agent, &["explain", "pod", "--to=x", "--as=y"], "").errors;
    assert_eq!(both.lines().count(), 3, "all errors at once: {both}");
}

#[test]
fn a_nodes_settings_are_a_cause_like_a_pods() {
    let cgroup = Cgroup::new().unwrap();
    let arguments = ["--outbound-owner-groups-exclude=1000,3001", "--host-ipv4-loopback-cidr=127.0.0.0/29"];
    let agent = Agent::start_with(&cgroup, Launch::new(), &arguments).unwrap();
    let world = World::new().unwrap();
    let pod = TestPod::new(&world, &cgroup, "pod").unwrap();
    let manifest = dual_stack(&pod).with_traffic("includeOutboundIPRanges", "127.0.0.0/8,0.0.0.0/0");
    agent.enrol_as(&pod, &manifest).unwrap();
    let mesh = Mesh { agent, pod, world, cgroup };
    let mut reasons = BTreeSet::new();
    compare(&mesh, &mut reasons);
    assert!(reasons.contains("owner-group"), "{reasons:?}");

    let told = text(&mesh.agent, &["test/pod", "--to=192.0.2.1:80", "--as=0:3001"]);
    assert_eq!(labelled(&told, "matched"), ["gid 3001 is one of the groups that are left alone: 1000, 3001"]);
    assert_eq!(labelled(&told, "because"), ["the node's agent: --outbound-owner-groups-exclude=1000,3001"]);
    let told = text(&mesh.agent, &["test/pod", "--to=127.0.0.2:80", "--as=0:0"]);
    assert_eq!(labelled(&told, "matched"), ["127.0.0.2 is in 127.0.0.0/29 or ::1"]);
    let causes = ["localhost is never captured", "the node's agent: --host-ipv4-loopback-cidr=127.0.0.0/29"];
    assert_eq!(labelled(&told, "because"), causes);
}

#[test]
fn udp_is_told_to_be_left_alone_where_dns_is_not_captured() {
    let mesh = Mesh::new().unwrap();
    let told = text(&mesh.agent, &["test/pod", "--to=192.0.2.1:53", "--as=0:0", "--protocol=udp"]);
    assert_eq!(
        told,
        "\
test/pod -> 192.0.2.1:53 by UDP as 0:0
verdict   direct: where it was dialled
reason    not-dns: UDP, of which DNS alone is captured, where the pod says so
matched   port 53 is DNS, which the pod does not capture
because   ISTIO_META_DNS_CAPTURE is absent: default \"false\"
"
    );
    let told = text(&mesh.agent, &["test/pod", "--from=192.0.2.1", "--port=53", "--protocol=udp"]);
    assert!(told.contains("\nverdict   direct: where it was dialled\n"), "{told}");
}
