//! How much the maps hold, and whose part of it is how large.

/// Most pods that one node holds; Kubernetes recommends 110, the largest platforms allow 512.
pub const MAX_PODS: u32 = 4096;
/// Port lists of all pods: one of each [`PortList`](super::PortList) for every pod, so that pods run out before
/// lists do. A list is one entry however long it is: no pod can take another's room.
pub const MAX_PORT_LISTS: u32 = MAX_PODS * 4;
/// Entries of all CIDR lists of all pods. Beyond it enrolment fails; no list is ever cut short. It takes more
/// than a hundred pods whose annotations are full of ranges to get there; the trie takes no room in advance.
pub const MAX_RANGES: u32 = 4_194_304;
/// Addresses of all pods.
pub const MAX_OWN_ADDRESSES: u32 = 65_536;
/// Addresses of the node itself: a few, and where each pod has a link of its own to the node, one for each.
pub const MAX_NODE_ADDRESSES: u32 = 8192;
/// Listeners of all proxies: pods x ports x workers.
pub const MAX_LISTENERS: u32 = 65_536;
/// Redirected connections that have not reached their proxy, on the node.
pub const MAX_HAND_OFFS: u32 = 262_144;
/// Redirected connections that have not reached their proxy, of one pod; further ones are refused. It takes
/// microseconds to get there, unless the proxy does not accept: then one pod's diallers would fill the map
/// for all.
pub const MAX_HAND_OFFS_OF_POD: i64 = 4096;
/// Bytes of the ring buffer, a power of two.
pub const EVENTS_BYTES: u32 = 1 << 20;
/// Listeners of one proxy port that can be held.
pub const MAX_LISTENER_SLOTS: u32 = 192;
/// Where the slots begin of the proxy's own `AF_INET` sockets, of its `AF_INET6` sockets, and of anybody
/// else's. Envoy listens with a worker for each core, and with all of IPv4's before the first of IPv6:
/// those must not be left without a slot.
pub const LISTENER_SLOTS: [u32; 3] = [0, 64, 128];
