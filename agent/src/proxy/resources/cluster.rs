//! Where a pod's connections go on to.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, circuit_breakers, cluster};
use envoy_types::pb::envoy::config::core::v3::{
    BindConfig, ExtraSourceAddress, Http1ProtocolOptions, Http2ProtocolOptions,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options};
use envoy_types::pb::google::protobuf::UInt32Value;

use super::super::statistics;
use super::filters::preserve_case;
use super::{Direction, ProxiedPod, any, resource_name, seconds, socket_address};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The one that asks where a connection was going, and connects there out of the pod's netns.
pub(super) fn cluster(way: Direction, pod: &ProxiedPod) -> Cluster {
    let (v4, v6) = match way {
        Direction::Outbound => ("0.0.0.0", "::"),
        Direction::Inbound => ("127.0.0.6", "::6"),
    };
    let further = ExtraSourceAddress { address: Some(socket_address(pod, v6, 0)), socket_options: None };
    let bind = BindConfig {
        source_address: Some(socket_address(pod, v4, 0)),
        extra_source_addresses: pod.has_v6.then_some(further).into_iter().collect(),
        ..BindConfig::default()
    };
    Cluster {
        name: resource_name(way, pod),
        alt_stat_name: statistics::prefix(way, pod),
        connect_timeout: Some(seconds(10)),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::OriginalDst.into(),
        )),
        lb_policy: cluster::LbPolicy::ClusterProvided.into(),
        upstream_bind_config: Some(bind),
        circuit_breakers: Some(unlimited()),
        typed_extension_protocol_options: HashMap::from([(HTTP_OPTIONS.to_owned(), any(&http_options()))]),
        ..Cluster::default()
    }
}

/// HTTP/1 goes on as HTTP/1 and HTTP/2 as HTTP/2.
fn http_options() -> HttpProtocolOptions {
    let downstream = http_protocol_options::UseDownstreamHttpConfig {
        http_protocol_options: Some(Http1ProtocolOptions {
            header_key_format: Some(preserve_case()),
            ..Http1ProtocolOptions::default()
        }),
        http2_protocol_options: Some(Http2ProtocolOptions::default()),
        ..http_protocol_options::UseDownstreamHttpConfig::default()
    };
    HttpProtocolOptions {
        upstream_protocol_options: Some(
            http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(downstream),
        ),
        ..HttpProtocolOptions::default()
    }
}

/// Envoy's own limits of 1,024 would refuse what goes through without it, and Istio raises them as well.
fn unlimited() -> CircuitBreakers {
    let most = || Some(UInt32Value { value: u32::MAX });
    let thresholds = circuit_breakers::Thresholds {
        max_connections: most(),
        max_pending_requests: most(),
        max_requests: most(),
        max_retries: most(),
        ..circuit_breakers::Thresholds::default()
    };
    CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() }
}
