//! Proxies that are in their pods: kubelet starts them and the pod's own agent configures them.
//!
//! Owns: that nobody waits for one. A sidecar begins after the pod's ADD, which must not wait for it.
//! Called by: [`Drivers`](super::driver::Drivers).

use super::driver::{DriverError, ProxiedPod, ProxyDriver};

/// The driver.
#[derive(Clone, Debug, Default)]
pub struct Sidecar;

impl ProxyDriver for Sidecar {
    async fn serve(&self, _pod: &ProxiedPod) -> Result<(), DriverError> {
        Ok(())
    }

    async fn begin(&self, _pod: &ProxiedPod) {}

    async fn complete(&self) {}

    fn forget(&self, _pod: &ProxiedPod) {}
}
