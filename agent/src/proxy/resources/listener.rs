//! Where a pod's connections arrive.

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    AdditionalAddress, Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter,
    listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, UInt32Value};

use super::super::config::{Place, UserConfig};
use super::super::statistics;
use super::{Direction, ProxiedPod, address, any, filters, resource_name};

/// Istio's ports.
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// How long a client's first bytes are awaited, by which HTTP is known. A protocol in which the server speaks first
/// waits as long with each connection, and is passed as bytes then.
const DETECTION: Duration = Duration { seconds: 0, nanos: 100_000_000 };
/// What an Envoy that is spoken to with HTTP/1.0, 1.1 or 2 without TLS finds out.
const HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// The listener of a pod for one direction.
pub(super) fn listener(way: Direction, pod: &ProxiedPod, config: &UserConfig) -> Listener {
    // Nobody but the pod itself is redirected to the outbound port, and what is redirected comes to localhost.
    let (v4, v6, port, direction) = match way {
        Direction::Outbound => ("127.0.0.1", "::1", OUTBOUND, TrafficDirection::Outbound),
        Direction::Inbound => ("0.0.0.0", "::", INBOUND, TrafficDirection::Inbound),
    };
    let further = AdditionalAddress { address: Some(address(pod, v6, port)), ..AdditionalAddress::default() };
    let http = FilterChain {
        name: "http".to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            application_protocols: HTTP.map(str::to_owned).into(),
            ..FilterChainMatch::default()
        }),
        filters: behind_users(
            network_filter(
                "envoy.filters.network.http_connection_manager",
                any(&filters::http(way, pod, config)),
            ),
            (way, pod, config),
        ),
        ..FilterChain::default()
    };
    Listener {
        name: resource_name(way, pod),
        stat_prefix: statistics::prefix(way, pod),
        address: Some(address(pod, v4, port)),
        additional_addresses: pod.has_v6.then_some(further).into_iter().collect(),
        filter_chains: vec![to_itself(port), http],
        default_filter_chain: Some(FilterChain {
            name: "tcp".to_owned(),
            filters: behind_users(
                network_filter("envoy.filters.network.tcp_proxy", any(&filters::tcp(way, pod))),
                (way, pod, config),
            ),
            ..FilterChain::default()
        }),
        listener_filters: vec![
            listener_filter("envoy.filters.listener.original_dst", any(&OriginalDst::default())),
            listener_filter("envoy.filters.listener.http_inspector", any(&HttpInspector::default())),
        ],
        listener_filters_timeout: Some(DETECTION),
        continue_on_listener_filters_timeout: true,
        traffic_direction: direction.into(),
        enable_reuse_port: Some(BoolValue { value: true }),
        ..Listener::default()
    }
}

/// What users add comes first; this one is the last.
fn behind_users(own: Filter, (way, pod, config): (Direction, &ProxiedPod, &UserConfig)) -> Vec<Filter> {
    config.of(Place::NetworkFilter, way, pod).chain([own]).collect()
}

/// A connection whose original destination is the listener itself was not redirected: it would go round for ever. No
/// filter takes it, so it is closed.
fn to_itself(port: u16) -> FilterChain {
    FilterChain {
        name: "to-itself".to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: Some(UInt32Value { value: port.into() }),
            ..FilterChainMatch::default()
        }),
        ..FilterChain::default()
    }
}

fn network_filter(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

fn listener_filter(name: &str, config: Any) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..ListenerFilter::default()
    }
}
