//! A kernel out of Debian packages: unpacked, never installed.
//!
//! Owns: finding the kernel and the modules that the tests need in whatever shape a release packs them.
//! Never does: fetch, which is `setup`'s. Called by: `vm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::{Archive, Entry};
use crate::{exec, workspace};

/// Where packages have modules: the second from 6.12 on.
const MODULES: [&str; 2] = ["lib/modules", "usr/lib/modules"];
/// What of them the tests can come to need, with what those depend on: networks, and no device of a real machine.
const NEEDED: [&str; 5] =
    ["kernel/net", "kernel/lib", "kernel/crypto", "kernel/drivers/net", "kernel/arch/x86/crypto"];
/// Devices without hardware are files here; the directories hold drivers of hardware, but for these.
const DRIVERS: &str = "kernel/drivers/net";
const SOFT_DRIVERS: [&str; 2] = ["ipvlan", "bonding"];

/// A kernel that can be booted.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The file that QEMU boots.
    pub(super) image: PathBuf,
    /// The directory of its modules; its name is the kernel's release.
    modules: PathBuf,
}

impl Kernel {
    /// Unpacks packages into an empty directory.
    pub(super) fn unpack(packages: &[PathBuf], into: &Path) -> Result<Self> {
        for package in packages {
            // Without its path's colons or leading dashes read as anything else.
            exec::output(Command::new("dpkg-deb").arg("--extract").arg(package).arg(into))?;
        }
        let modules = MODULES.iter().find_map(|place| only_directory(&into.join(place)));
        let modules = modules.with_context(|| format!("no modules in {}", names(packages)))?;
        let release = modules.file_name().and_then(|name| name.to_str()).context("a release is text")?;
        let places = [into.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let Some(image) = places.into_iter().find(|place| place.is_file()) else {
            bail!("no kernel {release} in {}: name all packages of one kernel, with commas", names(packages));
        };
        Ok(Self { image, modules })
    }

    /// Its release, as `uname -r` says it.
    pub(super) fn release(&self) -> String {
        self.modules.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The modules that the tests need, with the lists by which modprobe finds them.
    pub(super) fn modules(&self) -> Result<Archive> {
        for directory in NEEDED {
            decompress(&self.modules.join(directory))?;
        }
        let mut files = Vec::new();
        for directory in NEEDED {
            collect(&self.modules.join(directory), &mut files)?;
        }
        let staged = self.stage(&files)?;
        let mut archive = Archive::default();
        let mut packed = Vec::new();
        collect(&staged, &mut packed)?;
        let place = Path::new("/lib/modules").join(self.release());
        for file in packed {
            let inside = place.join(file.strip_prefix(&staged).context("a staged file")?);
            archive.put(inside, Entry::Copy(file));
        }
        Ok(archive)
    }

    /// A tree of them alone, because depmod lists what is in a tree.
    fn stage(&self, files: &[PathBuf]) -> Result<PathBuf> {
        let release = self.release();
        let root = self.modules.join("staged");
        let staged = root.join("lib/modules").join(&release);
        for file in files {
            let relative = file.strip_prefix(&self.modules).context("a module")?;
            if is_of_hardware(relative) {
                continue;
            }
            let to = staged.join(relative);
            let above = to.parent().context("a module's directory")?;
            fs::create_dir_all(above).with_context(|| format!("make {}", above.display()))?;
            fs::hard_link(file, &to).with_context(|| format!("link {}", to.display()))?;
        }
        for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            if self.modules.join(list).is_file() {
                fs::copy(self.modules.join(list), staged.join(list))
                    .with_context(|| format!("copy {list}"))?;
            }
        }
        let depmod = workspace::program("depmod").context("depmod was there a moment ago")?;
        exec::output(Command::new(depmod).arg("--basedir").arg(&root).arg(&release))?;
        Ok(staged)
    }
}

/// Drivers in directories of their own belong to hardware that the machine does not have.
fn is_of_hardware(module: &Path) -> bool {
    let Ok(driver) = module.strip_prefix(DRIVERS) else { return false };
    let is_file = driver.components().count() == 1;
    !is_file && !SOFT_DRIVERS.iter().any(|directory| driver.starts_with(directory))
}

/// Modules are compressed from 6.12 on, and a small modprobe may not read that.
fn decompress(directory: &Path) -> Result<()> {
    let mut files = Vec::new();
    if directory.is_dir() {
        collect(directory, &mut files)?;
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "xz"));
    for some in files.chunks(200) {
        exec::output(Command::new("xz").arg("--decompress").args(some))?;
    }
    Ok(())
}

/// All files below a directory, which may be missing.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn only_directory(place: &Path) -> Option<PathBuf> {
    let mut directories =
        fs::read_dir(place).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    directories.next().filter(|_| directories.next().is_none())
}

fn names(packages: &[PathBuf]) -> String {
    packages.iter().map(|package| package.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_without_hardware_are_needed() {
        for (module, wanted) in [
            ("kernel/drivers/net/veth.ko", false),
            ("kernel/drivers/net/ipvlan/ipvlan.ko", false),
            ("kernel/drivers/net/ethernet/intel/e1000/e1000.ko", true),
            ("kernel/net/netfilter/nf_tables.ko", false),
        ] {
            assert_eq!(is_of_hardware(Path::new(module)), wanted, "{module}");
        }
    }

    #[test]
    fn packages_without_a_kernel_are_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("usr/lib/modules/6.12.0-x")).unwrap();
        let error = Kernel::unpack(&[], directory.path()).unwrap_err().to_string();
        assert!(error.contains("no kernel 6.12.0-x"), "{error}");
    }
}
