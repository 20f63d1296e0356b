//! Where metrics and health are served.
//!
//! Owns: the accepted forms. Never does: stop at the first error. Called by: `config`.

use std::net::SocketAddr;

use super::{ConfigError, Setting};
use crate::cli::AdminFlags;

const ACCEPTED: &str = "off, or an address and a port such as 0.0.0.0:15014 or [::1]:0";
const METRICS: Setting = Setting("--admin-addr", "VEER_ADMIN_ADDR", ACCEPTED);
const HEALTH: Setting = Setting("--health-addr", "VEER_HEALTH_ADDR", ACCEPTED);

/// Where metrics and health are served; `None` is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdminConfig {
    /// `/metrics`.
    pub metrics: Option<SocketAddr>,
    /// `/healthz` and `/readyz`.
    pub health: Option<SocketAddr>,
}

/// Parses the flags.
pub(super) fn parse(flags: &AdminFlags, errors: &mut Vec<ConfigError>) -> AdminConfig {
    AdminConfig {
        metrics: address(&METRICS, &flags.admin_addr, errors),
        health: address(&HEALTH, &flags.health_addr, errors),
    }
}

fn address(setting: &Setting, value: &str, errors: &mut Vec<ConfigError>) -> Option<SocketAddr> {
    if value.trim() == "off" {
        return None;
    }
    let address = value.trim().parse().ok();
    if address.is_none() {
        errors.push(setting.invalid(value));
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_and_off_is_none() {
        let parsed = |value: &str| {
            let mut errors = Vec::new();
            let flags = AdminFlags { admin_addr: value.to_owned(), health_addr: "off".to_owned() };
            let config = parse(&flags, &mut errors);
            assert_eq!(config.health, None);
            if errors.is_empty() { Ok(config.metrics) } else { Err(errors.len()) }
        };
        assert_eq!(parsed("off"), Ok(None));
        assert_eq!(parsed("[::1]:0"), Ok(Some("[::1]:0".parse().unwrap())));
        for wrong in ["", "0.0.0.0", "localhost:15014", ":15014", "15014", "on"] {
            assert_eq!(parsed(wrong), Err(1), "{wrong}");
        }
    }
}
