//! What an Envoy has for Istio's agent beside it: where its state and its metrics are asked for.
//!
//! Owns: the two listeners that Istio's bootstrap has for everybody, and what a destination rule says of connections.
//! Called by: the configurations of proxies in a Kubernetes.

use serde_json::{Value, json};

use super::bootstrap::{PASSTHROUGH, address};
use super::{ADMIN, AGENT, STATUS, TELEMETRY};

/// Adds them: 15021 asks the agent, 15090 the proxy's own admin interface. Neither writes an access log.
pub(super) fn beside(mut bootstrap: Value) -> Value {
    extend(
        &mut bootstrap,
        "listeners",
        &[
            passing_on("status", STATUS, "/healthz/ready", "agent"),
            passing_on("telemetry", TELEMETRY, "/stats/prometheus", "prometheus_stats"),
        ],
    );
    let clusters = [on_loopback("agent", AGENT), on_loopback("prometheus_stats", ADMIN.port())];
    extend(&mut bootstrap, "clusters", &clusters);
    bootstrap
}

/// To other pods, one request on each connection.
pub(super) fn one_request_each(mut bootstrap: Value) -> Value {
    let options = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"max_requests_per_connection": 1},
        "explicit_http_config": {"http_protocol_options": {}},
    }});
    let clusters = bootstrap.pointer_mut("/static_resources/clusters").and_then(Value::as_array_mut);
    for cluster in clusters.into_iter().flatten().filter(|cluster| cluster["name"] == PASSTHROUGH) {
        if let Some(cluster) = cluster.as_object_mut() {
            cluster.insert("typed_extension_protocol_options".to_owned(), options.clone());
        }
    }
    bootstrap
}

fn extend(bootstrap: &mut Value, list: &str, further: &[Value]) {
    let list = bootstrap.pointer_mut(&format!("/static_resources/{list}")).and_then(Value::as_array_mut);
    if let Some(list) = list {
        list.extend_from_slice(further);
    }
}

/// A listener with one path; anything else it does not know.
fn passing_on(name: &str, port: u16, path: &str, cluster: &str) -> Value {
    json!({
        "name": name,
        "address": address("0.0.0.0", port),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.\
                          http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": name,
                "route_config": {"virtual_hosts": [{
                    "name": "backend",
                    "domains": ["*"],
                    "routes": [{"match": {"path": path}, "route": {"cluster": cluster}}],
                }]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    },
                }],
            },
        }]}],
    })
}

fn on_loopback(name: &str, port: u16) -> Value {
    let endpoint = json!({"endpoint": {"address": address("127.0.0.1", port)}});
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    })
}
