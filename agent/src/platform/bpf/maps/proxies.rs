//! Which container is the proxy's, and whether a proxy has come, of pods where that counts.

use veer_common::maps::{NetnsCookie, ProxyContainer, name};

use super::{MEMBER, Maps, failed, ignore_missing, insert, none_if_missing};
use crate::platform::bpf::BpfError;

impl Maps {
    /// Which of the pod's containers is the proxy's; `None` if none is, or if that does not count.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn proxy_container(&self, cookie: NetnsCookie) -> Result<Option<ProxyContainer>, BpfError> {
        none_if_missing(self.proxies.get(&cookie, 0)).map_err(failed("read", name::PROXIES))
    }

    /// Makes a container the proxy's, if none is yet. Nothing keeps another one from taking its place before
    /// one of its own sockets begins to listen.
    ///
    /// # Errors
    /// `Full`, or as the kernel says.
    pub fn adopt_proxy_container(&mut self, cookie: NetnsCookie, cgroup: u64) -> Result<(), BpfError> {
        if self.proxy_container(cookie)?.is_some() {
            return Ok(());
        }
        insert(&mut self.proxies, cookie, ProxyContainer { cgroup, listening: 0 }, name::PROXIES)
    }

    /// Lets the pod's connections go direct until its proxy listens. To be called once for a pod, before its policy.
    ///
    /// # Errors
    /// `Full`, or as the kernel says.
    pub fn begin_before_proxy(&mut self, cookie: NetnsCookie) -> Result<(), BpfError> {
        insert(&mut self.before_proxy, cookie, MEMBER, name::BEFORE_PROXY)
    }

    /// Whether the pod's connections go direct because its proxy has not listened yet.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn is_before_proxy(&self, cookie: NetnsCookie) -> Result<bool, BpfError> {
        let found = none_if_missing(self.before_proxy.get(&cookie, 0));
        Ok(found.map_err(failed("read", name::BEFORE_PROXY))?.is_some())
    }

    /// Says that the pod's proxy has listened, as programs do when it does; it may have been said already.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn end_before_proxy(&mut self, cookie: NetnsCookie) -> Result<(), BpfError> {
        ignore_missing(self.before_proxy.remove(&cookie)).map_err(failed("remove from", name::BEFORE_PROXY))
    }

    /// Forgets which of the pod's containers is the proxy's.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn remove_proxy_container(&mut self, cookie: NetnsCookie) -> Result<(), BpfError> {
        ignore_missing(self.proxies.remove(&cookie)).map_err(failed("remove from", name::PROXIES))
    }
}
