//! The object that is loaded once for the node: the programs of the pods' cgroup, and the inbound program
//! that all pods' netns jump to.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "the licence is a symbol that the loader finds by its section")]
#![expect(clippy::needless_pass_by_value, reason = "aya's macros hand contexts over by value")]

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, cgroup_sockopt, map, sk_lookup, sock_ops};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockContext, SockOpsContext, SockoptContext};
use veer_common::interface::{MAX_INTERFACES, NameKey};
use veer_common::maps::{Enrolment, MAX_PODS, NetnsCookie};
use veer_ebpf::connect::{self, Answer};
use veer_ebpf::ctx::{SkLookup, SockAddr, SockOps, SockOpt};
use veer_ebpf::sk_lookup::{self as inbound, Answer as Inbound};
use veer_ebpf::{bind, datagram, getpeername, getsockopt, handoff, listen, maps, setsockopt, sock_create};

/// Who the enrolled pods are. No program reads it: it is here because it lives and dies with the others.
#[map]
static ENROLMENTS: HashMap<NetnsCookie, Enrolment> = HashMap::with_max_entries(MAX_PODS, BPF_F_NO_PREALLOC);

/// What annotations name. No program reads it either.
#[map]
static INTERFACE_NAMES: HashMap<NameKey, u32> = HashMap::with_max_entries(MAX_INTERFACES, BPF_F_NO_PREALLOC);

// Program names are what `bpftool prog` shows, 15 characters at most.

/// Remembers a socket's creator.
#[cgroup_sock(sock_create)]
fn veer_sock_new(context: SockContext) -> i32 {
    sock_create::sock_create(&context);
    1
}

/// Tells the agent which netns it has made a socket in, on kernels that do not.
#[cgroup_sock(sock_create)]
fn veer_cookie(context: SockContext) -> i32 {
    sock_create::tell_cookie(&context);
    1
}

/// A record for MPTCP's listeners, and the proxy's ports for the proxy, `AF_INET`.
#[cgroup_sock_addr(bind4)]
fn veer_bind4(context: SockAddrContext) -> i32 {
    i32::from(bind::bind(SockAddr::new(context.sock_addr)))
}

/// A record for MPTCP's listeners, and the proxy's ports for the proxy, `AF_INET6`.
#[cgroup_sock_addr(bind6)]
fn veer_bind6(context: SockAddrContext) -> i32 {
    i32::from(bind::bind(SockAddr::new(context.sock_addr)))
}

/// The outbound verdict, `AF_INET`.
#[cgroup_sock_addr(connect4)]
fn veer_connect4(context: SockAddrContext) -> i32 {
    i32::from(connect::connect4(SockAddr::new(context.sock_addr)) == Answer::Proceed)
}

/// The outbound verdict, `AF_INET6`.
#[cgroup_sock_addr(connect6)]
fn veer_connect6(context: SockAddrContext) -> i32 {
    i32::from(connect::connect6(SockAddr::new(context.sock_addr)) == Answer::Proceed)
}

/// The peer as it was dialled, `AF_INET`.
#[cgroup_sock_addr(getpeername4)]
fn veer_peername4(context: SockAddrContext) -> i32 {
    getpeername::getpeername4(SockAddr::new(context.sock_addr));
    1
}

/// The peer as it was dialled, `AF_INET6`.
#[cgroup_sock_addr(getpeername6)]
fn veer_peername6(context: SockAddrContext) -> i32 {
    getpeername::getpeername6(SockAddr::new(context.sock_addr));
    1
}

/// DNS that is asked without connect(), IPv4.
#[cgroup_sock_addr(sendmsg4)]
fn veer_sendmsg4(context: SockAddrContext) -> i32 {
    i32::from(datagram::sendmsg4(SockAddr::new(context.sock_addr)) == Answer::Proceed)
}

/// DNS that is asked without connect(), IPv6.
#[cgroup_sock_addr(sendmsg6)]
fn veer_sendmsg6(context: SockAddrContext) -> i32 {
    i32::from(datagram::sendmsg6(SockAddr::new(context.sock_addr)) == Answer::Proceed)
}

/// Replies from whom was asked, `AF_INET`.
#[cgroup_sock_addr(recvmsg4)]
fn veer_recvmsg4(context: SockAddrContext) -> i32 {
    datagram::recvmsg4(SockAddr::new(context.sock_addr));
    1
}

/// Replies from whom was asked, `AF_INET6`.
#[cgroup_sock_addr(recvmsg6)]
fn veer_recvmsg6(context: SockAddrContext) -> i32 {
    datagram::recvmsg6(SockAddr::new(context.sock_addr));
    1
}

/// Original destination for the proxy.
#[cgroup_sockopt(getsockopt)]
fn veer_getsockopt(context: SockoptContext) -> i32 {
    getsockopt::getsockopt(SockOpt::new(context.sockopt));
    1
}

/// No routing headers.
#[cgroup_sockopt(setsockopt)]
fn veer_setsockopt(context: SockoptContext) -> i32 {
    i32::from(setsockopt::setsockopt(SockOpt::new(context.sockopt)))
}

const TCP_CONNECT_CB: u32 = 3;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const STATE_CB: u32 = 10;
const TCP_LISTEN_CB: u32 = 11;

/// Hand-off and listeners.
#[sock_ops]
fn veer_sockops(context: SockOpsContext) -> u32 {
    let context = SockOps::new(context.ops);
    let op = context.op();
    if op == TCP_CONNECT_CB {
        handoff::connecting(context);
    } else if op == PASSIVE_ESTABLISHED_CB {
        handoff::accepted(context);
    } else if op == STATE_CB {
        handoff::state_changed(context);
    } else if op == TCP_LISTEN_CB {
        listen::listening(context);
    }
    1
}

/// The inbound verdict, for the pod that the program of its netns has named.
#[sk_lookup]
fn veer_inbound(context: SkLookupContext) -> u32 {
    let Some(arrival) = maps::arrival() else { return SK_DROP };
    match inbound::sk_lookup(SkLookup::new(context.lookup), &arrival) {
        Inbound::Drop => SK_DROP,
        Inbound::Pass => SK_PASS,
    }
}

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

/// The kernel gives its GPL helpers to GPL-compatible objects only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
