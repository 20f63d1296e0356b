//! Where a ztunnel runs, for whoever has something to ask it that ZDS has no words for.
//!
//! Owns: that one ztunnel is one, however often it is connected. Never does: enter a netns, or keep one. Called by: `zds`.

use std::os::fd::{AsFd, OwnedFd};

use crate::platform::netns::NetnsId;

/// A ztunnel that is connected.
#[derive(Debug)]
pub struct Peer {
    /// Its own netns: that of the pod that it runs in.
    pub netns: OwnedFd,
    /// Which one that is. Two ztunnels that live at the same time have two, unless they have the node's.
    pub id: NetnsId,
}

/// Each netns once: a ztunnel that comes again may do so before its last connection has ended.
pub(super) fn distinct<'a>(netns: impl Iterator<Item = &'a OwnedFd>) -> Vec<Peer> {
    let mut peers: Vec<Peer> = Vec::new();
    for netns in netns {
        // Who cannot be told from another one, or for want of descriptors not be reached, is not asked this time.
        let (Ok(id), Ok(netns)) = (NetnsId::of(netns.as_fd()), netns.try_clone()) else { continue };
        if peers.iter().all(|peer| peer.id != id) {
            peers.push(Peer { netns, id });
        }
    }
    peers
}
