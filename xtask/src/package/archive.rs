//! Archives that are the same for the same content: sorted as given, root's, with one time for all. Pure.

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use tar::{Builder, EntryType, Header};

/// Something in an archive; paths without a leading slash, directories before what is in them.
pub(super) enum Entry {
    Directory { path: String },
    File { path: String, mode: u32, bytes: Vec<u8> },
    Link { path: String, to: String },
}

/// A tar; `time` in seconds since 1970.
pub(super) fn tar(entries: &[Entry], time: u64) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_ustar();
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        let (path, bytes): (_, &[u8]) = match entry {
            Entry::Directory { path } => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                (path, &[])
            }
            Entry::File { path, mode, bytes } => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(*mode);
                (path, bytes)
            }
            Entry::Link { path, to } => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_link_name(to).with_context(|| format!("link {path} to {to}"))?;
                (path, &[])
            }
        };
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes).with_context(|| format!("archive {path}"))?;
    }
    builder.into_inner().context("end the archive")
}

/// Without a name or a time, as gzip's header may have them.
pub(super) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).context("compress")?;
    encoder.finish().context("compress")
}
