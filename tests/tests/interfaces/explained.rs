//! What `veer explain` says of interfaces.

use serde_json::Value;
use veer_tests::mesh::Mesh;

fn explain(mesh: &Mesh, flags: &[&str]) -> Value {
    mesh.agent.json(&[&["explain", "test/pod"], flags].concat()).unwrap()
}

fn field<'a>(report: &'a Value, name: &str) -> &'a str {
    report.get(name).and_then(Value::as_str).unwrap()
}

#[test]
fn an_excluded_interface_is_told_with_the_route_that_leads_out_of_it() {
    let mesh = Mesh::with(|manifest| manifest.with_traffic("excludeInterfaces", "eth0,net9")).unwrap();
    let because = "annotation traffic.sidecar.istio.io/excludeInterfaces=\"eth0,net9\"";
    let rows: [(&[&str], &str); 4] = [
        (
            &["--to=192.0.2.1:80"],
            "192.0.2.1 is reached by eth0 (route 0.0.0.0/0), which is one of eth0, net9",
        ),
        (
            &["--to=[2001:db8::1]:80"],
            "2001:db8::1 is reached by eth0 (route ::/0), which is one of eth0, net9",
        ),
        (
            &["--to=192.0.2.1:80", "--interface=eth0"],
            "the socket is tied to eth0, which is one of eth0, net9",
        ),
        (
            &["--from=192.0.2.1", "--port=80", "--interface=eth0"],
            "it arrived on eth0, which is one of eth0, net9",
        ),
    ];
    for (flags, compared) in rows {
        let report = explain(&mesh, flags);
        assert_eq!(field(&report, "compared"), compared, "{report}");
        let cause = report.pointer("/because/0/text").and_then(Value::as_str);
        assert_eq!(cause, Some(because), "{report}");
    }
    for flags in [&["--to=192.0.2.1:80", "--interface=net1"][..], &["--from=192.0.2.1", "--port=80"]] {
        let report = explain(&mesh, flags);
        assert!(field(&report, "reason").starts_with("all-"), "{report}");
    }
    let gone =
        mesh.agent.json(&["explain", "test/pod", "--to=192.0.2.1:80", "--interface=net9"]).unwrap_err();
    assert!(gone.to_string().contains("its netns has no such interface now"), "{gone}");
}
