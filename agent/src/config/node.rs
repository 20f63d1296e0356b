//! The node's settings of what is captured: owner groups and localhost, which Istio's plugin has, too, what
//! makes a process the proxy, and what becomes of connections before there is one.
//!
//! Owns: their accepted forms. Never does: stop at the first error. Called by: `config`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{ConfigError, Setting};
use crate::cli::CaptureFlags;
use crate::model::{BeforeProxy, OwnerGroups, ProxyIdentity};

/// As many as one rule of istio-init holds.
const MAX_GROUPS: usize = 64;

const GROUPS: Setting = Setting(
    "--outbound-owner-groups",
    "VEER_OUTBOUND_OWNER_GROUPS",
    "* or a list of at most 64 group ids (0-4294967294) separated by commas",
);
const EXCLUDED_GROUPS: Setting = Setting(
    "--outbound-owner-groups-exclude",
    "VEER_OUTBOUND_OWNER_GROUPS_EXCLUDE",
    "a list of at most 64 group ids (0-4294967294) separated by commas, only with --outbound-owner-groups=*",
);
const LOOPBACK: Setting = Setting(
    "--host-ipv4-loopback-cidr",
    "VEER_HOST_IPV4_LOOPBACK_CIDR",
    "an IPv4 range within 127.0.0.0/8, such as 127.0.0.1/32",
);

const PROXY_IDENTITY: Setting = Setting("--proxy-identity", "VEER_PROXY_IDENTITY", "uid or container");
const BEFORE_PROXY: Setting = Setting("--before-proxy", "VEER_BEFORE_PROXY", "refuse or direct");

/// What makes a process the proxy.
pub(super) fn proxy_identity(flags: &CaptureFlags, errors: &mut Vec<ConfigError>) -> ProxyIdentity {
    match flags.proxy_identity.trim() {
        "uid" => ProxyIdentity::Uid,
        "container" => ProxyIdentity::Container,
        other => {
            errors.push(PROXY_IDENTITY.invalid(other));
            ProxyIdentity::Uid
        }
    }
}

/// What becomes of connections before a pod's proxy has listened.
pub(super) fn before_proxy(flags: &CaptureFlags, errors: &mut Vec<ConfigError>) -> BeforeProxy {
    match flags.before_proxy.trim() {
        "refuse" => BeforeProxy::Refuse,
        "direct" => BeforeProxy::Direct,
        other => {
            errors.push(BEFORE_PROXY.invalid(other));
            BeforeProxy::Refuse
        }
    }
}

/// Whose outbound connections are captured.
pub(super) fn owner_groups(flags: &CaptureFlags, errors: &mut Vec<ConfigError>) -> OwnerGroups {
    let (included, excluded) = (&flags.outbound_owner_groups, &flags.outbound_owner_groups_exclude);
    if included.trim() == "*" {
        return OwnerGroups::AllExcept(groups(&EXCLUDED_GROUPS, excluded, errors));
    }
    if !excluded.trim().is_empty() {
        errors.push(EXCLUDED_GROUPS.invalid(excluded));
    }
    OwnerGroups::Only(groups(&GROUPS, included, errors))
}

fn groups(setting: &Setting, value: &str, errors: &mut Vec<ConfigError>) -> BTreeSet<u32> {
    if value.trim().is_empty() {
        return BTreeSet::new();
    }
    // The last number means "no group" to the kernel.
    let parse = |text: &str| text.trim().parse().ok().filter(|gid| *gid != u32::MAX);
    match value.split(',').map(parse).collect::<Option<BTreeSet<u32>>>() {
        Some(groups) if groups.len() <= MAX_GROUPS => groups,
        Some(_) | None => {
            errors.push(setting.invalid(value));
            BTreeSet::new()
        }
    }
}

/// What counts as the pods' localhost.
pub(super) fn loopback(flags: &CaptureFlags, errors: &mut Vec<ConfigError>) -> Ipv4Net {
    let value = &flags.host_ipv4_loopback_cidr;
    let range = value
        .trim()
        .parse()
        .ok()
        .filter(|range: &Ipv4Net| range.network().is_loopback() && range.broadcast().is_loopback());
    range.unwrap_or_else(|| {
        errors.push(LOOPBACK.invalid(value));
        Ipv4Net::from(Ipv4Addr::LOCALHOST)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(included: &str, excluded: &str) -> CaptureFlags {
        CaptureFlags {
            outbound_owner_groups: included.to_owned(),
            outbound_owner_groups_exclude: excluded.to_owned(),
            host_ipv4_loopback_cidr: "127.0.0.1/32".to_owned(),
            proxy_identity: "uid".to_owned(),
            before_proxy: "refuse".to_owned(),
        }
    }

    fn parsed(flags: &CaptureFlags) -> Result<OwnerGroups, usize> {
        let mut errors = Vec::new();
        let groups = owner_groups(flags, &mut errors);
        if errors.is_empty() { Ok(groups) } else { Err(errors.len()) }
    }

    #[test]
    fn groups_are_all_some_or_none() {
        let of = |gids: &[u32]| gids.iter().copied().collect::<BTreeSet<u32>>();
        assert_eq!(parsed(&flags("*", "")), Ok(OwnerGroups::AllExcept(of(&[]))));
        assert_eq!(parsed(&flags("*", "202, 0")), Ok(OwnerGroups::AllExcept(of(&[0, 202]))));
        assert_eq!(parsed(&flags("101", "")), Ok(OwnerGroups::Only(of(&[101]))));
        assert_eq!(
            parsed(&flags("", "")),
            Ok(OwnerGroups::Only(of(&[]))),
            "nothing is captured, as with Istio"
        );
    }

    #[test]
    fn what_is_no_group_or_too_many_is_refused() {
        let many = (0..65_u32).map(|gid| gid.to_string()).collect::<Vec<_>>().join(",");
        for (included, excluded) in [
            ("*,1", ""),
            ("staff", ""),
            ("1,,2", ""),
            ("*", "-1"),
            ("*", "4294967295"),
            ("1", "2"),
            (&many, ""),
        ] {
            assert_eq!(parsed(&flags(included, excluded)), Err(1), "{included} {excluded}");
        }
    }

    #[test]
    fn the_proxys_identity_is_one_of_two_words() {
        let parsed = |value: &str| {
            let mut errors = Vec::new();
            let flags = CaptureFlags { proxy_identity: value.to_owned(), ..flags("*", "") };
            let identity = proxy_identity(&flags, &mut errors);
            if errors.is_empty() { Some(identity) } else { None }
        };
        assert_eq!(parsed("uid"), Some(ProxyIdentity::Uid));
        assert_eq!(parsed("container"), Some(ProxyIdentity::Container));
        assert_eq!(parsed("gid"), None);
    }

    #[test]
    fn what_is_before_the_proxy_is_refused_or_direct() {
        let parsed = |value: &str| {
            let mut errors = Vec::new();
            let flags = CaptureFlags { before_proxy: value.to_owned(), ..flags("*", "") };
            let before = before_proxy(&flags, &mut errors);
            if errors.is_empty() { Some(before) } else { None }
        };
        assert_eq!(parsed("refuse"), Some(BeforeProxy::Refuse));
        assert_eq!(parsed("direct"), Some(BeforeProxy::Direct));
        assert_eq!(parsed("direct-until-proxy-listens"), None);
    }

    #[test]
    fn localhost_is_a_range_within_loopback() {
        for (value, good) in [
            ("127.0.0.1/32", true),
            ("127.0.0.0/8", true),
            ("127.0.0.1/8", true),
            ("127.0.0.0/7", false),
            ("10.0.0.0/8", false),
            ("127.0.0.1", false),
            ("::1/128", false),
        ] {
            let mut errors = Vec::new();
            loopback(
                &CaptureFlags { host_ipv4_loopback_cidr: value.to_owned(), ..flags("*", "") },
                &mut errors,
            );
            assert_eq!(errors.is_empty(), good, "{value}");
        }
    }
}
