use envoy_types::pb::envoy::config::listener::v3::{Filter, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::Route;
use envoy_types::pb::envoy::extensions::filters::http::lua::v3::Lua;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
};

use super::super::resources::Resources;
use super::*;
use crate::model::Driver;
use crate::platform::netns::NetnsId;

const LUA: &str = r#"
direction: inbound
resources:
- "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter
  name: hello
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
    default_source_code:
      inline_string: |
        function envoy_on_request(handle)
          handle:headers():add("x-pod", "${POD_NAMESPACE}/${POD_NAME}")
        end
    source_codes:
      zebra: {inline_string: z}
      ant: {inline_string: a}
      mouse: {inline_string: m}
- "@type": type.googleapis.com/envoy.config.route.v3.Route
  match: {prefix: /slow}
  route: {cluster: "${POD_CLUSTER}", timeout: 2.5s}
  response_headers_to_add: [{header: {key: x-way, value: "${DIRECTION}"}}]
"#;

fn pod(name: &str) -> ProxiedPod {
    ProxiedPod {
        cookie: 7,
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        netns_path: "/run/netns/x".to_owned(),
        has_v6: true,
        uid: None,
        container_id: String::new(),
        service_account: None,
        netns: NetnsId { device: 4, inode: 5 },
        driver: Driver::Node,
    }
}

/// The filters and the routes for requests in a listener.
fn http_of(listener: &Resource) -> (Vec<HttpFilter>, Vec<Route>) {
    let listener = Listener::decode(&*listener.content.value).unwrap();
    let chain = listener.filter_chains.iter().find(|chain| chain.name == "http").unwrap();
    let last = chain.filters.last().unwrap();
    let Some(filter::ConfigType::TypedConfig(manager)) = &last.config_type else { panic!("no config") };
    let manager = HttpConnectionManager::decode(&*manager.value).unwrap();
    let Some(http_connection_manager::RouteSpecifier::RouteConfig(routes)) = manager.route_specifier else {
        panic!("no routes")
    };
    (manager.http_filters, routes.virtual_hosts[0].routes.clone())
}

#[test]
fn filters_and_routes_come_before_ours_in_their_direction_and_know_the_pod() {
    let config = read_one(LUA).unwrap();
    let listeners = Resources::of(&pod("cart.v1"), &config).listeners;
    let [outbound, inbound] = [&listeners[0], &listeners[1]].map(http_of);
    assert_eq!((outbound.0.len(), outbound.1.len()), (1, 1));
    let (filters, routes) = inbound;
    let names: Vec<&str> = filters.iter().map(|filter| filter.name.as_str()).collect();
    assert_eq!(names, ["hello", "envoy.filters.http.router"]);
    let Some(http_filter::ConfigType::TypedConfig(lua)) = &filters[0].config_type else {
        panic!("no config")
    };
    assert_eq!(lua.type_url, "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua");
    let lua = Lua::decode(&*lua.value).unwrap();
    assert!(format!("{lua:?}").contains("\\\"shop/cart.v1\\\""), "{lua:?}");
    assert_eq!(lua.source_codes.len(), 3);
    assert_eq!(routes.len(), 2);
    let route = format!("{:?}", routes[0]);
    for expected in ["inbound|shop/cart.v1|7", "Duration { seconds: 2, nanos: 500000000 }", "\"inbound\""] {
        assert!(route.contains(expected), "{route}");
    }
}

#[test]
fn the_same_files_are_the_same_version_each_time_they_are_read() {
    let versions = |text: &str, name: &str| {
        let listeners = Resources::of(&pod(name), &read_one(text).unwrap()).listeners;
        listeners.into_iter().map(|listener| listener.version).collect::<Vec<_>>()
    };
    let once = versions(LUA, "cart");
    for _ in 0..10 {
        assert_eq!(versions(LUA, "cart"), once);
    }
    let plain: Vec<String> = Resources::of(&pod("cart"), &UserConfig::default())
        .listeners
        .into_iter()
        .map(|one| one.version)
        .collect();
    assert!(once[1] != plain[1] && versions(&LUA.replace("zebra", "horse"), "cart")[1] != once[1]);
}

#[test]
fn network_filters_come_first_for_requests_and_for_bytes() {
    let config =
        read_one("resources: [{\"@type\": type.googleapis.com/envoy.config.listener.v3.Filter, name: mine}]")
            .unwrap();
    for listener in Resources::of(&pod("cart"), &config).listeners {
        let listener = Listener::decode(&*listener.content.value).unwrap();
        let named = |filters: &[Filter]| filters.iter().map(|filter| filter.name.clone()).collect::<Vec<_>>();
        let http = listener.filter_chains.iter().find(|chain| chain.name == "http").unwrap();
        assert_eq!(named(&http.filters), ["mine", "envoy.filters.network.http_connection_manager"]);
        let tcp = listener.default_filter_chain.unwrap();
        assert_eq!(named(&tcp.filters), ["mine", "envoy.filters.network.tcp_proxy"]);
    }
}

#[test]
fn what_is_wrong_is_named_with_its_file_and_place() {
    let cluster = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster";
    let cases = [
        (
            LUA.replace("timeout:", "timeoot:"),
            "my.yaml: resources[1].route: unrecognized field name 'timeoot'",
        ),
        (
            LUA.replace("inline_string: |", "inline: |"),
            "my.yaml: resources[0].typed_config.default_source_code: unrecognized field name 'inline'",
        ),
        (LUA.replace("2.5s", "soon"), "my.yaml: resources[1].route.timeout: "),
        (
            LUA.replace("${POD_NAME}", "${POD}"),
            "my.yaml: resources[0].typed_config.default_source_code.inline_string: ${POD} is not one of",
        ),
        (
            LUA.replace("lua.v3.Lua", "lua.v9.Lua"),
            "my.yaml: resources[0].typed_config: message 'envoy.extensions.filters.http.lua.v9.Lua' not found",
        ),
        (LUA.replace("direction: inbound", "direction: up"), "my.yaml: direction: unknown variant `up`"),
        (LUA.replace("resources:", "resource:"), "my.yaml: unknown field `resource`"),
        ("resources: [{name: x}]".to_owned(), "my.yaml: resources[0].@type: \"\" is not one of"),
        (format!("resources: [{{{cluster}, name: a|b}}]"), "my.yaml: resources[0].name: \"a|b\" is"),
        (format!("resources: [{{{cluster}, name: veer}}]"), "my.yaml: resources[0].name: \"veer\" is"),
        (
            format!("resources: [{{{cluster}, name: a}}, {{{cluster}, name: a}}]"),
            "my.yaml: resources[1].name: there are two clusters \"a\"",
        ),
        (
            format!("resources: [{{{cluster}, name: \"${{POD_NAME}}\"}}]"),
            "my.yaml: resources[0]: a cluster is the same",
        ),
        ("resources: [".to_owned(), "my.yaml: "),
    ];
    for (text, expected) in cases {
        let problem = read_one(&text).unwrap_err();
        assert!(problem.starts_with(expected), "{problem}\nand not\n{expected}");
    }
}
