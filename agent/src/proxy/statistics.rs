//! How the statistics of the node's Envoy are named, and which of a pod's there are. Pure.
//!
//! Owns: the labels `veer_namespace`, `veer_pod` and `veer_direction`, which all of a pod's have and which take the place of
//! Envoy's own (`envoy_cluster_name` and the like), and what is left out. Envoy takes a statistic's name apart by regular
//! expressions; its own ones end a name at the first dot, and a pod's name may have dots. Called by: `proxy::bootstrap`.

use serde_json::{Value, json};

use super::driver::ProxiedPod;
use super::resources::Direction;

/// How all statistics of pods begin.
const OF_PODS: &str = "(?:cluster|http|tcp|listener)\\.";

/// The part of a pod's statistics' names that says whose they are. What a name can have is between its semicolons.
pub(super) fn prefix(way: Direction, pod: &ProxiedPod) -> String {
    format!("{};{};{};", way.name(), pod.namespace, pod.name)
}

/// `stats_config`, in the bootstrap.
pub(super) fn config() -> Value {
    json!({
        // They would find parts of pods' names.
        "use_all_default_tags": false,
        "stats_tags": [
            tag("veer_direction", &format!("^{OF_PODS}((outbound|inbound);)")),
            tag("veer_namespace", &format!("^{OF_PODS}(?:outbound|inbound);(([^;.]+);)")),
            tag("veer_pod", &format!("^{OF_PODS}(?:outbound|inbound);[^;.]+;(([^;]+);\\.)")),
            // What is nobody's, such as the cluster of the agent, and the admin interface, is named as ever.
            tag("envoy.cluster_name", "^cluster\\.(([^;.]+)\\.)"),
            tag("envoy.http_conn_manager_prefix", "^http\\.(([^;.]+)\\.)"),
            tag("envoy.tcp_prefix", "^tcp\\.(([^;.]+)\\.)"),
            {"tag_name": "envoy.response_code"},
            {"tag_name": "envoy.response_code_class"},
        ],
        "stats_matcher": {"exclusion_list": {"patterns": [
            // Twice there, with the names of the pod inside of the metric's.
            left_out("listener", "http\\.|worker_\\d"),
            // Of load balancing among the hosts of a cluster, of which there are none, and of what pods' clusters do not have.
            left_out(
                "cluster",
                "assignment_|canary\\.|circuit_breakers\\.|default\\.|external\\.|http[123]\\.|internal\\.|lb_|\
                 max_host_weight|membership_|retry_or_shadow_|update_|upstream_http3_|upstream_internal_redirect_|\
                 version|warming_state|zone\\.",
            ),
            left_out("http", "passthrough_internal_redirect_|tracing\\."),
        ]}},
    })
}

/// A tag: the expression's first group is taken out of the name, and its second is the value. All of them see the whole name.
fn tag(name: &str, regex: &str) -> Value {
    json!({"tag_name": name, "regex": regex})
}

/// What of pods is not counted: those of a kind whose names go on with one of these.
fn left_out(kind: &str, names: &str) -> Value {
    json!({"safe_regex": {"regex": format!("{kind}\\.(?:outbound|inbound);.*;\\.(?:{names}).*")}})
}
