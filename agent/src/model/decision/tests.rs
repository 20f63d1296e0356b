use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::model::values::InterfaceName;

/// An injected pod, to which a test adds what it is about.
#[derive(Clone, Default)]
struct Manifest {
    labels: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    spec: String,
    proxy: String,
    proxy_is_init: bool,
    more_init: String,
}

impl Manifest {
    fn injected() -> Self {
        Self::default().annotated(name::STATUS, "{}")
    }

    fn annotated(mut self, name: &str, value: &str) -> Self {
        self.annotations.push((name.to_owned(), value.to_owned()));
        self
    }

    fn labelled(mut self, value: &str) -> Self {
        self.labels.push((name::INJECT.to_owned(), value.to_owned()));
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.proxy = format!("{}, env: [{{name: {name}, value: {value:?}}}]", self.proxy);
        self
    }

    fn pod(&self) -> Pod {
        let map = |pairs: &[(String, String)]| {
            pairs.iter().map(|(name, value)| format!("{name:?}: {value:?}")).collect::<Vec<_>>().join(", ")
        };
        let proxy = format!("{{name: istio-proxy{}}}", self.proxy);
        let (init, containers) = if self.proxy_is_init { (proxy.as_str(), "") } else { ("", proxy.as_str()) };
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: cart, namespace: shop, labels: {{{}}}, \
             annotations: {{{}}}}}, spec: {{{} initContainers: [{init}{}], containers: [{{name: app}}, {containers}]}}}}",
            map(&self.labels),
            map(&self.annotations),
            self.spec,
            self.more_init,
        );
        Pod::from_manifest(text.as_bytes()).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    fn decide(&self) -> Result<Decision, PodErrors> {
        decide(&self.pod(), &NodeSettings::default())
    }

    fn passed(&self) -> PassReason {
        match self.decide() {
            Ok(Decision::Pass(reason)) => reason,
            other => panic!("expected a pass, got {other:?}"),
        }
    }

    fn captured(&self) -> Capture {
        match self.decide() {
            Ok(Decision::Capture(capture)) => *capture,
            other => panic!("expected a capture, got {other:?}"),
        }
    }

    fn errors(&self) -> PodErrors {
        self.decide().unwrap_err()
    }
}

fn ports(numbers: &[u16]) -> BTreeSet<Port> {
    numbers.iter().copied().map(Port::new).collect()
}

fn networks(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_pod_that_says_nothing_has_istios_defaults() {
    let capture = Manifest::injected().captured();
    let expected = Capture {
        proxy_uid: 1337,
        proxy_gid: 1337,
        ids: IdSpace::Node,
        mode: InterceptionMode::Redirect,
        inbound: InboundPorts::All { excluded: ports(&[15020, 15021, 15090]) },
        outbound: OutboundRanges::All,
        excluded_ranges: BTreeSet::new(),
        included_outbound_ports: BTreeSet::new(),
        excluded_outbound_ports: ports(&[15020]),
        excluded_interfaces: BTreeSet::new(),
        rerouted_interfaces: BTreeSet::new(),
        dns_capture: false,
        dual_stack: false,
        drop_invalid: false,
        owner_groups: OwnerGroups::AllExcept(BTreeSet::new()),
        loopback: "127.0.0.1/32".parse().unwrap(),
        proxy_identity: ProxyIdentity::Uid,
        before_proxy: BeforeProxy::Refuse,
        driver: Driver::Sidecar,
        presence: Presence::Full,
        warnings: vec![],
    };
    assert_eq!(capture, expected);
}

#[test]
fn every_annotation_has_its_effect() {
    let capture = Manifest::injected()
        .annotated(name::INTERCEPTION_MODE, "TPROXY")
        .annotated(name::INCLUDE_OUTBOUND_RANGES, "10.0.0.0/8,fd00::/8")
        .annotated(name::EXCLUDE_OUTBOUND_RANGES, "10.9.0.0/16")
        .annotated(name::EXCLUDE_INBOUND_PORTS, "9000")
        .annotated(name::INCLUDE_OUTBOUND_PORTS, "3306,443")
        .annotated(name::EXCLUDE_OUTBOUND_PORTS, "25")
        .annotated(name::EXCLUDE_INTERFACES, "net1")
        .annotated(name::REROUTE_INTERFACES, "tap0")
        .captured();
    assert_eq!(capture.mode, InterceptionMode::Tproxy);
    assert_eq!(capture.outbound, OutboundRanges::Only(networks(&["10.0.0.0/8", "fd00::/8"])));
    assert_eq!(capture.excluded_ranges, networks(&["10.9.0.0/16"]));
    assert_eq!(capture.inbound, InboundPorts::All { excluded: ports(&[9000, 15020, 15021, 15090]) });
    assert_eq!(capture.included_outbound_ports, ports(&[443, 3306]));
    assert_eq!(capture.excluded_outbound_ports, ports(&[25]), "the list replaces the default");
    assert_eq!(capture.excluded_interfaces, BTreeSet::from([InterfaceName::parse("net1").unwrap()]));
    assert_eq!(capture.rerouted_interfaces, BTreeSet::from([InterfaceName::parse("tap0").unwrap()]));
}

#[test]
fn an_empty_annotation_is_not_an_absent_one() {
    let capture = Manifest::injected()
        .annotated(name::INCLUDE_OUTBOUND_RANGES, "")
        .annotated(name::INCLUDE_INBOUND_PORTS, "")
        .annotated(name::EXCLUDE_OUTBOUND_PORTS, "")
        .captured();
    assert_eq!(capture.outbound, OutboundRanges::Only(BTreeSet::new()));
    assert_eq!(capture.inbound, InboundPorts::Only(BTreeSet::new()));
    assert_eq!(capture.excluded_outbound_ports, BTreeSet::new());
    let capture = Manifest::injected().annotated(name::EXCLUDE_INBOUND_PORTS, "").captured();
    assert_eq!(capture.inbound, InboundPorts::All { excluded: ports(&[15020, 15021, 15090]) });
}

#[test]
fn included_inbound_ports_make_the_excluded_irrelevant() {
    let manifest = Manifest::injected().annotated(name::INCLUDE_INBOUND_PORTS, "80,15021");
    let both = manifest.clone().annotated(name::EXCLUDE_INBOUND_PORTS, "80");
    assert_eq!(manifest.captured().inbound, InboundPorts::Only(ports(&[80, 15021])));
    assert_eq!(both.captured(), manifest.captured());
    let all = Manifest::injected().annotated(name::INCLUDE_INBOUND_PORTS, "*");
    assert_eq!(all.captured(), Manifest::injected().captured());
}

#[test]
fn the_former_name_of_rerouted_interfaces_counts_only_alone() {
    let former = Manifest::injected().annotated(name::KUBEVIRT_INTERFACES, "tap1");
    assert_eq!(former.captured().rerouted_interfaces.len(), 1);
    let both = former.annotated(name::REROUTE_INTERFACES, "");
    assert_eq!(both.captured().rerouted_interfaces.len(), 0, "the new one wins, even empty");
}

#[test]
fn the_proxys_identity_is_the_containers_own() {
    for (context, uid, gid) in [
        ("{}", 1337, 1337),
        ("{runAsUser: 0, runAsGroup: 0}", 1337, 1337),
        ("{runAsUser: 2102}", 2102, 1337),
        ("{runAsGroup: 2102}", 1337, 2102),
        ("{runAsUser: 0, runAsGroup: 1337}", 1337, 1337),
        ("{runAsUser: 4294967294}", 4_294_967_294, 1337),
    ] {
        let proxy = format!(", securityContext: {context}");
        // What the pod as a whole says is not asked.
        let spec = "securityContext: {runAsUser: 7, runAsGroup: 7},".to_owned();
        let capture = Manifest { spec, proxy, ..Manifest::injected() }.captured();
        assert_eq!((capture.proxy_uid, capture.proxy_gid), (uid, gid), "{context}");
    }
    let proxy = ", securityContext: {runAsUser: -1, runAsGroup: 4294967295}".to_owned();
    let errors = Manifest { proxy, ..Manifest::injected() }.errors();
    assert_eq!(
        errors.to_string(),
        "pod shop/cart: container istio-proxy: securityContext.runAsUser -1 is not an id 0-4294967294; \
         container istio-proxy: securityContext.runAsGroup 4294967295 is not an id 0-4294967294"
    );
}

#[test]
fn a_native_sidecar_is_a_sidecar() {
    let proxy = ", args: [proxy, sidecar], securityContext: {runAsUser: 2102}".to_owned();
    let capture = Manifest { proxy, proxy_is_init: true, ..Manifest::injected() }.captured();
    assert_eq!(capture.proxy_uid, 2102);
}

#[test]
fn ids_of_a_pod_with_its_own_user_namespace_are_marked() {
    let with = |spec: &str| Manifest { spec: spec.to_owned(), ..Manifest::injected() }.captured().ids;
    assert_eq!(with("hostUsers: false,"), IdSpace::Pod);
    assert_eq!(with("hostUsers: true,"), IdSpace::Node);
    assert_eq!(with("hostUsers: null,"), IdSpace::Node);
}

#[test]
fn switches_are_the_proxys_environment() {
    let with = |name: &str| Manifest::injected().env(name, "true").captured();
    assert!(with("ISTIO_META_DNS_CAPTURE").dns_capture);
    assert!(with("ISTIO_DUAL_STACK").dual_stack);
    assert!(with("INVALID_DROP").drop_invalid);
    assert_eq!(with("SOMETHING_ELSE"), Manifest::injected().captured());
}

#[test]
fn a_switch_that_is_no_boolean_is_false_and_warned_of() {
    for name in environment::ALL {
        let capture = Manifest::injected().env(name, "yes").captured();
        assert!(!capture.dns_capture && !capture.dual_stack && !capture.drop_invalid, "{name}");
        let warnings: Vec<_> = capture.warnings.iter().map(ToString::to_string).collect();
        let expected =
            format!("environment variable {name} of the proxy: \"yes\" is not a boolean, taken as false");
        assert_eq!(warnings, [expected]);
    }
}

#[test]
fn each_reason_to_pass_is_found() {
    let with_spec = |spec: &str| Manifest { spec: spec.to_owned(), ..Manifest::injected() };
    let with_proxy = |proxy: &str| Manifest { proxy: proxy.to_owned(), ..Manifest::injected() };
    let with_init = |init: &str| Manifest { more_init: init.to_owned(), ..Manifest::injected() };
    assert_eq!(with_spec("hostNetwork: true,").passed(), PassReason::HostNetwork);
    assert_eq!(Manifest::default().passed(), PassReason::NotInjected);
    assert_eq!(with_proxy(", args: [proxy, router]").passed(), PassReason::Gateway);
    assert_eq!(with_proxy(", args: [proxy, waypoint]").passed(), PassReason::Gateway);
    assert_eq!(with_init("{name: istio-init}").passed(), PassReason::IstioInitPresent);
    assert_eq!(Manifest::injected().env("DISABLE_ENVOY", "true").passed(), PassReason::EnvoyDisabled);
    let none = Manifest::injected().annotated(name::INTERCEPTION_MODE, "NONE");
    assert_eq!(none.passed(), PassReason::ModeNone);

    let mut pod = Manifest::injected().pod();
    pod.spec.containers.retain(|container| container.name != PROXY_CONTAINER);
    let decision = decide(&pod, &NodeSettings::default());
    assert_eq!(decision, Ok(Decision::Pass(PassReason::NoProxyContainer)));

    let node = NodeSettings { excluded_namespaces: ["shop".to_owned()].into(), ..NodeSettings::default() };
    let decision = decide(&Manifest::injected().pod(), &node);
    assert_eq!(decision, Ok(Decision::Pass(PassReason::NamespaceExcluded)));
}

#[test]
fn what_is_not_quite_a_reason_does_not_pass() {
    let with_proxy = |proxy: &str| Manifest { proxy: proxy.to_owned(), ..Manifest::injected() };
    for proxy in [
        "",
        ", args: [proxy]",
        ", args: [proxy, sidecar, --domain, x]",
        ", args: [router]",
        ", args: [x, router]",
    ] {
        with_proxy(proxy).captured();
    }
    Manifest::injected().env("DISABLE_ENVOY", "false").captured();
    Manifest { more_init: "{name: istio-validation}".to_owned(), ..Manifest::injected() }.captured();
    let node = NodeSettings { excluded_namespaces: ["sho".to_owned()].into(), ..NodeSettings::default() };
    assert!(matches!(decide(&Manifest::injected().pod(), &node), Ok(Decision::Capture(_))));
}

#[test]
fn the_label_on_injection_wins_and_what_is_unparsable_is_ignored() {
    let passes =
        |manifest: Manifest| matches!(manifest.decide(), Ok(Decision::Pass(PassReason::InjectFalse)));
    for value in ["0", "f", "F", "FALSE", "false", "False"] {
        assert!(passes(Manifest::injected().labelled(value)), "{value}");
        assert!(passes(Manifest::injected().annotated(name::INJECT, value)), "{value}");
    }
    for value in ["true", "", "no", "fALSE", " false"] {
        assert!(!passes(Manifest::injected().labelled(value)), "{value}");
        assert!(!passes(Manifest::injected().annotated(name::INJECT, value)), "{value}");
        let both = Manifest::injected().labelled(value).annotated(name::INJECT, "false");
        assert!(!passes(both), "a label of {value:?} hides the annotation, as with Istio");
    }
    assert!(passes(Manifest::injected().labelled("false").annotated(name::INJECT, "true")));
}

#[test]
fn reasons_are_tried_in_their_order() {
    // All of them at once; then each is taken away in turn.
    let proxy = ", args: [proxy, router], env: [{name: DISABLE_ENVOY, value: '1'}]".to_owned();
    let manifest = Manifest { proxy, more_init: "{name: istio-init}".into(), ..Manifest::default() }
        .labelled("false")
        .annotated(name::INTERCEPTION_MODE, "NONE");
    let mut pod = manifest.pod();
    pod.spec.host_network = true;
    let node = NodeSettings { excluded_namespaces: ["shop".to_owned()].into(), ..NodeSettings::default() };
    let mut found = vec![];
    let mut decide_with = |pod: &Pod, node: &NodeSettings| match decide(pod, node) {
        Ok(Decision::Pass(reason)) => found.push(reason),
        other => panic!("expected a pass, got {other:?}"),
    };

    let proxy = pod.spec.containers.pop().unwrap();
    decide_with(&pod, &node);
    pod.spec.host_network = false;
    decide_with(&pod, &node);
    let node = NodeSettings::default();
    decide_with(&pod, &node);
    pod.metadata.labels.clear();
    decide_with(&pod, &node);
    pod.metadata.annotations.insert(name::STATUS.to_owned(), String::new());
    decide_with(&pod, &node);
    pod.spec.containers.push(proxy);
    decide_with(&pod, &node);
    pod.spec.containers.iter_mut().for_each(|container| container.args.clear());
    decide_with(&pod, &node);
    pod.spec.init_containers.clear();
    decide_with(&pod, &node);
    pod.spec.containers.iter_mut().for_each(|container| container.env.clear());
    decide_with(&pod, &node);
    assert_eq!(found, PassReason::ALL);
}

#[test]
fn a_pod_that_is_passed_is_not_judged() {
    let bad = |manifest: Manifest| manifest.annotated(name::EXCLUDE_INBOUND_PORTS, "nonsense");
    assert_eq!(bad(Manifest::default()).passed(), PassReason::NotInjected);
    let none = Manifest::injected().annotated(name::INTERCEPTION_MODE, "NONE");
    assert_eq!(bad(none).passed(), PassReason::ModeNone);
    assert_eq!(bad(Manifest::injected().labelled("false")).passed(), PassReason::InjectFalse);
}

#[test]
fn all_errors_of_a_pod_are_told_at_once() {
    let errors = Manifest::injected()
        .annotated(name::INTERCEPTION_MODE, "redirect")
        .annotated(name::INCLUDE_OUTBOUND_RANGES, "10.0.0.1,10.0.0.0/8,*")
        .annotated(name::EXCLUDE_OUTBOUND_RANGES, "*")
        .annotated(name::EXCLUDE_INBOUND_PORTS, "80a")
        .annotated(name::EXCLUDE_OUTBOUND_PORTS, "80,")
        .annotated(name::INCLUDE_INBOUND_PORTS, "*,1")
        .annotated(name::KUBEVIRT_INTERFACES, "0")
        .errors();
    let texts: Vec<_> = errors.errors.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(texts.join("\n"), @r#"
    annotation sidecar.istio.io/interceptionMode: mode "redirect" is not REDIRECT, TPROXY or NONE
    annotation traffic.sidecar.istio.io/includeOutboundIPRanges: range "10.0.0.1" is not a CIDR such as 10.0.0.0/8, 10.1.2.3/32 or 2001:db8::/32 (in "10.0.0.1,10.0.0.0/8,*")
    annotation traffic.sidecar.istio.io/includeOutboundIPRanges: range "*" is not taken here, each range must be named as a CIDR such as 10.0.0.0/8 (in "10.0.0.1,10.0.0.0/8,*")
    annotation traffic.sidecar.istio.io/excludeOutboundIPRanges: range "*" is not taken here, each range must be named as a CIDR such as 10.0.0.0/8
    annotation traffic.sidecar.istio.io/includeInboundPorts: port "*" is not taken here, each port must be named as a number 0-65535 (in "*,1")
    annotation traffic.sidecar.istio.io/excludeInboundPorts: port "80a" is not a number 0-65535
    annotation traffic.sidecar.istio.io/excludeOutboundPorts: port "" is not a number 0-65535 (in "80,")
    annotation traffic.sidecar.istio.io/kubevirtInterfaces: interface "0" is not a name of 1-15 letters, digits, '_', '.' and '-' that begins with a letter
    "#);
    assert!(
        errors.to_string().starts_with("pod shop/cart: annotation sidecar.istio.io/interceptionMode: mode")
    );
}

#[test]
fn very_many_errors_are_cut_short_when_shown() {
    let value = ",".repeat(100_000);
    let errors = Manifest::injected().annotated(name::EXCLUDE_INBOUND_PORTS, &value).errors();
    let text = errors.to_string();
    assert!(text.ends_with("; and 99981 more"), "{text}");
    assert!(text.len() < 10_000);
}

#[test]
fn names_of_reasons_are_unique_words() {
    let mut names: Vec<_> = PassReason::ALL.iter().map(|reason| reason.name()).collect();
    assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), PassReason::ALL.len());
}

proptest! {
    #[test]
    fn whatever_the_annotations_hold_the_answer_is_no_panic(
        values in proptest::collection::vec("[0-9,*./: a-f-]{0,20}", 9),
    ) {
        let names = [
            name::INTERCEPTION_MODE, name::INCLUDE_OUTBOUND_RANGES, name::EXCLUDE_OUTBOUND_RANGES,
            name::INCLUDE_INBOUND_PORTS, name::EXCLUDE_INBOUND_PORTS, name::INCLUDE_OUTBOUND_PORTS,
            name::EXCLUDE_OUTBOUND_PORTS, name::EXCLUDE_INTERFACES, name::REROUTE_INTERFACES,
        ];
        let manifest = names.iter().zip(&values).fold(Manifest::injected(), |m, (name, value)| m.annotated(name, value));
        match manifest.decide() {
            Ok(Decision::Capture(_) | Decision::Pass(PassReason::ModeNone)) => {}
            Ok(Decision::Pass(reason)) => prop_assert!(false, "passed for {reason:?}"),
            Err(errors) => prop_assert!(!errors.errors.is_empty() && !errors.to_string().contains('\n')),
        }
    }
}

/// A pod without any sidecar that asks for the node's proxy.
fn by_the_node(metadata: &str, spec: &str) -> Result<Decision, PodErrors> {
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: cart, labels: {{veer.dev/proxy: node}}{metadata}}}, \
         spec: {{{spec}}}}}"
    );
    decide(&Pod::from_manifest(text.as_bytes()).unwrap(), &NodeSettings::default())
}

#[test]
fn the_nodes_proxy_serves_who_asks_for_it_and_has_none_of_his_own() {
    let Ok(Decision::Capture(capture)) = by_the_node("", "containers: [{name: app}], hostUsers: false")
    else {
        panic!("it is not captured")
    };
    assert_eq!((capture.driver, capture.dual_stack, capture.ids), (Driver::Node, true, IdSpace::Node));
    assert_eq!((capture.proxy_uid, capture.proxy_gid), (1337, 1337));

    let injected = ", annotations: {sidecar.istio.io/status: '{}'}";
    let Ok(Decision::Capture(capture)) = by_the_node(injected, "containers: [{name: istio-proxy}]") else {
        panic!("it is not captured")
    };
    assert_eq!(capture.driver, Driver::Sidecar);

    let init = "initContainers: [{name: istio-init}]";
    assert_eq!(by_the_node("", init), Ok(Decision::Pass(PassReason::IstioInitPresent)));
    assert_eq!(by_the_node("", "hostNetwork: true"), Ok(Decision::Pass(PassReason::HostNetwork)));
}

#[test]
fn the_nodes_proxy_does_not_do_tproxy_and_says_so() {
    let mode = ", annotations: {sidecar.istio.io/interceptionMode: TPROXY}";
    assert_eq!(
        by_the_node(mode, "").unwrap_err().to_string(),
        "pod default/cart: annotation sidecar.istio.io/interceptionMode: TPROXY needs a sidecar, and label \
         veer.dev/proxy of the pod or its namespace asks for the node's proxy: remove one of them"
    );
}
