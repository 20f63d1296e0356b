//! What there is to remove, in the order of its removal.

use serde::Serialize;

/// A kind of thing. The order of the variants is that in which they go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The enrolled pods' policies: without one, connections go where they are dialled.
    Policies,
    /// The rules of a pod that nftables redirects, with its record.
    Rules,
    /// A link of connect or sendmsg: what redirects, should a policy be left.
    RedirectingLink,
    /// A link to a pod's netns, which brings inbound connections to the proxy.
    NetnsLink,
    /// The address ::6 on a pod's `lo`.
    PassthroughAddress,
    /// The way of marked packets to a pod's `lo`.
    MarkedWay,
    /// A link of what knows who made a socket, and which connection belongs to which.
    CgroupLink,
    /// A link of what tells proxy and app where a connection was dialled.
    AnsweringLink,
    /// A pinned program.
    Program,
    /// A pinned map.
    Map,
    /// A directory of pins.
    PinDirectory,
    /// A socket or file in the run directory.
    RunFile,
    /// The run directory.
    RunDirectory,
    /// The node's proxy, which an agent has started.
    Proxy,
    /// What agent and proxy have left where they met.
    ProxyFile,
    /// Where they met.
    ProxyDirectory,
}

impl Kind {
    /// Of a link to a cgroup, by its program's name, which is the same in all ABI versions.
    pub(super) fn of_cgroup_link(program: &str) -> Self {
        let is = |parts: &[&str]| parts.iter().any(|part| program.contains(part));
        if is(&["connect", "sendmsg"]) {
            Self::RedirectingLink
        } else if is(&["getsockopt", "peername", "recvmsg"]) {
            Self::AnsweringLink
        } else {
            Self::CgroupLink
        }
    }

    /// Whether it makes new connections go to a proxy.
    pub(super) const fn redirects(self) -> bool {
        matches!(self, Self::Policies | Self::Rules | Self::RedirectingLink)
    }

    /// Whether a connection that was redirected needs it on its way to the proxy.
    pub(super) const fn brings_to_proxy(self) -> bool {
        matches!(self, Self::NetnsLink | Self::PassthroughAddress | Self::MarkedWay)
    }

    /// What it is called, for `count` of them.
    pub const fn text(self, count: usize) -> &'static str {
        let one = count == 1;
        match self {
            Self::Policies if one => "map of policies: nothing new is redirected",
            Self::Policies => "maps of policies: nothing new is redirected",
            Self::Rules if one => "pod's rules of nftables",
            Self::Rules => "pods' rules of nftables",
            Self::RedirectingLink if one => "link to a cgroup, of connect or sendmsg",
            Self::RedirectingLink => "links to a cgroup, of connect and sendmsg",
            Self::NetnsLink if one => "link to a pod's network namespace",
            Self::NetnsLink => "links to pods' network namespaces",
            Self::PassthroughAddress if one => "address ::6 on a pod's lo",
            Self::PassthroughAddress => "addresses ::6 on pods' lo",
            Self::MarkedWay if one => "pod's route of marked packets to its lo",
            Self::MarkedWay => "pods' routes of marked packets to their lo",
            Self::CgroupLink if one => "link to a cgroup, of identity or hand-off",
            Self::CgroupLink => "links to a cgroup, of identity and hand-off",
            Self::AnsweringLink if one => "link to a cgroup, of what a proxy asks",
            Self::AnsweringLink => "links to a cgroup, of what a proxy asks",
            Self::Program if one => "pinned program",
            Self::Program => "pinned programs",
            Self::Map if one => "pinned map",
            Self::Map => "pinned maps",
            Self::PinDirectory if one => "directory of pins",
            Self::PinDirectory => "directories of pins",
            Self::RunFile if one => "file in the run directory",
            Self::RunFile => "files in the run directory",
            Self::RunDirectory if one => "directory below or at --run-dir",
            Self::RunDirectory => "directories below and at --run-dir",
            Self::Proxy if one => "proxy of the node, which an agent had started",
            Self::Proxy => "proxies of the node, which an agent had started",
            Self::ProxyFile if one => "file of the node's proxy",
            Self::ProxyFile => "files of the node's proxy",
            Self::ProxyDirectory if one => "directory below or at --proxy-dir",
            Self::ProxyDirectory => "directories below and at --proxy-dir",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::bpf::load::CGROUP_PROGRAMS;

    #[test]
    fn what_redirects_goes_first_and_what_answers_a_proxy_last() {
        let of = |kind| {
            let named = CGROUP_PROGRAMS.iter().map(|(name, _)| *name);
            named.filter(|name| Kind::of_cgroup_link(name) == kind).collect::<Vec<_>>()
        };
        assert_eq!(
            of(Kind::RedirectingLink),
            ["veer_sendmsg4", "veer_sendmsg6", "veer_connect4", "veer_connect6"]
        );
        assert_eq!(
            of(Kind::AnsweringLink),
            ["veer_getsockopt", "veer_peername4", "veer_peername6", "veer_recvmsg4", "veer_recvmsg6"]
        );
        assert!(Kind::Policies < Kind::RedirectingLink && Kind::RedirectingLink < Kind::NetnsLink);
        assert!(Kind::NetnsLink < Kind::CgroupLink && Kind::CgroupLink < Kind::AnsweringLink);
    }
}
