//! The directory of users' resources, followed: what is read is told to the one who drives Envoy, and what cannot be, too.
//!
//! Owns: reading it again when it has changed, and now and then, because events may be lost. Kubernetes mounts a ConfigMap as
//! a link to a directory that it exchanges; files whose names begin with a dot are its own.
//! Never does: decide what is wrong with a file. Called by: `app`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::ads::Ads;
use super::UserConfig;
use super::read::{self, File};
use crate::platform::inotify::Changes;

/// Largest file, in bytes: what a ConfigMap can hold.
const MAX_FILE: u64 = 1 << 20;
/// Most files.
const MAX_FILES: usize = 256;
/// How long a change may go unnoticed.
const INTERVAL: Duration = Duration::from_secs(30);

/// How long nothing has to change until what is there counts.
const REST: Duration = Duration::from_millis(50);
/// How often it is waited for that.
const MAX_ATTEMPTS: u32 = 40;

/// Why the directory was not read.
#[derive(Debug, thiserror::Error)]
enum DirectoryError {
    /// Of it, or a file in it.
    #[error("read {path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file.
    #[error("{path} is larger than {MAX_FILE} bytes", path = path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// Too many of them.
    #[error("{path} has more than {MAX_FILES} files", path = path.display())]
    TooMany {
        /// Of which directory.
        path: PathBuf,
    },
}

/// Tells `ads` what is in the directory, now and whenever it changes, until `stop`. `release` gives memory back that reading
/// took.
pub async fn follow(directory: PathBuf, ads: Ads, release: fn(), stop: CancellationToken) {
    let mut changes = Changes::new()
        .inspect_err(|error| tracing::warn!(%error, "changes of --proxy-config are seen late"))
        .ok();
    let mut seen = None;
    loop {
        if let Some(changes) = &changes {
            changes.watch(std::slice::from_ref(&directory));
        }
        let Some((now, news)) =
            stop.run_until_cancelled(look_in_rest(&directory, seen.as_ref(), changes.as_mut())).await
        else {
            return;
        };
        seen = Some(now);
        match news {
            Some(Ok(config)) => {
                tracing::info!(directory = %directory.display(), "read the resources of --proxy-config");
                ads.configure(config).await;
                release();
            }
            Some(Err(problem)) => {
                tracing::error!(%problem, "--proxy-config is not taken; what was taken before stays");
                ads.misconfigured(problem).await;
            }
            None => {}
        }
        let waited = tokio::time::timeout(INTERVAL, changed(changes.as_mut()));
        if stop.run_until_cancelled(waited).await.is_none() {
            return;
        }
    }
}

async fn changed(changes: Option<&mut Changes>) {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// Looks when nothing has changed for a moment, and again if something changes meanwhile: whoever lists a directory while
/// a file in it is replaced may see neither the old one nor the new one, and a filter that is not seen guards nobody.
async fn look_in_rest(directory: &Path, seen: Option<&Seen>, mut changes: Option<&mut Changes>) -> Looked {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let (path, before) = (directory.to_owned(), seen.cloned());
        let looked = tokio::task::spawn_blocking(move || look(&path, before.as_ref())).await;
        let looked = looked.unwrap_or_else(|error| (Err(error.to_string()), None));
        let at_rest = tokio::time::timeout(REST, changed(changes.as_deref_mut())).await.is_err();
        // Where something changes all the time, nothing is to be had but what was seen.
        if at_rest || attempts == MAX_ATTEMPTS {
            return looked;
        }
        while attempts < MAX_ATTEMPTS
            && tokio::time::timeout(REST, changed(changes.as_deref_mut())).await.is_ok()
        {
            attempts += 1;
        }
    }
}

/// The files, or why they cannot be read.
type Seen = Result<Vec<File>, String>;

/// What is there, and what it means unless that was seen before.
type Looked = (Seen, Option<Result<UserConfig, String>>);

/// Looks once.
fn look(directory: &Path, before: Option<&Seen>) -> Looked {
    let now = files(directory).map_err(|error| error.to_string());
    if before == Some(&now) {
        return (now, None);
    }
    let read = match &now {
        Ok(files) => read::read(files).map_err(|errors| errors.to_string()),
        Err(problem) => Err(problem.clone()),
    };
    (now, Some(read))
}

fn files(directory: &Path) -> Result<Vec<File>, DirectoryError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| DirectoryError::File { path, source }
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        let path = entry.map_err(failed(directory))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_meant = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
        if name.starts_with('.') || !is_meant {
            continue;
        }
        // What is not read is not applied: that must not go unnoticed.
        if fs::metadata(&path).map_err(failed(&path))?.len() > MAX_FILE {
            return Err(DirectoryError::TooLarge { path });
        }
        if files.len() == MAX_FILES {
            return Err(DirectoryError::TooMany { path: directory.to_owned() });
        }
        let content = fs::read(&path).map_err(failed(&path))?;
        files.push(File { name: name.to_owned(), content });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}
