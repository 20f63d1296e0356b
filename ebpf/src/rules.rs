//! The lists of one pod, as the verdict asks for them: map lookups.

use veer_common::address::{Address, Port};
use veer_common::maps::{NetnsCookie, PortList, RangeList};
use veer_common::verdict::Rules;

use crate::maps;

/// The lists of the pod with this cookie.
pub struct PodRules(pub NetnsCookie);

impl Rules for PodRules {
    #[inline(always)]
    fn port_listed(&self, list: PortList, port: Port) -> bool {
        maps::port_listed(self.0, list, port)
    }

    #[inline(always)]
    fn range_listed(&self, list: RangeList, address: &Address) -> bool {
        maps::range_listed(self.0, list, address)
    }

    #[inline(always)]
    fn own_address(&self, address: &Address) -> bool {
        maps::own_address(self.0, address)
    }

    #[inline(always)]
    fn group_listed(&self, gid: u32) -> bool {
        maps::group_listed(self.0, gid)
    }

    #[inline(always)]
    fn interface_is(&self, index: u32, kind: u32) -> bool {
        maps::interface_is(self.0, index, kind)
    }

    #[inline(always)]
    fn route_excluded(&self, destination: &Address) -> bool {
        maps::route_excluded(self.0, destination)
    }
}
