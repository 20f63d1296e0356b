//! Puts veer into the runtime's CNI configuration, keeps it there, and takes it out.
//!
//! Owns: the order of the acts (the plugin before its entry, its entry out before the plugin), the repair of what others
//! undo ([`watch`]), and what is told of it ([`state`]). Never does: choose what to change ([`install`](crate::install)),
//! or touch a byte ([`cnidir`](crate::platform::cnidir)). An agent that stops takes nothing away.
//! Called by: `app` and the commands `install-cni` and `uninstall-cni`.

mod remove;
pub mod state;
pub mod target;
pub mod watch;

pub use remove::{Removal, remove};
pub use state::{InstallState, Installs, Phase, Writer};
pub use target::Target;

use crate::install::{Directory, Placed, Plan, PlanError, Step, Wish, plan};
use crate::platform::cnidir::{CniDir, DirError, install_program};

/// How often a plan is made anew because a vendor wrote in the same moment.
const TRIES: usize = 8;

/// Why veer is not in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is nothing to be put into, or not yet.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file or directory.
    #[error(transparent)]
    Directory(DirError),
    /// The plugin cannot be copied.
    #[error("install the plugin: {0}")]
    Program(DirError),
}

impl InstallError {
    /// Whether it passes when somebody else does his part.
    pub fn is_waited_for(&self) -> bool {
        match self {
            Self::Plan(error) => error.is_waited_for(),
            Self::Directory(DirError::File { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
            Self::Directory(DirError::Changed { .. } | DirError::Locked { .. }) => true,
            Self::Program(_) => false,
        }
    }
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// Where our entry is.
    pub placed: Placed,
    /// The files that were changed, and the plugin if it was copied.
    pub changed: Vec<String>,
}

/// What an installation would do.
#[derive(Debug)]
pub(crate) struct Look {
    /// What is there.
    pub(crate) before: Directory,
    /// What is to be done.
    pub(crate) plan: Result<Plan, PlanError>,
}

/// Looks, and changes nothing.
pub(crate) fn look(target: &Target, wish: &Wish) -> Result<Look, InstallError> {
    let before = crate::platform::cnidir::read(&target.conf_dir).map_err(InstallError::Directory)?;
    let plan = plan(&before, wish);
    Ok(Look { before, plan })
}

/// Installs: the plugin, and then its entry.
///
/// # Errors
/// Why it cannot, or not yet. What works already goes on working.
pub fn install(target: &Target, wish: &Wish) -> Result<Done, InstallError> {
    let dir = CniDir::lock(&target.conf_dir).map_err(InstallError::Directory)?;
    dir.remove_drafts().map_err(InstallError::Directory)?;
    let mut changed = Vec::new();
    let mut tries = 0;
    loop {
        tries += 1;
        let before = dir.read().map_err(InstallError::Directory)?;
        let Plan { steps, placed } = plan(&before, wish)?;
        // First: from the moment of the entry on, the runtime calls it.
        if install_program(&target.plugin, &target.program()).map_err(InstallError::Program)? {
            changed.push(target.program().display().to_string());
        }
        match dir.take(&steps, &before) {
            Ok(()) => {
                changed.extend(paths(&steps));
                return Ok(Done { placed, changed });
            }
            Err(DirError::Changed { .. }) if tries < TRIES => {}
            Err(error) => return Err(InstallError::Directory(error)),
        }
    }
}

fn paths(steps: &[Step]) -> impl Iterator<Item = String> {
    steps.iter().map(|step| step.path().to_owned())
}

/// What [`install`] would do, and does not.
///
/// # Errors
/// As it would have.
pub fn would(target: &Target, wish: &Wish) -> Result<Done, InstallError> {
    let Plan { steps, placed } = look(target, wish)?.plan?;
    Ok(Done { placed, changed: paths(&steps).collect() })
}
