//! sockops: takes the dialled address from the app's end of a redirected connection to the proxy's.
//!
//! connect() has it in the app's socket storage. At `TCP_CONNECT_CB` the source port is known and the
//! SYN not sent: the entry is filed under it. At `PASSIVE_ESTABLISHED` it moves into the accepted
//! socket's storage. `STATE_CB` removes what never got there.

use veer_common::address::Address;
use veer_common::event::NO_ID;
use veer_common::maps::{HandOff, HandOffKey, NetnsCookie, SocketRecord, role};
use veer_common::reason::{Action, Fault};
use veer_common::verdict::{self, Inbound, Sender};

use crate::ambient;
use crate::count::{self, Facts};
use crate::ctx::{IPPROTO_TCP, SockOps};
use crate::maps::{self, Filed};
use crate::rules::PodRules;
use crate::sk_lookup::is_counted_here;
use crate::{listen, proxy};

/// `TCP_CLOSE` as a state.
const TCP_CLOSE: u32 = 7;
/// `TCP_LISTEN` as a state.
const TCP_LISTEN: u32 = 10;

/// The key of a connection whose source and listener are known.
#[inline(always)]
fn key_of_dialler(context: SockOps, record: &SocketRecord) -> HandOffKey {
    HandOffKey {
        cookie: record.cookie,
        source: context.local(),
        source_port: context.local_port(),
        listener_port: record.target_port,
        to_own_address: if record.role == role::HANDING_ON {
            ambient::HANDED_ON
        } else {
            to_own_address(&record.target)
        },
    }
}

#[inline(always)]
fn record(context: SockOps) -> Option<&'static mut SocketRecord> {
    let socket = context.socket();
    if socket.is_null() { None } else { maps::record(socket) }
}

/// `TCP_CONNECT_CB`: on the dialler's side, before the SYN.
#[inline(always)]
pub fn connecting(context: SockOps) {
    let Some(record) = record(context).filter(|record| is_on_its_way(record)) else { return };
    let key = key_of_dialler(context, record);
    let value = HandOff { destination: record.destination, port: record.port, _reserved: [0; 6] };
    match maps::put_hand_off(&key, &value) {
        Filed::New => count::hand_off(record.cookie, 1),
        Filed::Replaced => {}
        Filed::Refused => {
            count::fault(record.cookie, Fault::HandOff);
            return;
        }
    }
    context.watch_state();
}

/// `STATE_CB`: on the dialler's side, whatever ends the connection. Not at ESTABLISHED: on loopback that
/// comes before the proxy's side has been there. And on the proxy's listeners.
#[inline(always)]
pub fn state_changed(context: SockOps) {
    if context.new_state() != TCP_CLOSE {
        return;
    }
    let Some(record) = record(context) else { return };
    if context.old_state() == TCP_LISTEN {
        proxy::stops_listening(record);
        listen::ceased(context, record);
    } else if is_on_its_way(record) {
        forget(&key_of_dialler(context, record));
    }
}

/// Whether the socket is the end of a connection that somebody is to learn of.
#[inline(always)]
fn is_on_its_way(record: &SocketRecord) -> bool {
    record.role == role::DIALLER || record.role == role::HANDING_ON
}

/// Forgets a connection that has arrived, or will not.
#[inline(always)]
pub fn forget(key: &HandOffKey) {
    if maps::remove_hand_off(key) {
        count::hand_off(key.cookie, -1);
    }
}

/// The part of the key that says where the proxy was dialled.
#[inline(always)]
fn to_own_address(target: &Address) -> u32 {
    u32::from(!target.is_loopback())
}

/// `PASSIVE_ESTABLISHED`: on the proxy's side. The socket has its listener's record by inheritance.
#[inline(always)]
pub fn accepted(context: SockOps) {
    let Some(record) = record(context) else { return };
    if record.role != role::LISTENER {
        ambient::reached_app(context, record.cookie);
        return;
    }
    record.role = role::ACCEPTED;
    context.watch_state_no_more();
    let cookie = record.cookie;
    let key = HandOffKey {
        cookie,
        source: context.remote(),
        source_port: context.remote_port(),
        listener_port: context.local_port(),
        to_own_address: to_own_address(&context.local()),
    };
    if let Some(hand_off) = maps::hand_off(&key) {
        record.destination = hand_off.destination;
        record.port = hand_off.port;
        forget(&key);
    } else {
        // It was dialled where it arrived: by the network, and sk_lookup chose the listener, or from
        // within the pod, to the proxy itself.
        record.destination = context.local();
        record.port = context.local_port();
        from_network(context, cookie);
    }
}

/// Counts what sk_lookup handed over. Here and not there: sk_lookup also runs for stray segments and
/// repeated SYNs, this once for each connection that the proxy really got.
#[inline(always)]
fn from_network(context: SockOps, cookie: NetnsCookie) {
    let Some(pod) = maps::pod(cookie) else { return };
    // The interface is not to be had here, nor is it needed: what arrived on an excluded one is not at the proxy.
    if is_counted_here(pod, context.local_port()) {
        return;
    }
    let connection = Inbound {
        remote: context.remote(),
        local: context.local(),
        port: context.local_port(),
        interface: 0,
        sender: Sender::Client,
    };
    let reason = verdict::inbound(pod, &PodRules(cookie), &connection);
    // Anything else reached the proxy by being dialled there from within the pod, which connect() counted.
    if reason.action() == Action::ToInbound {
        let facts = Facts {
            protocol: IPPROTO_TCP,
            uid: NO_ID,
            gid: NO_ID,
            is_impostor: false,
            source: connection.remote,
            source_port: context.remote_port(),
            destination: connection.local,
            port: connection.port,
            interface: 0,
        };
        count::decision(cookie, reason, &facts);
    }
}
