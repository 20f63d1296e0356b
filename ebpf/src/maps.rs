//! The maps, each behind accessors that say what may be done with it.
//!
//! Owns: the map definitions; their names, keys and values are the contract in `veer_common::maps`.
//! Never does: decide. All keys are built here, in one place: a `SOCKHASH` takes listeners of any netns
//! without a check, so a wrong key would be a silent black hole.

#![expect(
    unsafe_code,
    reason = "map lookups hand out raw pointers; this is the room where they become references"
)]

use core::ffi::c_void;
use core::hint::black_box;
use core::ptr;

use aya_ebpf::bindings::{
    BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SK_LOOKUP_F_REPLACE, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type,
};
use aya_ebpf::helpers::generated::{
    bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_sk_storage_get, bpf_sock_hash_update,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::programs::SkLookupContext;
use veer_common::address::{Address, Port};
use veer_common::event::Event;
use veer_common::interface::{
    Arrival, IndexKey, Interface, MAX_INTERFACES, MAX_ROUTES, ROUTE_NOT_EXCLUDED, RouteMatch,
};
use veer_common::maps::{
    Counters, DatagramRecord, EVENTS_BYTES, HandOff, HandOffKey, LISTENER_SLOTS, ListenerKey, MAX_HAND_OFFS,
    MAX_LISTENER_SLOTS, MAX_LISTENERS, MAX_NODE_ADDRESSES, MAX_OWN_ADDRESSES, MAX_PODS, MAX_PORT_LISTS,
    MAX_RANGES, NetnsCookie, OwnAddressKey, PodPolicy, PortList, PortListKey, PortSet, ProxyContainer,
    RangeList, RangeMatch, Settings, SocketRecord,
};

use crate::ctx::{SkLookup, Sock, SockOps};

#[map]
static PODS: HashMap<NetnsCookie, PodPolicy> = HashMap::with_max_entries(MAX_PODS, BPF_F_NO_PREALLOC);
#[map]
static COUNTERS: HashMap<NetnsCookie, Counters> = HashMap::with_max_entries(MAX_PODS, BPF_F_NO_PREALLOC);
#[map]
static PORTS: HashMap<PortListKey, PortSet> = HashMap::with_max_entries(MAX_PORT_LISTS, BPF_F_NO_PREALLOC);
#[map]
static RANGES: LpmTrie<RangeMatch, u32> = LpmTrie::with_max_entries(MAX_RANGES, 0);
#[map]
static OWN_ADDRESSES: HashMap<OwnAddressKey, u32> =
    HashMap::with_max_entries(MAX_OWN_ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static INTERFACES: HashMap<IndexKey, Interface> =
    HashMap::with_max_entries(MAX_INTERFACES, BPF_F_NO_PREALLOC);
#[map]
static ROUTES: LpmTrie<RouteMatch, u32> = LpmTrie::with_max_entries(MAX_ROUTES, BPF_F_NO_PREALLOC);
#[map]
static HAND_OFFS: HashMap<HandOffKey, HandOff> = HashMap::with_max_entries(MAX_HAND_OFFS, BPF_F_NO_PREALLOC);
#[map]
static PROXIES: HashMap<NetnsCookie, ProxyContainer> = HashMap::with_max_entries(MAX_PODS, BPF_F_NO_PREALLOC);
#[map]
static BEFORE_PROXY: HashMap<NetnsCookie, u32> = HashMap::with_max_entries(MAX_PODS, BPF_F_NO_PREALLOC);
#[map]
static NODE_ADDRESSES: HashMap<Address, u32> =
    HashMap::with_max_entries(MAX_NODE_ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static INBOUND: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static ARRIVAL: PerCpuArray<Arrival> = PerCpuArray::with_max_entries(1, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);

/// A map definition in the BTF form, by hand: aya-ebpf's `SkStorage` cannot ask for `BPF_F_CLONE`, and its
/// `SockHash` has values of 4 bytes, which user space cannot look up (the kernel wants 8 for that).
#[repr(C)]
struct BtfMap<K, V, const TYPE: usize, const ENTRIES: usize, const FLAGS: usize> {
    r#type: *const [i32; TYPE],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; ENTRIES],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are placeholders for the loader; no program reads through them.
unsafe impl<K, V, const T: usize, const E: usize, const F: usize> Sync for BtfMap<K, V, T, E, F> {}

impl<K, V, const T: usize, const E: usize, const F: usize> BtfMap<K, V, T, E, F> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    #[inline(always)]
    const fn pointer(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

const SK_STORAGE: usize = bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize;
const SOCKHASH: usize = bpf_map_type::BPF_MAP_TYPE_SOCKHASH as usize;
/// `BPF_F_NO_PREALLOC | BPF_F_CLONE`: accepted sockets inherit their listener's record.
const STORAGE_FLAGS: usize = 0x201;

#[btf_map]
static SOCKETS: BtfMap<i32, SocketRecord, SK_STORAGE, 0, STORAGE_FLAGS> = BtfMap::new();
#[btf_map]
static DATAGRAMS: BtfMap<i32, DatagramRecord, SK_STORAGE, 0, { BPF_F_NO_PREALLOC as usize }> = BtfMap::new();
#[btf_map]
static LISTENERS: BtfMap<ListenerKey, u64, SOCKHASH, { MAX_LISTENERS as usize }, 0> = BtfMap::new();

/// The policy of an enrolled pod.
#[inline(always)]
pub fn pod(cookie: NetnsCookie) -> Option<&'static PodPolicy> {
    // SAFETY: BPF_F_NO_PREALLOC: an entry is freed only after the programs that see it have ended.
    unsafe { PODS.get(cookie) }
}

/// The counters of an enrolled pod.
#[inline(always)]
pub fn counters(cookie: NetnsCookie) -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut(cookie)
}

// The lookups of the verdict are functions of their own in the object, too: their keys take stack only
// while they run, and all frames together have 512 bytes.

/// Whether a port is in a list of the pod.
#[inline(never)]
pub fn port_listed(cookie: NetnsCookie, list: PortList, port: Port) -> bool {
    let Some(set) = PORTS.get_ptr(PortListKey::new(cookie, list)) else { return false };
    // The verifier must see the bound, and the compiler, who knows that a port is below 65536, would drop it.
    let index = black_box(PortSet::word(port)) & (PortSet::WORDS - 1);
    // SAFETY: the set is words and nothing else, and the index is one of theirs.
    let word = unsafe { set.cast::<u64>().add(index) };
    // SAFETY: as for `pod`.
    unsafe { *word & PortSet::bit(port) != 0 }
}

/// Whether a range in a list of the pod holds the address.
#[inline(never)]
pub fn range_listed(cookie: NetnsCookie, list: RangeList, address: &Address) -> bool {
    RANGES.get(Key::new(RangeMatch::ALL_BITS, RangeMatch::of_address(cookie, list, address))).is_some()
}

/// Whether the group is in the pod's list of owner groups.
#[inline(never)]
pub fn group_listed(cookie: NetnsCookie, gid: u32) -> bool {
    RANGES.get(Key::new(RangeMatch::ALL_BITS, RangeMatch::of_group(cookie, gid))).is_some()
}

/// Whether the address is one of the pod's own.
#[inline(never)]
pub fn own_address(cookie: NetnsCookie, address: &Address) -> bool {
    OWN_ADDRESSES.get_ptr(OwnAddressKey { cookie, address: *address }).is_some()
}

/// Whether the address is one of the node's.
#[inline(never)]
pub fn node_address(address: &Address) -> bool {
    NODE_ADDRESSES.get_ptr(address).is_some()
}

/// Whether annotations name the interface with this index for this kind.
#[inline(never)]
pub fn interface_is(cookie: NetnsCookie, index: u32, kind: u32) -> bool {
    let Some(interface) = INTERFACES.get_ptr(IndexKey::new(cookie, index)) else { return false };
    // SAFETY: as for `pod`.
    unsafe { (*interface).kinds & kind != 0 }
}

/// Whether the route to the address leads out of excluded interfaces: the longest prefix decides.
#[inline(never)]
pub fn route_excluded(cookie: NetnsCookie, destination: &Address) -> bool {
    ROUTES
        .get(Key::new(RouteMatch::ALL_BITS, RouteMatch::of_address(cookie, destination)))
        .is_some_and(|route| *route != ROUTE_NOT_EXCLUDED)
}

/// Says what the inbound program is about to decide on. Per CPU: the lookup of a listener runs to its
/// end before another one begins on the same CPU. inet_diag looks up with interrupts on: if a SYN comes between this and
/// the inbound program, it is told what listens in that SYN's pod. It reports that, or with SOCK_DESTROY closes it, for
/// which it takes NET_ADMIN (SECURITY.md).
#[inline(always)]
pub fn set_arrival(arrival: &Arrival) -> bool {
    let Some(slot) = ARRIVAL.get_ptr_mut(0) else { return false };
    // SAFETY: a value of this CPU's own array.
    unsafe { slot.write(*arrival) };
    true
}

/// What the inbound program decides on.
#[inline(always)]
pub fn arrival() -> Option<Arrival> {
    ARRIVAL.get(0).copied()
}

/// Jumps to the inbound program of the node; comes back only if there is none.
///
/// `index` is 0 and must not be a constant. The kernel patches a jump whose index it knows into a direct one, and for
/// that keeps a list of all programs that have one (`prog_array_map_poke_track`), which it walks each time one is
/// loaded: each pod would cost the more the more pods there are, and replacing the program that is jumped to would
/// patch the code of all of them.
#[inline(always)]
pub fn jump_to_inbound(context: &SkLookupContext, index: u32) {
    // SAFETY: nothing is held that would have to be dropped.
    unsafe { INBOUND.tail_call(context, index) };
}

/// Whether somebody reads events.
#[inline(always)]
pub fn watched() -> bool {
    SETTINGS.get(0).is_some_and(|settings| settings.watched != 0)
}

/// Room for one event; `None` when the reader is too slow.
#[inline(always)]
pub fn event() -> Option<aya_ebpf::maps::ring_buf::RingBufEntry<Event>> {
    EVENTS.reserve::<Event>(0)
}

/// What became of a redirected connection that was to be filed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Filed {
    /// It is one more.
    New,
    /// It took the place of one that had the same source.
    Replaced,
    /// The map is full.
    Refused,
}

/// Files a redirected connection until the proxy accepts it.
#[inline(always)]
pub fn put_hand_off(key: &HandOffKey, value: &HandOff) -> Filed {
    if HAND_OFFS.insert(key, value, u64::from(BPF_NOEXIST)).is_ok() {
        Filed::New
    } else if HAND_OFFS.insert(key, value, 0).is_ok() {
        Filed::Replaced
    } else {
        Filed::Refused
    }
}

/// The redirected connection that has this source, if there is one.
#[inline(always)]
pub fn hand_off(key: &HandOffKey) -> Option<&'static HandOff> {
    // SAFETY: BPF_F_NO_PREALLOC, as for `pod`.
    unsafe { HAND_OFFS.get(key) }
}

/// Forgets a redirected connection; false if it is gone already.
#[inline(always)]
pub fn remove_hand_off(key: &HandOffKey) -> bool {
    HAND_OFFS.remove(key).is_ok()
}

/// Which of a pod's containers is the proxy's.
#[inline(always)]
pub fn proxy_container(cookie: NetnsCookie) -> Option<*mut ProxyContainer> {
    PROXIES.get_ptr_mut(cookie)
}

/// Notes a pod's first; one that is there already stays.
#[inline(always)]
pub fn put_proxy_container(cookie: NetnsCookie, container: &ProxyContainer) {
    // Whether it is there now is what the caller looks at next.
    let _exists = PROXIES.insert(cookie, container, u64::from(BPF_NOEXIST));
}

/// Whether the pod's proxy has not listened yet. A function of its own, as the verdict's lookups are.
#[inline(never)]
pub fn is_before_proxy(cookie: NetnsCookie) -> bool {
    BEFORE_PROXY.get_ptr(cookie).is_some()
}

/// Notes that the pod's proxy has listened; for good, because no program puts a pod in again.
#[inline(always)]
pub fn end_before_proxy(cookie: NetnsCookie) {
    // Whoever was quicker has done the same.
    let _gone = BEFORE_PROXY.remove(cookie);
}

/// The record of a socket. `socket` comes from a context and is not null.
#[expect(clippy::not_unsafe_ptr_arg_deref, reason = "the verifier proves what `unsafe` would ask of callers")]
#[inline(always)]
pub fn record(socket: *mut c_void) -> Option<&'static mut SocketRecord> {
    // SAFETY: the map is a socket storage with SocketRecord values, the socket comes from the kernel.
    let record = unsafe { bpf_sk_storage_get(SOCKETS.pointer(), socket, ptr::null_mut(), 0) };
    // SAFETY: null, or a SocketRecord that lives as long as the socket, which the program holds.
    unsafe { record.cast::<SocketRecord>().as_mut() }
}

/// The record of a socket, all zero where there was none; `None` when memory is short.
#[expect(clippy::not_unsafe_ptr_arg_deref, reason = "the verifier proves what `unsafe` would ask of callers")]
#[inline(always)]
pub fn record_or_insert(socket: *mut c_void) -> Option<&'static mut SocketRecord> {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as for `record`; without a first value the kernel makes one of zeros.
    let record = unsafe { bpf_sk_storage_get(SOCKETS.pointer(), socket, ptr::null_mut(), flags) };
    // SAFETY: as for `record`.
    unsafe { record.cast::<SocketRecord>().as_mut() }
}

/// The record of a UDP socket, likewise.
#[expect(clippy::not_unsafe_ptr_arg_deref, reason = "the verifier proves what `unsafe` would ask of callers")]
#[inline(always)]
pub fn datagrams(socket: *mut c_void) -> Option<&'static mut DatagramRecord> {
    // SAFETY: the map is a socket storage with DatagramRecord values, the socket comes from the kernel.
    let record = unsafe { bpf_sk_storage_get(DATAGRAMS.pointer(), socket, ptr::null_mut(), 0) };
    // SAFETY: null, or a DatagramRecord that lives as long as the socket, which the program holds.
    unsafe { record.cast::<DatagramRecord>().as_mut() }
}

/// The record of a UDP socket, all zero where there was none; `None` when memory is short.
#[expect(clippy::not_unsafe_ptr_arg_deref, reason = "the verifier proves what `unsafe` would ask of callers")]
#[inline(always)]
pub fn datagrams_or_insert(socket: *mut c_void) -> Option<&'static mut DatagramRecord> {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as for `datagrams`; without a first value the kernel makes one of zeros.
    let record = unsafe { bpf_sk_storage_get(DATAGRAMS.pointer(), socket, ptr::null_mut(), flags) };
    // SAFETY: as for `datagrams`.
    unsafe { record.cast::<DatagramRecord>().as_mut() }
}

/// Registers the listener of a TCP_LISTEN callback in the first free slot of its port from `slot` on, before `end`.
#[inline(always)]
pub fn register_listener(
    context: SockOps,
    cookie: NetnsCookie,
    port: Port,
    (mut slot, end): (u32, u32),
) -> bool {
    while slot < end {
        let mut key = ListenerKey { cookie, port, _reserved: [0; 2], slot };
        let (map, key) = (LISTENERS.pointer(), ptr::from_mut(&mut key).cast());
        // SAFETY: the context is live, the map is a sockhash, the key is of its type and on our stack.
        let result = unsafe { bpf_sock_hash_update(context.pointer(), map, key, u64::from(BPF_NOEXIST)) };
        if result == 0 {
            return true;
        }
        slot += 1;
    }
    false
}

/// What became of a lookup among the proxy's listeners.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Assigned {
    /// The connection has its listener.
    Yes,
    /// Nobody listens.
    NoListener,
    /// Somebody listens, and the kernel took none of them.
    Refused,
}

/// Gives the connection to a listener of the port. The slots are tried in order: a v4 listener cannot take
/// a v6 connection, so the first one found need not be the one. Within a SO_REUSEPORT group the kernel
/// spreads the connections itself.
#[inline(always)]
pub fn assign_listener(context: SkLookup, cookie: NetnsCookie, port: Port) -> Assigned {
    let mut outcome = Assigned::NoListener;
    // A v6 connection needs a v6 socket; a v4 connection may go to one, too, if it serves both families.
    let [v4s, v6s, _] = LISTENER_SLOTS;
    let mut slot = if context.is_v6() { v6s } else { v4s };
    while slot < MAX_LISTENER_SLOTS {
        let key = ListenerKey { cookie, port, _reserved: [0; 2], slot };
        slot += 1;
        // SAFETY: the map is a sockhash and the key is of its type.
        let socket = unsafe { bpf_map_lookup_elem(LISTENERS.pointer(), ptr::from_ref(&key).cast()) };
        if socket.is_null() {
            continue;
        }
        // 5.10 takes one that does not listen any more, and its connections wait until they time out.
        let listens = Sock::new(socket).is_listening();
        // SAFETY: the socket is the one that was just looked up and is held.
        let assigned = listens.then(|| unsafe { bpf_sk_assign(context.pointer(), socket, 0) });
        // SAFETY: gives back what the lookup took; the socket is not used after this.
        let _ = unsafe { bpf_sk_release(socket) };
        match assigned {
            Some(0) => return Assigned::Yes,
            Some(_) => outcome = Assigned::Refused,
            None => {}
        }
    }
    outcome
}

/// Takes the connection from the listener that [`assign_listener`] gave it to.
#[inline(always)]
pub fn unassign_listener(context: SkLookup, assigned: Assigned) {
    if assigned == Assigned::Yes {
        // SAFETY: the context is live; no socket means none (`bpf_sk_lookup_assign()`, Linux 5.9).
        let _ =
            unsafe { bpf_sk_assign(context.pointer(), ptr::null_mut(), u64::from(BPF_SK_LOOKUP_F_REPLACE)) };
    }
}
