//! What is done with a pod's connections: passed on and counted.

use envoy_types::pb::envoy::config::core::v3::{Http1ProtocolOptions, http1_protocol_options};
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use envoy_types::pb::google::protobuf::BoolValue;

use super::super::config::{Place, UserConfig};
use super::super::statistics;
use super::log::{self, log};
use super::{Direction, ProxiedPod, any, extension, resource_name, seconds};

/// Passes bytes.
pub(super) fn tcp(way: Direction, pod: &ProxiedPod) -> TcpProxy {
    TcpProxy {
        stat_prefix: statistics::prefix(way, pod),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(resource_name(way, pod))),
        // Streams may rest for as long as their ends like.
        idle_timeout: Some(seconds(0)),
        access_log: vec![log(way, pod, &log::TCP)],
        ..TcpProxy::default()
    }
}

/// Passes requests, as they are.
pub(super) fn http(way: Direction, pod: &ProxiedPod, config: &UserConfig) -> HttpConnectionManager {
    let router = Router { suppress_envoy_headers: true, ..Router::default() };
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&router))),
        ..HttpFilter::default()
    };
    HttpConnectionManager {
        stat_prefix: statistics::prefix(way, pod),
        http_filters: config.of(Place::HttpFilter, way, pod).chain([router]).collect(),
        http_protocol_options: Some(Http1ProtocolOptions {
            accept_http_10: true,
            header_key_format: Some(preserve_case()),
            ..Http1ProtocolOptions::default()
        }),
        server_header_transformation: http_connection_manager::ServerHeaderTransformation::PassThrough.into(),
        // The pod's own client is not another hop.
        use_remote_address: Some(BoolValue { value: false }),
        skip_xff_append: true,
        generate_request_id: Some(BoolValue { value: false }),
        preserve_external_request_id: true,
        stream_idle_timeout: Some(seconds(0)),
        upgrade_configs: vec![http_connection_manager::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..http_connection_manager::UpgradeConfig::default()
        }],
        access_log: vec![log(way, pod, &log::HTTP)],
        route_specifier: Some(http_connection_manager::RouteSpecifier::RouteConfig(routes(way, pod, config))),
        ..HttpConnectionManager::default()
    }
}

/// `Content-Type` stays `Content-Type`, where Envoy alone would make it `content-type`.
pub(super) fn preserve_case() -> http1_protocol_options::HeaderKeyFormat {
    use http1_protocol_options::header_key_format::HeaderFormat;
    let formatter = extension(
        "envoy.http.stateful_header_formatters.preserve_case",
        &PreserveCaseFormatterConfig::default(),
    );
    http1_protocol_options::HeaderKeyFormat {
        header_format: Some(HeaderFormat::StatefulFormatter(formatter)),
    }
}

/// One route, for everything, without a limit of time; users' own come before it.
fn routes(way: Direction, pod: &ProxiedPod, config: &UserConfig) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(resource_name(way, pod))),
        timeout: Some(seconds(0)),
        ..RouteAction::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Route::default()
    };
    let host = VirtualHost {
        name: "any".to_owned(),
        domains: vec!["*".to_owned()],
        routes: config.of(Place::Route, way, pod).chain([route]).collect(),
        ..VirtualHost::default()
    };
    RouteConfiguration {
        name: way.name().to_owned(),
        virtual_hosts: config.of(Place::VirtualHost, way, pod).chain([host]).collect(),
        ..RouteConfiguration::default()
    }
}
