//! The access log: a line of JSON on stdout for each request and connection, which says which pod it is about.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::google::protobuf::{Any, Value, value};
use prost::Message;

use super::{Direction, ProxiedPod};

const STDOUT: &str = "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";

/// A connection's fields, and what Envoy writes into them.
pub(super) const TCP: [(&str, &str); 10] = [
    ("start_time", "%START_TIME%"),
    ("source", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("destination", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("upstream", "%UPSTREAM_HOST%"),
    ("upstream_source", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("duration_ms", "%DURATION%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("flags", "%RESPONSE_FLAGS%"),
    ("failure", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

/// A request's.
pub(super) const HTTP: [(&str, &str); 16] = [
    TCP[0],
    TCP[1],
    TCP[2],
    TCP[3],
    TCP[4],
    TCP[5],
    TCP[6],
    TCP[7],
    TCP[8],
    TCP[9],
    ("method", "%REQ(:METHOD)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("path", "%REQ(:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("status", "%RESPONSE_CODE%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
];

/// `envoy.extensions.access_loggers.stream.v3.StdoutAccessLog`, as far as it is used. The crate's own has the fields in
/// a hash map, so its bytes, which a resource's version is made of, would be others each time.
#[derive(Clone, PartialEq, Message)]
struct Stdout {
    #[prost(message, optional, tag = "1")]
    log_format: Option<Format>,
}

/// `envoy.config.core.v3.SubstitutionFormatString`.
#[derive(Clone, PartialEq, Message)]
struct Format {
    #[prost(message, optional, tag = "2")]
    json_format: Option<Fields>,
    #[prost(bool, tag = "3")]
    omit_empty_values: bool,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
struct Fields {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Value>,
}

/// The logger of a pod, for one direction.
pub(super) fn log(way: Direction, pod: &ProxiedPod, fields: &[(&str, &str)]) -> AccessLog {
    let own = [("namespace", pod.namespace.as_str()), ("pod", &pod.name), ("direction", way.name())];
    let fields = own.iter().chain(fields).map(|(name, text)| ((*name).to_owned(), string(text))).collect();
    let format = Format { json_format: Some(Fields { fields }), omit_empty_values: true };
    let stdout = Stdout { log_format: Some(format) };
    let config = Any { type_url: STDOUT.to_owned(), value: stdout.encode_to_vec() };
    AccessLog {
        name: "envoy.access_loggers.stdout".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
        ..AccessLog::default()
    }
}

fn string(text: &str) -> Value {
    Value { kind: Some(value::Kind::StringValue(text.to_owned())) }
}
