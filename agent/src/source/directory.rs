//! Pods from a directory of manifests, as a kubelet's static pods are.
//!
//! Every `*.json`, `*.yaml` and `*.yml` is one pod, or one namespace with the labels that count for its pods; hidden files are not looked at, so the `..data` of a
//! mounted `ConfigMap` works. The directory may change while the agent runs: a lookup looks at the pod's own file
//! and at the directory's time stamp, lists the directory if either is new or young, and reads only files that
//! have changed. Write a file aside and rename it: half of a manifest can be a valid manifest, and a file that is
//! written to in place is looked at again only when its own pod is asked for, or one that is in no file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{info, warn};
use veer_common::cni::PodReference;

use super::{FileError, Namespaces, PodSource, SourceError, SourceHealth, UnreadableManifest};
use crate::model::manifest::MAX_MANIFEST_BYTES;
use crate::model::{Manifest, NamespaceLabels, Pod};
use crate::wall_clock;

/// A directory of pod manifests.
#[derive(Clone, Debug)]
pub struct Directory {
    path: Arc<Path>,
    namespaces: Namespaces,
    known: Arc<Mutex<Known>>,
}

/// What is known of the directory.
#[derive(Debug, Default)]
struct Known {
    files: Files,
    /// The files that each pod is in, by the pod's full name: one, as it should be.
    of_pods: BTreeMap<String, Vec<OsString>>,
    /// The same of each namespace, by its name.
    of_namespaces: BTreeMap<String, Vec<OsString>>,
    /// The directory's own stamp at the last listing; `None` if it was so young that it may have changed again
    /// without a change of its stamp.
    directory: Option<Stamp>,
}

/// What is known of the directory's files, by name.
type Files = BTreeMap<OsString, KnownFile>;

/// A file as it was when it was read.
#[derive(Debug)]
struct KnownFile {
    stamp: Stamp,
    /// It was so young that it may have changed again without a change of its stamp.
    racy: bool,
    content: Result<Arc<Manifest>, String>,
}

/// What tells one version of a file from the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Clocks of file systems tick no slower than this.
const RACY: Duration = Duration::from_secs(2);

impl Directory {
    /// The directory at this path, which must be there.
    pub fn open(path: impl Into<PathBuf>, namespaces: Namespaces) -> Result<Self, SourceError> {
        let path: PathBuf = path.into();
        if let Err(source) = fs::read_dir(&path) {
            return Err(SourceError::Directory { path, source });
        }
        Ok(Self { path: path.into(), namespaces, known: Arc::default() })
    }
}

impl PodSource for Directory {
    fn name(&self) -> String {
        format!("directory {}", self.path.display())
    }

    async fn pod(&self, reference: &PodReference) -> Result<Option<Pod>, SourceError> {
        let (reference, namespaces) = (reference.clone(), self.namespaces);
        self.look(move |path, known| match known.pod(path, &reference)? {
            Some(pod) if namespaces == Namespaces::Read => known.in_namespace(path, pod).map(Some),
            found => Ok(found),
        })
        .await
    }

    async fn pods(&self) -> Result<Vec<Pod>, SourceError> {
        let namespaces = self.namespaces;
        self.look(move |path, known| {
            known.list(path)?;
            let pods = unambiguous(&known.files);
            if namespaces == Namespaces::Unread {
                return Ok(pods);
            }
            // Of the others nobody can tell what is to become.
            Ok(pods.into_iter().filter_map(|pod| known.in_namespace(path, pod).ok()).collect())
        })
        .await
    }

    fn health(&self) -> Option<SourceHealth> {
        None
    }

    async fn worth_a_look(&self) -> BTreeSet<String> {
        // Nobody tells it of changes.
        std::future::pending().await
    }
}

impl Directory {
    /// Looks at the directory on a thread that may wait for it.
    async fn look<T: Send + 'static>(
        &self,
        at: impl FnOnce(&Path, &mut Known) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let Self { path, known, .. } = self.clone();
        let look = move || at(&path, &mut known.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(look).await.map_err(SourceError::Interrupted)?
    }
}

impl Known {
    /// The pod, out of what is known if that is still so. A node of a thousand pods has a thousand files: to
    /// ask for the stamps of all of them takes longer than all the rest of an ADD.
    fn pod(&mut self, path: &Path, reference: &PodReference) -> Result<Option<Pod>, SourceError> {
        let is_listed = self.directory.is_some() && directory_stamp(path)? == self.directory;
        let wanted = format!("{}/{}", reference.namespace, reference.name);
        let file = one(&self.of_pods, &wanted);
        // Most are in no file.
        let of_namespace = self.of_namespaces.get(&reference.namespace).and_then(|names| names.first());
        let is_current = |name: &OsString| self.is_current(path, name);
        if !is_listed || !file.is_some_and(is_current) || !of_namespace.is_none_or(is_current) {
            self.list(path)?;
        }
        self.find(path, wanted, reference)
    }

    /// Whether a file is as it was when it was read.
    fn is_current(&self, directory: &Path, name: &OsString) -> bool {
        let now = fs::metadata(directory.join(name));
        let is_as_it_was = |known: &KnownFile| now.is_ok_and(|now| Stamp::of(&now) == known.stamp);
        self.files.get(name).is_some_and(|known| !known.racy && is_as_it_was(known))
    }

    /// The one pod of this name.
    fn find(
        &self,
        directory: &Path,
        wanted: String,
        reference: &PodReference,
    ) -> Result<Option<Pod>, SourceError> {
        let names = self.of_pods.get(&wanted).map(Vec::as_slice).unwrap_or_default();
        let mut found =
            names.iter().filter_map(|name| Some((directory.join(name), self.files.get(name)?.pod()?)));
        match (found.next(), found.next()) {
            (Some((path, pod)), None) => same_uid(wanted, path, pod, reference).map(Some),
            (Some((first, _)), Some((second, _))) => {
                Err(SourceError::Ambiguous { pod: wanted, first, second })
            }
            (None, _) => {
                let unreadable = unreadable(directory, &self.files);
                if unreadable.is_empty() {
                    Ok(None)
                } else {
                    Err(SourceError::Unreadable { pod: wanted, unreadable })
                }
            }
        }
    }

    /// A pod with what its namespace asks for: nothing, where it has no manifest.
    fn in_namespace(&self, directory: &Path, mut pod: Pod) -> Result<Pod, SourceError> {
        let namespace = &pod.metadata.namespace;
        let names = self.of_namespaces.get(namespace).map(Vec::as_slice).unwrap_or_default();
        pod.namespace_labels = match names {
            _ if !pod.depends_on_its_namespace() => NamespaceLabels::default(),
            [] => {
                let unreadable = unreadable(directory, &self.files);
                if !unreadable.is_empty() {
                    let (namespace, pod) = (namespace.clone(), pod.full_name());
                    return Err(SourceError::UnreadableNamespace { namespace, pod, unreadable });
                }
                NamespaceLabels::default()
            }
            [name] => self.files.get(name).and_then(KnownFile::namespace).unwrap_or_default(),
            [first, second, ..] => {
                let (namespace, [first, second]) =
                    (namespace.clone(), [first, second].map(|name| directory.join(name)));
                return Err(SourceError::AmbiguousNamespace { namespace, first, second });
            }
        };
        Ok(pod)
    }

    /// Brings what is known up to date.
    fn list(&mut self, path: &Path) -> Result<(), SourceError> {
        // Taken before the listing: what changes meanwhile is newer.
        self.directory = directory_stamp(path)?;
        let notices = refresh(path, &mut self.files)
            .map_err(|source| SourceError::Directory { path: path.to_path_buf(), source })?;
        notices.iter().for_each(log);
        self.of_pods.clear();
        self.of_namespaces.clear();
        for (file, known) in &self.files {
            let (of, name) = match known.content.as_deref() {
                Ok(Manifest::Pod(pod)) => (&mut self.of_pods, pod.full_name()),
                Ok(Manifest::Namespace(name, _)) => (&mut self.of_namespaces, name.clone()),
                Err(_problem) => continue,
            };
            of.entry(name).or_default().push(file.clone());
        }
        Ok(())
    }
}

impl KnownFile {
    fn pod(&self) -> Option<&Pod> {
        match self.content.as_deref() {
            Ok(Manifest::Pod(pod)) => Some(pod),
            Ok(Manifest::Namespace(..)) | Err(_) => None,
        }
    }

    fn namespace(&self) -> Option<NamespaceLabels> {
        match self.content.as_deref() {
            Ok(Manifest::Namespace(_, labels)) => Some(*labels),
            Ok(Manifest::Pod(_)) | Err(_) => None,
        }
    }
}

/// The one file that has this.
fn one<'a>(of: &'a BTreeMap<String, Vec<OsString>>, name: &str) -> Option<&'a OsString> {
    match of.get(name).map(Vec::as_slice) {
        Some([one]) => Some(one),
        _ => None,
    }
}

/// The directory's stamp, unless it is too young to be believed.
fn directory_stamp(path: &Path) -> Result<Option<Stamp>, SourceError> {
    let metadata =
        fs::metadata(path).map_err(|source| SourceError::Directory { path: path.to_path_buf(), source })?;
    Ok((!is_young(&metadata)).then(|| Stamp::of(&metadata)))
}

/// What the log is told of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Notice {
    /// It cannot be used.
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// It could not be used before, and can be now.
    Readable {
        /// The file.
        path: PathBuf,
        /// Namespace and name of its pod, or the name of its namespace.
        of: String,
    },
}

fn log(notice: &Notice) {
    match notice {
        Notice::Unusable { path, problem } => {
            warn!(file = %path.display(), %problem, "manifest cannot be used, its pod will not be found");
        }
        Notice::Readable { path, of } => {
            info!(file = %path.display(), %of, "manifest is readable now");
        }
    }
}

/// Brings what is known up to date with the directory; says what the log should be told.
fn refresh(directory: &Path, files: &mut Files) -> io::Result<Vec<Notice>> {
    let entries = fs::read_dir(directory)?;
    let mut before = std::mem::take(files);
    let mut notices = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if !is_manifest(&name) {
            continue;
        }
        let path = directory.join(&name);
        let known = before.remove(&name);
        let (now, notice) = look_again(&path, known);
        files.insert(name, now);
        notices.extend(notice);
    }
    Ok(notices)
}

fn is_manifest(name: &OsStr) -> bool {
    let hidden = name.as_bytes().starts_with(b".");
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    !hidden && matches!(extension, Some("json" | "yaml" | "yml"))
}

/// What is known of a file, read again only where it may have changed.
fn look_again(path: &Path, known: Option<KnownFile>) -> (KnownFile, Option<Notice>) {
    let stamp = fs::metadata(path).as_ref().map(Stamp::of).unwrap_or_default();
    let known = match known {
        Some(known) if known.stamp == stamp && !known.racy => return (known, None),
        known => known,
    };
    let now = read(path);
    let notice = notice(path, known.as_ref(), &now);
    (now, notice)
}

/// Says once that a file is unreadable, and once that it is not any more.
fn notice(path: &Path, before: Option<&KnownFile>, now: &KnownFile) -> Option<Notice> {
    let was = before.and_then(|known| known.content.as_ref().err());
    match (&now.content, was) {
        (Err(problem), Some(same)) if problem == same && before.is_some_and(|b| b.stamp == now.stamp) => None,
        (Err(problem), _) => Some(Notice::Unusable { path: path.to_owned(), problem: problem.clone() }),
        (Ok(manifest), Some(_)) => {
            let of = match &**manifest {
                Manifest::Pod(pod) => pod.full_name(),
                Manifest::Namespace(name, _) => name.clone(),
            };
            Some(Notice::Readable { path: path.to_owned(), of })
        }
        (Ok(_), None) => None,
    }
}

/// Reads a file. Its stamp is taken from the open file, so that it belongs to what was read.
fn read(path: &Path) -> KnownFile {
    let opened = open(path);
    let stamp = opened.as_ref().map(|(_, metadata)| Stamp::of(metadata)).unwrap_or_default();
    let racy = opened.as_ref().is_ok_and(|(_, metadata)| is_young(metadata));
    let content = opened.and_then(|(file, _)| parse(file));
    KnownFile { stamp, racy, content: content.map(Arc::new).map_err(|error| error.to_string()) }
}

fn open(path: &Path) -> Result<(File, Metadata), FileError> {
    // Opening a pipe would wait for a writer.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err(FileError::NotAFile) }
}

fn parse(file: File) -> Result<Manifest, FileError> {
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Manifest::read(&bytes)?)
}

fn is_young(metadata: &Metadata) -> bool {
    // A time in the future is as doubtful.
    let age = metadata.modified().ok().and_then(wall_clock::age_of);
    age.is_none_or(|age| age < RACY)
}

/// All pods but those whose name several files claim.
fn unambiguous(files: &Files) -> Vec<Pod> {
    let mut by_name: BTreeMap<String, Vec<&Pod>> = BTreeMap::new();
    for pod in files.values().filter_map(KnownFile::pod) {
        by_name.entry(pod.full_name()).or_default().push(pod);
    }
    let one = |pods: Vec<&Pod>| match pods.as_slice() {
        [pod] => Some(Pod::clone(pod)),
        _ => None,
    };
    by_name.into_values().filter_map(one).collect()
}

fn same_uid(wanted: String, path: PathBuf, pod: &Pod, reference: &PodReference) -> Result<Pod, SourceError> {
    match (&pod.metadata.uid, &reference.uid) {
        (Some(found), Some(uid)) if found != uid => {
            Err(SourceError::OtherUid { pod: wanted, path, found: found.clone(), wanted: uid.clone() })
        }
        (_, _) => Ok(pod.clone()),
    }
}

fn unreadable(directory: &Path, files: &Files) -> Vec<UnreadableManifest> {
    let of = |(name, known): (&OsString, &KnownFile)| {
        let problem = known.content.as_ref().err()?.clone();
        Some(UnreadableManifest { path: directory.join(name), problem })
    };
    files.iter().filter_map(of).collect()
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests;
