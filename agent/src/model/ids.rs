//! Uids and gids of a pod with a user namespace of its own (`hostUsers: false`), as the node's kernel counts.
//!
//! Owns: the form of `/proc/PID/uid_map` (`user_namespaces(7)`) and the translation of a [`Capture`]. Never does:
//! read the maps; `platform::userns` does. Called by: `enrol`.

use std::collections::BTreeSet;

use super::{Capture, IdSpace, OwnerGroups};

/// How the ids of a user namespace map to the node's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdMap(Vec<Extent>);

/// `count` ids from `inside` on are those from `outside` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Extent {
    inside: u32,
    outside: u32,
    count: u32,
}

/// Both maps of a user namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdMaps {
    /// Of users.
    pub uids: IdMap,
    /// Of groups.
    pub gids: IdMap,
}

/// An id that the pod's user namespace does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the proxy's {kind} {id} is not mapped in the pod's user namespace: no process of the pod can have it; \
     set runAsUser and runAsGroup of istio-proxy below 65536"
)]
pub struct UnmappedId {
    /// "uid" or "gid".
    pub kind: &'static str,
    /// The id.
    pub id: u32,
}

impl IdMap {
    /// Parses what the kernel shows; `None` if it is something else, or empty: not written yet.
    pub fn parse(text: &str) -> Option<Self> {
        let extent = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().ok());
            let [inside, outside, count] = [numbers.next()??, numbers.next()??, numbers.next()??];
            numbers.next().is_none().then_some(Extent { inside, outside, count })
        };
        let extents = text.lines().map(extent).collect::<Option<Vec<_>>>()?;
        (!extents.is_empty()).then_some(Self(extents))
    }

    /// The node's number for an id of the namespace; `None` if it has no such id.
    pub fn to_node(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|extent| {
            let index = id.checked_sub(extent.inside).filter(|index| *index < extent.count)?;
            extent.outside.checked_add(index)
        })
    }
}

impl Capture {
    /// The same with the ids of the node's kernel.
    ///
    /// Owner groups that the namespace does not have are left out: no socket can have them.
    pub fn in_ids_of_node(self, maps: &IdMaps) -> Result<Self, UnmappedId> {
        let unmapped = |kind, id| UnmappedId { kind, id };
        let proxy_uid = maps.uids.to_node(self.proxy_uid).ok_or(unmapped("uid", self.proxy_uid))?;
        let proxy_gid = maps.gids.to_node(self.proxy_gid).ok_or(unmapped("gid", self.proxy_gid))?;
        let groups =
            |gids: BTreeSet<u32>| gids.into_iter().filter_map(|gid| maps.gids.to_node(gid)).collect();
        let owner_groups = match self.owner_groups {
            OwnerGroups::AllExcept(gids) => OwnerGroups::AllExcept(groups(gids)),
            OwnerGroups::Only(gids) => OwnerGroups::Only(groups(gids)),
        };
        Ok(Self { proxy_uid, proxy_gid, owner_groups, ids: IdSpace::Node, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_map_by_extent() {
        let map =
            IdMap::parse("         0     100000      65536\n     70000       5000          1\n").unwrap();
        for (inside, outside) in [
            (0, Some(100_000)),
            (1337, Some(101_337)),
            (65_535, Some(165_535)),
            (65_536, None),
            (70_000, Some(5000)),
            (70_001, None),
            (u32::MAX, None),
        ] {
            assert_eq!(map.to_node(inside), outside, "{inside}");
        }
        let edge = IdMap::parse("0 4294967290 100").unwrap();
        assert_eq!((edge.to_node(5), edge.to_node(6)), (Some(u32::MAX), None));
    }

    #[test]
    fn what_is_no_map_is_none() {
        for text in ["", "0 1", "0 1 2 3", "a b c", "0 0 4294967296", "\n"] {
            assert_eq!(IdMap::parse(text), None, "{text:?}");
        }
    }
}
