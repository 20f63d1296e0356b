//! Envoy's bootstrap, shaped as Istio's agent shapes a sidecar's: names, ports, clusters and the guards
//! against loops are Istio's. What Istio would send over xDS is written down.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::access_log::{Direction, loggers};

const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
pub(super) const PASSTHROUGH: &str = "PassthroughCluster";
const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
const GATEWAY: &str = "behind-the-gateway";
const BLACK_HOLE: &str = "BlackHoleCluster";

/// The mark of what an Envoy sends with its client's address; Istio's own.
const MARK: u32 = 1337;

/// How inbound connections come to an Envoy, and what its app is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Inbound {
    /// By a redirection; the app sees Envoy.
    Redirected,
    /// As they are; the app sees the client.
    Transparent,
}

/// The whole bootstrap.
pub(super) fn bootstrap(access_log: &Path, http_ports: &[u16], inbound_by: Inbound) -> Value {
    let outbound = loggers(access_log, Direction::Outbound);
    let inbound = loggers(access_log, Direction::Inbound);
    let mut listeners = vec![virtual_outbound(&outbound), virtual_inbound(&inbound, http_ports, inbound_by)];
    listeners.extend(http_ports.iter().map(|port| outbound_http(&outbound, *port)));
    let mut clusters = vec![passthrough(), black_hole(), inbound_cluster(INBOUND_PASSTHROUGH)];
    clusters.extend(http_ports.iter().map(|port| inbound_cluster(&inbound_name(*port))));
    json!({
        "admin": {"address": address("127.0.0.1", super::ADMIN.port())},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

/// A gateway's: it listens where its clients ask, and everything goes on to one place.
pub(super) fn gateway(access_log: &Path, port: u16, upstream: SocketAddr) -> Value {
    let log = loggers(access_log, Direction::Inbound);
    let endpoint = json!({"endpoint": {"address": address(&upstream.ip().to_string(), upstream.port())}});
    json!({
        "admin": {"address": address("127.0.0.1", super::ADMIN.port())},
        "static_resources": {
            "listeners": [{
                "name": format!("0.0.0.0_{port}"),
                "address": address("0.0.0.0", port),
                "filter_chains": [{"filters": [http(&format!("outbound_0.0.0.0_{port}"), GATEWAY, &log, true)]}],
            }],
            "clusters": [{
                "name": GATEWAY,
                "type": "STATIC",
                "connect_timeout": "10s",
                "load_assignment": {"cluster_name": GATEWAY, "endpoints": [{"lb_endpoints": [endpoint]}]},
            }],
        },
    })
}

/// 15001 hands each connection to the listener of the dialled port, which is not bound to any; what no
/// such listener wants is passed through as TCP.
fn virtual_outbound(log: &Value) -> Value {
    json!({
        "name": "virtualOutbound",
        "traffic_direction": "OUTBOUND",
        "address": address("0.0.0.0", OUTBOUND_PORT),
        "additional_addresses": [{"address": address("::", OUTBOUND_PORT)}],
        "use_original_dst": true,
        "access_log": log,
        "filter_chains": [
            to_itself("virtualOutbound-blackhole", OUTBOUND_PORT),
            {"name": "virtualOutbound-catchall-tcp", "filters": [tcp(PASSTHROUGH, log)]},
        ],
    })
}

fn outbound_http(log: &Value, port: u16) -> Value {
    json!({
        "name": format!("0.0.0.0_{port}"),
        "traffic_direction": "OUTBOUND",
        "address": address("0.0.0.0", port),
        "additional_addresses": [{"address": address("::", port)}],
        "bind_to_port": false,
        "filter_chains": [{"filters": [http(&format!("outbound_0.0.0.0_{port}"), PASSTHROUGH, log, true)]}],
    })
}

/// 15006 chooses a filter chain by the dialled port.
fn virtual_inbound(log: &Value, http_ports: &[u16], by: Inbound) -> Value {
    let mut chains = vec![to_itself("virtualInbound-blackhole", INBOUND_PORT)];
    chains.extend(http_ports.iter().map(|port| {
        json!({
            "name": format!("0.0.0.0_{port}"),
            "filter_chain_match": {"destination_port": port},
            "filters": [http(&format!("inbound_0.0.0.0_{port}"), &inbound_name(*port), log, false)],
        })
    }));
    let mut filters = vec![json!({
        "name": "envoy.filters.listener.original_dst",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        },
    })];
    if by == Inbound::Transparent {
        filters.push(json!({
            "name": "envoy.filters.listener.original_src",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
                "mark": MARK,
            },
        }));
    }
    chains.push(json!({"name": "virtualInbound", "filters": [tcp(INBOUND_PASSTHROUGH, log)]}));
    json!({
        "name": "virtualInbound",
        "traffic_direction": "INBOUND",
        "address": address("0.0.0.0", INBOUND_PORT),
        "additional_addresses": [{"address": address("::", INBOUND_PORT)}],
        "transparent": by == Inbound::Transparent,
        "listener_filters": filters,
        "access_log": log,
        "filter_chains": chains,
    })
}

/// A connection whose original destination is the listener itself was not redirected: it would go round.
fn to_itself(name: &str, port: u16) -> Value {
    json!({
        "name": name,
        "filter_chain_match": {"destination_port": port},
        "filters": [tcp(BLACK_HOLE, &json!([]))],
    })
}

fn tcp(cluster: &str, log: &Value) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster,
            "cluster": cluster,
            "access_log": log,
        },
    })
}

/// Outbound routes tell how often a request was tried, as Istio's do: so the app hears whether one came that way.
fn http(stat_prefix: &str, cluster: &str, log: &Value, counts_attempts: bool) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.\
                      http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": stat_prefix,
            "access_log": log,
            "route_config": {
                "name": stat_prefix,
                "virtual_hosts": [{
                    "name": "allow_any",
                    "domains": ["*"],
                    "include_request_attempt_count": counts_attempts,
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
                }],
            },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
        },
    })
}

fn passthrough() -> Value {
    json!({
        "name": PASSTHROUGH,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
    })
}

fn black_hole() -> Value {
    json!({"name": BLACK_HOLE, "type": "STATIC", "connect_timeout": "10s"})
}

/// To the app: from 127.0.0.6 or `::6`, by which the datapath knows that it must not be caught again.
fn inbound_cluster(name: &str) -> Value {
    json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "upstream_bind_config": {
            "source_address": {"address": "127.0.0.6", "port_value": 0},
            "extra_source_addresses": [{"address": {"address": "::6", "port_value": 0}}],
        },
    })
}

fn inbound_name(port: u16) -> String {
    format!("inbound|{port}||")
}

pub(super) fn address(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}
