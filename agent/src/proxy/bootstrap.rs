//! What the node's Envoy is started with. Pure.
//!
//! Owns: where it finds the agent; how its statistics are named is [`statistics`]'. All else comes over ADS.

use std::path::Path;

use serde_json::{Value, json};

use super::statistics;

/// The cluster that the agent is.
const AGENT: &str = "veer";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The bootstrap; both are paths of sockets, the agent's and Envoy's own for its admin interface.
pub(super) fn bootstrap(ads: &Path, admin: &Path) -> Value {
    // One that takes another's place must not do so with nothing, however long the agent is away.
    let over_ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    json!({
        "node": {"id": "veer", "cluster": "veer"},
        "admin": {"address": {"pipe": {"path": admin, "mode": 0o660}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": AGENT}}],
            },
            "cds_config": over_ads,
            "lds_config": over_ads,
        },
        "static_resources": {"clusters": [agent(ads)]},
        "stats_config": statistics::config(),
        // Most of a cluster's statistics are about what never happens to it.
        "deferred_stat_options": {"enable_deferred_creation_stats": true},
    })
}

fn agent(socket: &Path) -> Value {
    json!({
        "name": AGENT,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {HTTP_OPTIONS: {
            "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
            "explicit_http_config": {"http2_protocol_options": {
                // An agent that is gone without a word is missed within seconds.
                "connection_keepalive": {"interval": "5s", "timeout": "5s"},
            }},
        }},
        "load_assignment": {
            "cluster_name": AGENT,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": socket}}}}]}],
        },
    })
}
