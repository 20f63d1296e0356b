//! The test kit: what a test needs of a node, made and removed by guards.
//!
//! Owns: network namespaces ([`netns`]), links and addresses ([`veth`]), cgroups ([`cgroup`]), processes
//! in them without any privilege ([`launch`], [`socket_maker`]), the world around a pod ([`pod`]), pods that are only
//! counted ([`bare_pod`]), the real agent ([`agent`]) with either of its ways to redirect ([`backend`]), what it pins
//! ([`pinned`], [`filling`]), what the kernel holds of it
//! ([`objects`]) and what it tells ([`monitor`]), a CNI runtime ([`cni`]), the real plugin ([`plugin`]) and Envoy
//! ([`envoy`], [`node_proxy`], [`proxied_node`]), an app ([`http`]) and an application of several ([`bookinfo`]), DNS ([`dns`]), ztunnel's sockets ([`ambient`]), a socket load balancer ([`socket_lb`]), a gate
//! before bpf(2) ([`bpf_gate`], [`seccomp`]), a process that stops at each system call ([`traced`]), load ([`load`],
//! [`dst_server`], [`jam`]), metrics ([`prometheus`]), a real Kubernetes ([`kube`]), and what a program needs that is run by people
//! ([`supervise`]) or as a test ([`harness`]).
//! Never does: touch the machine's own network, leave anything behind, or stand in for a part of veer.
//! Used by: the tests in `tests/`, the demo and the benchmarks. All of it needs root.
//!
//! Everything made carries `veer-test-PID` in its name. A guard removes what it made when it goes, after
//! a panic too; what a killed process left is removed by the next one ([`scratch`]).

pub mod agent;
pub mod ambient;
pub mod attachment;
pub mod backend;
pub mod bare_pod;
pub mod bookinfo;
mod bpf;
pub mod bpf_gate;
pub mod cgroup;
pub mod cni;
pub mod credentials;
pub mod dial;
pub mod dns;
pub mod dst_server;
pub mod envoy;
pub mod filling;
pub mod harness;
pub mod http;
pub mod istio_init;
pub mod jam;
pub mod kube;
pub mod launch;
pub mod load;
pub mod manifest;
pub mod mesh;
pub mod monitor;
pub mod netfilter;
pub mod netns;
pub mod node_proxy;
pub mod objects;
pub mod original_dst;
pub mod pinned;
pub mod plugin;
pub mod pod;
pub mod process;
pub mod prometheus;
pub mod proxied_node;
pub mod scratch;
pub mod seccomp;
pub mod serving_ztunnel;
pub mod socket_lb;
pub mod socket_maker;
pub mod streams;
pub mod supervise;
pub mod supervised;
pub mod traced;
pub mod userns;
pub mod veth;
pub mod wait;
pub mod ztunnel;
