//! The kit's CNI runtime with the real plugins of the CNI project.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;
use veer_tests::cni::{Attachment, NetworkList, PluginError, Runtime};
use veer_tests::netns::{self, NetNs};
use veer_tests::scratch;

fn attachment(container_id: &str, netns: PathBuf) -> Attachment {
    let arguments = vec![("IgnoreUnknown".to_owned(), "1".to_owned())];
    Attachment { container_id: container_id.to_owned(), netns, interface: "eth0".to_owned(), arguments }
}

fn network(data_dir: &Path) -> NetworkList {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "kit",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": data_dir,
                    "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
        ],
    });
    serde_json::from_value(list).unwrap()
}

#[test]
fn a_chain_attaches_checks_and_detaches_two_pods_that_reach_each_other() {
    let scratch = scratch::directory().unwrap();
    let (node, a, b) = (NetNs::new().unwrap(), NetNs::new().unwrap(), NetNs::new().unwrap());
    let runtime = Runtime::new(&node, &[]);
    let list = network(&scratch.path().join("ipam"));
    let (for_a, for_b) = (attachment("a", a.path()), attachment("b", b.path()));
    let added = runtime.add(&list, &for_a).unwrap();
    let second = runtime.add(&list, &for_b).unwrap();
    assert_eq!(added.result["ips"][0]["address"], "10.88.0.2/24", "{}", added.result);
    let plugins: Vec<_> = added.took.iter().map(|(plugin, _)| plugin.as_str()).collect();
    assert_eq!(plugins, ["bridge", "tuning"]);
    runtime.check(&list, &for_a, &added.result).unwrap();

    for (index, prefix) in [(0, "/24"), (1, "/64")] {
        let address = second.result["ips"][index]["address"].as_str().unwrap();
        let ip = address.strip_suffix(prefix).unwrap().parse().unwrap();
        let listener = b.run(|| std::net::TcpListener::bind(SocketAddr::new(ip, 0))).unwrap().unwrap();
        let to = listener.local_addr().unwrap();
        a.run(|| std::net::TcpStream::connect(to)).unwrap().unwrap();
    }

    runtime.del(&list, &for_a, Some(&added.result)).unwrap();
    runtime.del(&list, &for_b, None).unwrap();
    assert_eq!(
        a.run(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap().unwrap().matches(':').count(),
        1
    );
}

#[test]
fn a_plugins_error_keeps_its_code() {
    let scratch = scratch::directory().unwrap();
    let node = NetNs::new().unwrap();
    let runtime = Runtime::new(&node, &[]);
    let gone = attachment("gone", netns::DIRECTORY.into());
    let error = runtime.add(&network(&scratch.path().join("ipam")), &gone).unwrap_err();
    assert!(error.downcast_ref::<PluginError>().is_some(), "{error:#}");
    assert!(format!("{error:#}").starts_with("ADD of bridge for gone: code "), "{error:#}");
}

#[test]
fn a_plugin_that_is_not_there_is_named() {
    let node = NetNs::new().unwrap();
    let list =
        serde_json::from_value(json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "x"}]}));
    let error = Runtime::new(&node, &[]).add(&list.unwrap(), &attachment("a", node.path())).unwrap_err();
    assert!(error.to_string().starts_with("no plugin x in "), "{error:#}");
}
