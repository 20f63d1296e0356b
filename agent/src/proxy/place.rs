//! Where the agent and the node's Envoy meet: a directory (not the run directory, which is root's alone) with the agent's socket, Envoy's bootstrap, and Envoy's own
//! socket for its admin interface.
//!
//! Envoy runs as a user without any right here, and the agent without the right to give files away: so the socket is
//! everybody's to connect to, and who does is asked for his uid (`proxy::ads`); and the directory is like `/tmp`, that Envoy can
//! make its socket, and nobody can take away another's.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::bootstrap::bootstrap;
use crate::socket;

/// Its files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxyPlace {
    directory: PathBuf,
}

impl ProxyPlace {
    /// In a directory, which need not be there.
    pub fn of(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// What Envoy is started with.
    pub fn bootstrap(&self) -> PathBuf {
        self.directory.join("envoy.json")
    }

    /// Where the agent listens.
    pub fn ads(&self) -> PathBuf {
        self.directory.join("ads.sock")
    }

    /// Where Envoy's admin interface listens.
    pub fn admin(&self) -> PathBuf {
        self.directory.join("admin.sock")
    }

    /// What belongs to the Envoys that the agent starts: their log, their records, and their sockets.
    pub fn envoy(&self) -> PathBuf {
        self.directory.join("envoy")
    }

    /// Makes all of it, and listens.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(&self) -> io::Result<UnixListener> {
        DirBuilder::new().recursive(true).mode(0o755).create(&self.directory)?;
        fs::set_permissions(&self.directory, Permissions::from_mode(0o1777))?;
        let text = serde_json::to_vec_pretty(&bootstrap(&self.ads(), &self.admin()))?;
        let draft = self.directory.join(format!(".envoy-{:016x}.json", fastrand::u64(..)));
        let written = write_anew(&draft, &text).and_then(|()| fs::rename(&draft, self.bootstrap()));
        if let Err(error) = written {
            drop(fs::remove_file(draft));
            return Err(error);
        }
        let listener = socket::listen(&self.ads())?;
        fs::set_permissions(self.ads(), Permissions::from_mode(0o666))?;
        Ok(listener)
    }
}

/// Writes a file that is nobody else's: in a directory that anybody may write to, one that is there may be a link, or stay
/// open in another's hands. Nobody can be there before, as nobody knows its name.
fn write_anew(path: &Path, text: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn a_bootstrap_is_written_whole_or_is_as_before() {
        let directory = tempfile::tempdir().unwrap();
        let place = ProxyPlace::of(directory.path());
        drop(place.open().unwrap());
        let written = fs::read(place.bootstrap()).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&written).is_ok());
        // Whatever others have put there under the names of drafts.
        fs::create_dir(directory.path().join(".envoy.json")).unwrap();
        drop(place.open().unwrap());
        fs::remove_file(place.bootstrap()).unwrap();
        // It cannot be replaced.
        fs::create_dir(place.bootstrap()).unwrap();
        place.open().unwrap_err();
        assert!(place.bootstrap().is_dir());
        let names = fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        assert_eq!(names, [".envoy.json", "ads.sock", "envoy.json"]);
    }

    #[test]
    fn what_somebody_has_put_in_the_place_of_a_file_is_not_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let [path, other] = ["draft", "other"].map(|name| directory.path().join(name));
        fs::write(&other, "kept").unwrap();
        symlink(&other, &path).unwrap();
        assert_eq!(write_anew(&path, b"new").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&other).unwrap(), b"kept".to_vec());
    }
}
