//! Out of the configuration again: the vendors' files as they were, and then the plugin, if nobody needs it any more.

use std::path::Path;

use serde::Serialize;

use super::Target;
use crate::install;
use crate::platform::attachments;
use crate::platform::cnidir::{CniDir, DirError, remove_program};

/// Pods that are named in a text.
const NAMED: usize = 3;

/// What was done, or with `dry_run` would be.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// Whether it was only looked.
    pub dry_run: bool,
    /// Files that are as their vendors wrote them again, that are gone, or that have their name back.
    pub restored: Vec<String>,
    /// Whether the plugin is gone.
    pub plugin_removed: bool,
    /// Why it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin_stays: Option<String>,
}

/// Takes veer out of the configuration. May be run any number of times.
///
/// # Errors
/// As the file system says.
pub fn remove(target: &Target, cache: &Path, dry_run: bool) -> Result<Removal, DirError> {
    let mut removal = Removal { dry_run, ..Removal::default() };
    let dir = match CniDir::lock(&target.conf_dir) {
        Ok(dir) => Some(dir),
        Err(DirError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut still = Vec::new();
    if let Some(dir) = dir {
        still = restore(&dir, &mut removal)?;
    }
    let program = target.program();
    if !program.exists() {
        return Ok(removal);
    }
    removal.plugin_stays = needed(cache, &still);
    if removal.plugin_stays.is_none() {
        removal.plugin_removed = dry_run || remove_program(&program)?;
    }
    Ok(removal)
}

/// The vendors' files. Returns those that call our plugin all the same.
fn restore(dir: &CniDir, removal: &mut Removal) -> Result<Vec<String>, DirError> {
    loop {
        let before = dir.read()?;
        let steps = install::removal(&before);
        removal.restored = steps.iter().map(|step| step.path().to_owned()).collect();
        let still = before.cleaned().mentions().into_iter().map(str::to_owned).collect();
        if removal.dry_run {
            return Ok(still);
        }
        match dir.take(&steps, &before) {
            Ok(()) => {
                dir.remove_drafts()?;
                return Ok(still);
            }
            // A vendor wrote in the same moment: look again.
            Err(DirError::Changed { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Why the plugin is still needed.
fn needed(cache: &Path, still: &[String]) -> Option<String> {
    if !still.is_empty() {
        return Some(format!("{} still names it, and was not written by veer", still.join(", ")));
    }
    let attached = match attachments::with_our_plugin(cache) {
        Ok(attached) => attached,
        Err(error) => {
            return Some(format!("{} cannot be read ({error}): somebody may need it", cache.display()));
        }
    };
    let (first, rest) = attached.split_at(attached.len().min(NAMED));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    (!attached.is_empty()).then(|| {
        format!(
            "pods were attached with it, and a runtime may call it when they go: {}{more}",
            first.join(", ")
        )
    })
}
