//! Files that outlive the agent: one JSON document for each pod, below the run directory.
//!
//! Owns: that a document is there whole or not at all, also after a crash. Never does: know what is in it.
//! Called by: `enrol` and the commands, for pods that nftables redirects; for those of eBPF the maps are the record.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How a document's name ends.
const SUFFIX: &str = ".json";

/// Why a document cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} {path}: {source}", path = path.display())]
pub struct RecordError {
    /// What was tried.
    attempt: &'static str,
    /// On what.
    path: PathBuf,
    /// Why it failed.
    source: io::Error,
}

/// A document with its key, or why it cannot be read.
pub type Document<T> = Result<(u64, T), RecordError>;

/// The directory.
#[derive(Clone, Debug)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// Those in this directory, which need not be there yet.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Whether there ever was one.
    pub fn exist(&self) -> bool {
        self.directory.is_dir()
    }

    /// Makes the directory, readable for root alone.
    ///
    /// # Errors
    /// As the system says.
    pub fn create(&self) -> Result<(), RecordError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|source| failed("make", &self.directory, source))
    }

    /// Writes a document, in place of an earlier one.
    ///
    /// # Errors
    /// As the system says; the earlier one is as it was then.
    pub fn write<T: Serialize>(&self, key: u64, document: &T) -> Result<(), RecordError> {
        let path = self.path(key);
        let draft = self.directory.join(format!(".{key}.draft"));
        let bytes = serde_json::to_vec(document).map_err(|error| failed("encode", &path, error.into()))?;
        let write = || -> io::Result<()> {
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|source| failed("write", &path, source))
    }

    /// Removes a document; one that is gone is fine.
    ///
    /// # Errors
    /// As the system says.
    pub fn remove(&self, key: u64) -> Result<(), RecordError> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// One document; `None` where there is none.
    ///
    /// # Errors
    /// As the system says, or if it is none of ours.
    pub fn read<T: DeserializeOwned>(&self, key: u64) -> Result<Option<T>, RecordError> {
        let path = self.path(key);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path, error)),
            Ok(bytes) => bytes,
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| failed("decode", &path, error.into()))
    }

    /// All documents, in the order of their keys, each as far as it can be read.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn read_all<T: DeserializeOwned>(&self) -> Result<Vec<Document<T>>, RecordError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &self.directory, error)),
            Ok(entries) => entries,
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let key = |name: String| name.strip_suffix(SUFFIX)?.parse::<u64>().ok();
        let mut keys: Vec<u64> = names.filter_map(key).collect();
        keys.sort_unstable();
        Ok(keys
            .into_iter()
            .filter_map(|key| self.read(key).map(|document| Some((key, document?))).transpose())
            .collect())
    }

    fn path(&self, key: u64) -> PathBuf {
        self.directory.join(format!("{key}{SUFFIX}"))
    }
}

fn failed(attempt: &'static str, path: &Path, source: io::Error) -> RecordError {
    RecordError { attempt, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_a_draft_is_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let records = Records::new(&scratch.path().join("pods"));
        assert!(!records.exist());
        assert!(records.read_all::<String>().unwrap().is_empty());
        records.create().unwrap();
        for (key, text) in [(12, "twelve"), (7, "seven"), (12, "a dozen")] {
            records.write(key, &text).unwrap();
        }
        fs::write(scratch.path().join("pods/.9.draft"), "half of it").unwrap();
        let all: Vec<(u64, String)> = records.read_all().unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(all, [(7, "seven".to_owned()), (12, "a dozen".to_owned())]);
        records.remove(7).unwrap();
        records.remove(7).unwrap();
        assert_eq!(records.read::<String>(7).unwrap(), None);
    }

    #[test]
    fn one_that_cannot_be_read_does_not_hide_the_others() {
        let scratch = tempfile::tempdir().unwrap();
        let records = Records::new(scratch.path());
        fs::write(scratch.path().join("1.json"), "{").unwrap();
        records.write(2, &"two").unwrap();
        let [first, second] = records.read_all::<String>().unwrap().try_into().unwrap();
        assert!(first.unwrap_err().to_string().starts_with("decode "));
        assert_eq!(second.unwrap(), (2, "two".to_owned()));
    }
}
