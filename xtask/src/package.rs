//! `cargo xtask package`: what is released: an image, its parts as files, a list of what is in them, and checksums.
//!
//! The same binaries give the same bytes: nothing around them tells when, where or by whom they were made. The time in
//! the image is the commit's (or `SOURCE_DATE_EPOCH`).

mod archive;
mod image;
mod sbom;

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::build::{self, Binaries, Profile};
use crate::{exec, setup, workspace};
use archive::Entry;
use image::{About, Image};

/// Of binaries of the host's architecture, in the words of OCI.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// What to package.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where it goes
    #[arg(long, value_name = "DIR", default_value = "out")]
    to: PathBuf,
    /// Further images of one architecture (`veer-image-ARCH.tar` of an earlier run, on a machine of that
    /// architecture): the image is for all of them
    #[arg(long, value_name = "TAR")]
    with: Vec<PathBuf>,
}

/// The verb.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure()?;
    let root = workspace::root()?;
    let about = about(&root)?;
    let binaries =
        build::executables(&root, Profile::Release, &["--bin", "veer", "--bin", "veer-cni"])?.of_a_node()?;
    for binary in [&binaries.veer, &binaries.veer_cni] {
        build::require_static(binary)?;
    }
    let sbom = sbom(&root, &about)?;
    let mut images = vec![image(&root, &binaries, sbom.clone(), &about)?];
    for path in &options.with {
        images.push(Image::read(&read(path)?).with_context(|| format!("read {}", path.display()))?);
    }
    let (archive, digest) = image::archive(&images, &about)?;

    let to = root.join(&options.to);
    fs::create_dir_all(&to).with_context(|| format!("make {}", to.display()))?;
    let name = if images.len() == 1 {
        format!("veer-image-{ARCHITECTURE}.tar")
    } else {
        "veer-image.tar".to_owned()
    };
    let outputs = [
        (format!("veer-{ARCHITECTURE}"), read(&binaries.veer)?),
        (format!("veer-cni-{ARCHITECTURE}"), read(&binaries.veer_cni)?),
        (format!("veer-{ARCHITECTURE}.cdx.json"), sbom),
        (name, archive),
    ];
    let mut sums = Vec::new();
    for (name, bytes) in &outputs {
        sums.push(format!("{}  {name}\n", sha256(bytes)));
        put(&to.join(name), bytes)?;
        exec::print(&format!(
            "{:6.1} MB  {}",
            build::size_in_mb(bytes.len() as u64),
            to.join(name).display()
        ))?;
    }
    put(&to.join("SHA256SUMS"), sums.concat().as_bytes())?;
    exec::print(&format!("{}  {digest}", about.reference()))?;
    Ok(ExitCode::SUCCESS)
}

/// The archive of an image of these binaries, as it is released, in a file: what `ctr images import` takes.
pub(crate) fn image_in(file: &Path, root: &Path, binaries: &Binaries, version: &str) -> Result<()> {
    let about = About { version: version.to_owned(), ..about(root)? };
    let image = image(root, binaries, sbom(root, &about)?, &about)?;
    put(file, &image::archive(&[image], &about)?.0)
}

fn sbom(root: &Path, about: &About) -> Result<Vec<u8>> {
    let sbom = sbom::of(&sbom::Inputs::read(root, ARCHITECTURE)?, about);
    Ok(format!("{sbom:#}\n").into_bytes())
}

fn image(root: &Path, binaries: &Binaries, sbom: Vec<u8>, about: &About) -> Result<Image> {
    let layer = files(read(&binaries.veer)?, read(&binaries.veer_cni)?, sbom, read(&root.join("LICENSE"))?);
    Image::of(ARCHITECTURE, archive::tar(&layer, about.time)?, about)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// What is in the image. The runtime makes the directories that are mounted; `/var/run` is what it is elsewhere.
fn files(veer: Vec<u8>, veer_cni: Vec<u8>, sbom: Vec<u8>, license: Vec<u8>) -> Vec<Entry> {
    let file = |path: &str, mode, bytes| Entry::File { path: path.to_owned(), mode, bytes };
    let directory = |path: &str| Entry::Directory { path: path.to_owned() };
    vec![
        directory("run"),
        directory("usr"),
        directory("usr/local"),
        directory("usr/local/bin"),
        file("usr/local/bin/veer", 0o755, veer),
        file("usr/local/bin/veer-cni", 0o755, veer_cni),
        directory("usr/share"),
        directory("usr/share/doc"),
        directory("usr/share/doc/veer"),
        file("usr/share/doc/veer/LICENSE", 0o644, license),
        file("usr/share/doc/veer/sbom.cdx.json", 0o644, sbom),
        directory("var"),
        Entry::Link { path: "var/run".to_owned(), to: "../run".to_owned() },
    ]
}

fn about(root: &Path) -> Result<About> {
    let git = |arguments: &[&str]| exec::output(Command::new("git").args(arguments).current_dir(root));
    let dirty = !git(&["status", "--porcelain", "--untracked-files=no"])?.trim().is_empty();
    let revision = format!("{}{}", git(&["rev-parse", "HEAD"])?.trim(), if dirty { "-dirty" } else { "" });
    let time = match env::var("SOURCE_DATE_EPOCH") {
        Ok(time) => time,
        Err(_) => git(&["log", "-1", "--format=%ct"])?,
    };
    let time = time.trim().parse().with_context(|| format!("`{}` are no seconds since 1970", time.trim()))?;
    Ok(About { version: env!("CARGO_PKG_VERSION").to_owned(), revision, time })
}

/// Under its name only when it is whole.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_added_extension("part");
    fs::write(&part, bytes).with_context(|| format!("write {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("put {} in its place", path.display()))
}

/// In hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").ok();
    }
    text
}
