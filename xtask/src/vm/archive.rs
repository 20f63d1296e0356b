//! An archive that the kernel unpacks into its first root directory: cpio in the form `newc`.
//!
//! Owns: the form (`Documentation/driver-api/early-userspace/buffer-format.rst`). Archives may follow one another
//! in one file; what comes later is unpacked later. Never does: look at what it packs. Called by: `image`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
/// Headers, names and contents begin at multiples of this.
const ALIGNMENT: usize = 4;

/// What is at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// A file of this machine, executable if it is.
    Copy(PathBuf),
    /// A file with these bytes, not executable.
    Text(String),
    /// A symbolic link to there.
    Link(PathBuf),
    Directory,
}

/// Paths, from the root on, and what is there. Directories on the way need not be named.
#[derive(Default)]
pub(super) struct Archive(BTreeMap<PathBuf, Entry>);

impl Archive {
    /// Puts an entry there, and directories above it; what was there before stays.
    pub(super) fn put(&mut self, path: impl Into<PathBuf>, entry: Entry) {
        let path = path.into();
        for above in path.ancestors().skip(1).filter(|above| above.parent().is_some()) {
            self.0.entry(above.to_owned()).or_insert(Entry::Directory);
        }
        self.0.entry(path).or_insert(entry);
    }

    /// Writes all of it. A path sorts behind those above it, as the kernel needs it.
    pub(super) fn write(&self, mut out: impl Write) -> Result<()> {
        for (inode, (path, entry)) in (1..).zip(&self.0) {
            write_entry(&mut out, inode, path, entry).with_context(|| format!("pack {}", path.display()))?;
        }
        header(&mut out, 0, 0, 0, "TRAILER!!!").context("end the archive")?;
        Ok(())
    }
}

fn write_entry(out: &mut impl Write, inode: u32, path: &Path, entry: &Entry) -> io::Result<()> {
    let name = path.strip_prefix("/").unwrap_or(path);
    let name = name.to_str().ok_or_else(|| io::Error::other("its name is no text"))?;
    match entry {
        Entry::Directory => header(out, inode, DIRECTORY | 0o755, 0, name),
        Entry::Text(text) => whole(out, inode, FILE | 0o644, name, text.as_bytes()),
        Entry::Link(target) => whole(out, inode, LINK | 0o777, name, target.as_os_str().as_encoded_bytes()),
        Entry::Copy(source) => copy(out, inode, name, source),
    }
}

fn whole(out: &mut impl Write, inode: u32, mode: u32, name: &str, bytes: &[u8]) -> io::Result<()> {
    header(out, inode, mode, bytes.len(), name)?;
    out.write_all(bytes)?;
    pad(out, bytes.len())
}

fn copy(out: &mut impl Write, inode: u32, name: &str, source: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut file = File::open(source)?;
    let mode = file.metadata()?.permissions().mode() & 0o111;
    // As long as it is now: it may be read only once it has been told.
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    header(out, inode, FILE | 0o644 | mode, length, name)?;
    let copied = io::copy(&mut file, out)?;
    if u64::try_from(length).ok() != Some(copied) {
        return Err(io::Error::other(format!("{} has changed meanwhile", source.display())));
    }
    pad(out, length)
}

/// Thirteen fields of eight hexadecimal digits, and the name with a zero behind it.
fn header(out: &mut impl Write, inode: u32, mode: u32, length: usize, name: &str) -> io::Result<()> {
    let size = u32::try_from(length).map_err(io::Error::other)?;
    let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
    let links = 1;
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    let fields = fields.map(|field: u32| format!("{field:08x}")).concat();
    let text = format!("070701{fields}{name}\0");
    out.write_all(text.as_bytes())?;
    pad(out, text.len())
}

fn pad(out: &mut impl Write, written: usize) -> io::Result<()> {
    let zeros = [0; ALIGNMENT];
    let missing = written.next_multiple_of(ALIGNMENT) - written;
    out.write_all(zeros.get(..missing).unwrap_or(&[]))
}

/// One file of several archives.
pub(super) fn join(parts: &[&Path], into: &Path) -> Result<()> {
    let mut out = File::create(into).with_context(|| format!("create {}", into.display()))?;
    for part in parts {
        let mut part = File::open(part).with_context(|| format!("open {}", part.display()))?;
        io::copy(&mut part, &mut out).with_context(|| format!("write {}", into.display()))?;
    }
    Ok(())
}

/// Writes an archive into a file.
pub(super) fn create(archive: &Archive, into: &Path) -> Result<()> {
    if let Some(directory) = into.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    let file = File::create(into).with_context(|| format!("create {}", into.display()))?;
    let mut out = io::BufWriter::new(file);
    archive.write(&mut out)?;
    out.flush().with_context(|| format!("write {}", into.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_has_the_bytes_of_the_form() {
        let mut archive = Archive::default();
        archive.put("/a/b", Entry::Text("hello".to_owned()));
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let field = |number: u32| format!("{number:08x}");
        let header = |inode, mode, size, name: &str| {
            let fields =
                [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, u32::try_from(name.len()).unwrap() + 1, 0];
            let mut text = format!("070701{}{name}\0", fields.map(field).concat());
            while text.len() % 4 != 0 {
                text.push('\0');
            }
            text
        };
        let expected = [
            header(1, 0o040_755, 0, "a"),
            header(2, 0o100_644, 5, "a/b"),
            "hello\0\0\0".to_owned(),
            header(0, 0, 0, "TRAILER!!!"),
        ];
        assert_eq!(String::from_utf8(bytes).unwrap(), expected.concat());
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_the_first_entry_of_a_path_stays() {
        let mut archive = Archive::default();
        archive.put("/sbin/modprobe", Entry::Link("/bin/busybox".into()));
        archive.put("/sbin/modprobe", Entry::Directory);
        archive.put("/bin", Entry::Directory);
        let paths: Vec<_> = archive.0.iter().map(|(path, entry)| (path.to_str().unwrap(), entry)).collect();
        let link = Entry::Link("/bin/busybox".into());
        let wanted = [("/bin", &Entry::Directory), ("/sbin", &Entry::Directory), ("/sbin/modprobe", &link)];
        assert_eq!(paths, wanted);
    }

    #[test]
    fn a_file_is_packed_whole_and_keeps_its_right_to_be_executed() {
        let own = std::env::current_exe().unwrap();
        let mut archive = Archive::default();
        archive.put("/own", Entry::Copy(own.clone()));
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        assert!(bytes.starts_with(b"07070100000001000081ed"), "its mode is 755");
        let content = fs::read(own).unwrap();
        assert!(bytes.windows(content.len().min(4096)).any(|part| content.starts_with(part)));
    }
}
