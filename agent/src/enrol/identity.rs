//! Who the proxy is to the node's kernel.

use std::borrow::Cow;
use std::os::fd::BorrowedFd;

use super::error::EnrolError;
use crate::model::{Capture, IdSpace};
use crate::platform::userns;

/// The capture with the ids of the node's kernel: as it stands, unless the pod has a user namespace of its own.
pub(super) fn in_ids_of_node<'a>(
    capture: &'a Capture,
    netns: BorrowedFd<'_>,
) -> Result<Cow<'a, Capture>, EnrolError> {
    if capture.ids == IdSpace::Node {
        return Ok(Cow::Borrowed(capture));
    }
    let maps = userns::id_maps(netns)
        .map_err(|source| EnrolError::Inspect { attempt: "read the ids of the user namespace", source })?
        .ok_or(EnrolError::NoUserNamespace)?;
    Ok(Cow::Owned(capture.clone().in_ids_of_node(&maps)?))
}
