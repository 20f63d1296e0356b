//! Where a pod's connections arrive.

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    AdditionalAddress, Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter,
    ListenerFilterChainMatchPredicate, filter, listener_filter, listener_filter_chain_match_predicate,
};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::r#type::v3::Int32Range;
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
/// Envoy's word for without end.
const NO_LIMIT: Duration = Duration { seconds: 0, nanos: 0 };
/// Where no first bytes are awaited, as Istio does for a port whose protocol is not declared: SMTP, DNS, MySQL and MongoDB
/// (istio.io, ops/configuration/traffic-management/protocol-selection).
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];
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
            ListenerFilter {
                filter_disabled: Some(any_of(&SERVER_FIRST)),
                ..listener_filter("envoy.filters.listener.http_inspector", any(&HttpInspector::default()))
            },
        ],
        listener_filters_timeout: Some(detection(way, config)),
        continue_on_listener_filters_timeout: true,
        traffic_direction: direction.into(),
        enable_reuse_port: Some(BoolValue { value: true }),
        ..Listener::default()
    }
}

/// A user's filter may be what guards the pod, and a client that waits before it asks, or a proxy that connects before it
/// has a request, must not come past it as bytes: all first bytes are awaited then, as Istio awaits them.
fn detection(way: Direction, config: &UserConfig) -> Duration {
    if config.sees_requests(way) { NO_LIMIT } else { DETECTION }
}

/// True where the destination's port is one of these: the original one, behind the filter that asks for it.
fn any_of(ports: &[u16]) -> ListenerFilterChainMatchPredicate {
    use listener_filter_chain_match_predicate::{MatchSet, Rule};
    let one = |port: &u16| {
        let port = i32::from(*port);
        let range = Int32Range { start: port, end: port.saturating_add(1) };
        ListenerFilterChainMatchPredicate { rule: Some(Rule::DestinationPortRange(range)) }
    };
    let rules = ports.iter().map(one).collect();
    ListenerFilterChainMatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules })) }
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
