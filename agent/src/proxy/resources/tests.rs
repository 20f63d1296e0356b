use super::*;
use crate::platform::netns::NetnsId;

fn pod(name: &str, has_v6: bool) -> ProxiedPod {
    ProxiedPod {
        cookie: 4711,
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        netns_path: "/run/netns/cni-1".to_owned(),
        uid: None,
        container_id: String::new(),
        service_account: None,
        netns: NetnsId { device: 4, inode: 5 },
        has_v6,
        driver: crate::model::Driver::Node,
    }
}

#[test]
fn versions_are_the_same_each_time_and_others_where_the_pod_is_another() {
    let versions = |pod: &ProxiedPod| {
        let Resources { clusters, listeners } = Resources::of(pod, &UserConfig::default());
        clusters.into_iter().chain(listeners).map(|resource| resource.version).collect::<Vec<_>>()
    };
    let cart = versions(&pod("cart-1", true));
    for _ in 0..20 {
        assert_eq!(versions(&pod("cart-1", true)), cart);
    }
    for (version, other) in cart.iter().zip(versions(&pod("cart-2", true))) {
        assert_ne!(*version, other);
    }
    for (version, other) in cart.iter().zip(versions(&pod("cart-1", false))) {
        assert_ne!(*version, other);
    }
}

#[test]
fn a_netns_is_named_as_it_is_found_without_the_link_of_var_run() {
    let by_the_link = ProxiedPod { netns_path: "/var/run/netns/cni-1".to_owned(), ..pod("cart-1", true) };
    assert_eq!(address(&by_the_link, "0.0.0.0", 15001), address(&pod("cart-1", true), "0.0.0.0", 15001));
    let elsewhere = ProxiedPod { netns_path: "/srv/netns/cni-1".to_owned(), ..by_the_link };
    assert_eq!(socket_address(&elsewhere, "::", 15001).network_namespace_filepath, "/srv/netns/cni-1");
}
