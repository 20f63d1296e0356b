//! The runtime's CNI directory: read as a whole, changed file by file, each at once or not at all.
//!
//! Owns: the bytes on the disk, their order of arrival there, mode, owner and label. Never does: choose what to change;
//! that is [`install`]. Called by: `installer`.
//!
//! A file is written beside its place under a name that no runtime reads (it must be in the same directory: containerd
//! sees no file that comes from elsewhere), is synced, takes the place of the other one, and the directory is synced.
//! So a file is whole after a power cut, the old one or the new one. Where the kernel can, the two exchange their names:
//! then what was displaced is still there, and if it is not what the plan was made from (a vendor wrote it a moment ago)
//! they change back, and nobody's write is lost.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rustix::fs::{CWD, RenameFlags, XattrFlags, fsetxattr, getxattr, renameat_with};

use crate::install::{self, Directory, Step};

/// Files that are read, and bytes of each. The longest of real nodes have some kilobytes.
const MOST_FILES: usize = 256;
const MOST_BYTES: u64 = 1 << 20;
/// What our files are called while they are written.
const DRAFT: (&str, &str) = (".veer-", ".new");
/// Written and removed for its events alone.
const NUDGE: &str = "reload";
/// `SELinux` keeps a file's label there.
const LABEL: &str = "security.selinux";

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The file system said no.
    #[error("{attempt} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Somebody has written the file since it was read; nothing was changed.
    #[error("{path} was written by somebody else in the same moment", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Another process is at it.
    #[error("another process changes {path}", path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

fn failed<'a>(attempt: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DirError + use<'a> {
    move |source| DirError::File { attempt, path: path.to_owned(), source }
}

/// A CNI directory, held by one process at a time.
#[derive(Debug)]
pub struct CniDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl CniDir {
    /// Takes hold of a directory.
    ///
    /// # Errors
    /// It is not there, or another process holds it.
    pub fn lock(path: &Path) -> Result<Self, DirError> {
        let directory = File::open(path).map_err(failed("open", path))?;
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_file, errno)| {
            if errno == Errno::EWOULDBLOCK {
                return DirError::Locked { path: path.to_owned() };
            }
            failed("lock", path)(errno.into())
        })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// What is in it.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub fn read(&self) -> Result<Directory, DirError> {
        read(&self.path)
    }

    /// Takes the steps of a plan that was made from `before`.
    ///
    /// # Errors
    /// At the first that fails; the ones before it are done, and the directory is one that works.
    pub fn take(&self, steps: &[Step], before: &Directory) -> Result<(), DirError> {
        for step in steps {
            match step {
                Step::Write { path, bytes, like } => {
                    let there = before.files.get(path).and_then(|file| file.content.as_deref().ok());
                    self.write(path, bytes, like.as_deref(), there)?;
                }
                Step::Move { from, to } => {
                    let (from, to) = (self.path.join(from), self.path.join(to));
                    fs::rename(&from, &to).map_err(failed("rename", &from))?;
                    sync_parent(&to)?;
                }
                Step::Remove { path } => self.remove(path)?,
            }
        }
        // Runtimes do not watch the directories below theirs.
        if steps.iter().any(|step| step.path().contains('/')) {
            self.nudge()?;
        }
        Ok(())
    }

    /// Removes what a process has left that was killed while it wrote.
    ///
    /// # Errors
    /// If one of them cannot be removed.
    pub fn remove_drafts(&self) -> Result<(), DirError> {
        let entries = fs::read_dir(&self.path).map_err(failed("list", &self.path))?.flatten();
        let directories = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
        for directory in std::iter::once(self.path.clone()).chain(directories) {
            remove_drafts_in(&directory)?;
        }
        Ok(())
    }

    fn write(
        &self,
        name: &str,
        bytes: &[u8],
        like: Option<&str>,
        there: Option<&[u8]>,
    ) -> Result<(), DirError> {
        let path = self.path.join(name);
        if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
            let made = DirBuilder::new().mode(0o755).create(directory);
            made.map_err(failed("make", directory))?;
            sync_parent(directory)?;
        }
        let like = like.map(|like| self.path.join(like));
        let draft = write_draft(&path, bytes, like.as_deref())?;
        let placed = match there {
            Some(there) => exchange(&draft, &path, bytes, there),
            None => fs::rename(&draft, &path).map_err(failed("rename", &draft)),
        };
        placed.inspect_err(|_error| drop(fs::remove_file(&draft)))?;
        sync_parent(&path)
    }

    fn remove(&self, name: &str) -> Result<(), DirError> {
        let path = self.path.join(name);
        gone_is_fine(fs::remove_file(&path)).map_err(failed("remove", &path))?;
        if name.contains('/')
            && let Some(directory) = path.parent()
        {
            // One with something in it stays, and so does one that somebody else needs.
            drop(fs::remove_dir(directory));
            return sync(&self.path);
        }
        sync_parent(&path)
    }

    /// Makes the runtime read its configuration again: it does so for any file that is written and removed.
    fn nudge(&self) -> Result<(), DirError> {
        let draft = draft_of(&self.path.join(NUDGE));
        fs::write(&draft, b"\n").map_err(failed("write", &draft))?;
        fs::remove_file(&draft).map_err(failed("remove", &draft))
    }
}

/// What is in a CNI directory. A file that cannot be read is there, with the reason.
///
/// # Errors
/// If it cannot be listed.
pub fn read(path: &Path) -> Result<Directory, DirError> {
    let mut found = Directory::default();
    for (name, path) in list(path)? {
        if path.is_dir() && !name.starts_with('.') {
            // A directory of somebody else's may be closed, or go.
            for (below, path) in list(&path).unwrap_or_default() {
                keep(&mut found, format!("{name}/{below}"), &path);
            }
        } else {
            keep(&mut found, name, &path);
        }
    }
    Ok(found)
}

fn keep(found: &mut Directory, name: String, path: &Path) {
    if !Directory::reads(&name) {
        return;
    }
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    let content = content(path).map_err(|error| format!("cannot be read: {error}"));
    found.files.insert(name, install::File { content, is_link: metadata.is_symlink() });
}

/// Names and paths of what is in a directory.
fn list(path: &Path) -> Result<Vec<(String, PathBuf)>, DirError> {
    let entries = fs::read_dir(path).map_err(failed("list", path))?.take(MOST_FILES);
    let named =
        entries.flatten().filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    Ok(named.collect())
}

/// A file of a CNI directory.
///
/// # Errors
/// As the file system says; or it is no file, or too long.
pub fn content(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe in its place would make us wait for ever.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if metadata.len() > MOST_BYTES {
        return Err(io::Error::other(format!("it has more than {MOST_BYTES} bytes")));
    }
    let mut content = Vec::new();
    File::open(path)?.take(MOST_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

/// Copies a program to where the runtime finds it, whole or not at all; whether it was another one, or none.
///
/// # Errors
/// As the file system says; nothing is left then.
pub fn install_program(from: &Path, to: &Path) -> Result<bool, DirError> {
    let program = fs::read(from).map_err(failed("read", from))?;
    let is_executable = |metadata: fs::Metadata| metadata.is_file() && metadata.mode() & 0o7777 == 0o755;
    if fs::symlink_metadata(to).is_ok_and(is_executable) && fs::read(to).is_ok_and(|there| there == program) {
        return Ok(false);
    }
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
    }
    let draft = write_draft(to, &program, None)?;
    let place = || {
        fs::set_permissions(&draft, Permissions::from_mode(0o755))
            .map_err(failed("set the mode of", &draft))?;
        sync(&draft)?;
        fs::rename(&draft, to).map_err(failed("rename", &draft))?;
        sync_parent(to)
    };
    place().inspect_err(|_error| drop(fs::remove_file(&draft)))?;
    Ok(true)
}

/// Removes a program that [`install_program`] has put there, and what a killed process may have left; whether it was
/// there.
///
/// # Errors
/// As the file system says.
pub fn remove_program(path: &Path) -> Result<bool, DirError> {
    let draft = draft_of(path);
    gone_is_fine(fs::remove_file(&draft)).map_err(failed("remove", &draft))?;
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// A file beside its place, whole on the disk, as `like` is in mode, owner and label.
fn write_draft(path: &Path, bytes: &[u8], like: Option<&Path>) -> Result<PathBuf, DirError> {
    let draft = draft_of(path);
    gone_is_fine(fs::remove_file(&draft)).map_err(failed("remove", &draft))?;
    let write = || -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        match like.map(|like| (like, fs::metadata(like))) {
            Some((like, Ok(metadata))) => {
                let ours = file.metadata()?;
                // Before the mode, of which it takes away; it needs a capability that an agent mostly has no use for.
                if (ours.uid(), ours.gid()) != (metadata.uid(), metadata.gid()) {
                    fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
                }
                file.set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))?;
                copy_label(like, &file);
            }
            // As vendors write theirs: readable.
            Some((_, Err(_))) | None => file.set_permissions(Permissions::from_mode(0o644))?,
        }
        file.sync_all()
    };
    write().inspect_err(|_error| drop(fs::remove_file(&draft))).map_err(failed("write", &draft))?;
    Ok(draft)
}

/// Where there is one. A file without it has the one of the directory, which is mostly the same.
fn copy_label(from: &Path, to: &File) {
    let mut label = [0; 256];
    let Ok(length) = getxattr(from, LABEL, &mut label) else { return };
    if let Some(label) = label.get(..length)
        && let Err(error) = fsetxattr(to, LABEL, label, XattrFlags::empty())
    {
        tracing::debug!(%error, path = %from.display(), "give a file the same label");
    }
}

/// Puts a draft into the place of a file in which this was.
fn exchange(draft: &Path, path: &Path, ours: &[u8], there: &[u8]) -> Result<(), DirError> {
    let changed = || DirError::Changed { path: path.to_owned() };
    match renameat_with(CWD, draft, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        Err(rustix::io::Errno::NOENT) => return Err(changed()),
        // Old kernels, some file systems.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if content(path).map_err(failed("read", path))? != there {
                return Err(changed());
            }
            return fs::rename(draft, path).map_err(failed("rename", draft));
        }
        Err(errno) => return Err(failed("rename", draft)(errno.into())),
    }
    if content(draft).is_ok_and(|displaced| displaced == there) {
        return fs::remove_file(draft).map_err(failed("remove", draft));
    }
    renameat_with(CWD, draft, CWD, path, RenameFlags::EXCHANGE)
        .map_err(|errno| failed("rename", draft)(errno.into()))?;
    // Somebody who wrote twice wrote into ours the second time.
    if content(draft).is_ok_and(|written| written != ours) {
        fs::rename(draft, path).map_err(failed("rename", draft))?;
    }
    Err(changed())
}

fn draft_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{}{name}{}", DRAFT.0, DRAFT.1))
}

fn remove_drafts_in(directory: &Path) -> Result<(), DirError> {
    for (name, path) in list(directory)? {
        if name.starts_with(DRAFT.0) && name.ends_with(DRAFT.1) {
            gone_is_fine(fs::remove_file(&path)).map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}

fn sync_parent(path: &Path) -> Result<(), DirError> {
    path.parent().map_or(Ok(()), sync)
}

fn sync(path: &Path) -> Result<(), DirError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed("sync", path))
}

fn gone_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
