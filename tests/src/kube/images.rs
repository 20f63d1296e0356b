//! Container images out of programs: a directory becomes a layer, and an archive that `ctr images import` reads.
//!
//! Ours are static and need nothing beside them; Envoy takes the libraries that it is linked to along.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

/// Makes the archive of an image named `localhost/NAME:1` with these programs in its root directory, of which the
/// first is started; `directory` exists and is empty.
pub fn archive(directory: &Path, name: &str, programs: &[PathBuf]) -> Result<PathBuf> {
    let root = directory.join("root");
    let mut paths = Vec::new();
    for program in programs {
        let file = program.file_name().with_context(|| format!("{} has no name", program.display()))?;
        copy(program, &root.join(file))?;
        paths.push(format!("/{}", file.display()));
        for library in libraries(program)? {
            copy(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
        }
    }
    // What programs expect of any system: a place for temporary files, and names for the users.
    let temporary = root.join("tmp");
    fs::create_dir_all(&temporary).context("make the image's /tmp")?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777)).context("open the image's /tmp")?;
    tar(&root, &directory.join("layer.tar"), &["."])?;
    let layer = digest(&directory.join("layer.tar"))?;
    let configuration = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": paths.get(..1)},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
    });
    let image = format!("localhost/{name}:1");
    let manifest = json!([{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]);
    for (file, content) in [("config.json", configuration), ("manifest.json", manifest)] {
        fs::write(directory.join(file), content.to_string()).with_context(|| format!("write {file}"))?;
    }
    let archive = directory.join(format!("{name}.tar"));
    tar(directory, &archive, &["manifest.json", "config.json", "layer.tar"])?;
    Ok(archive)
}

/// What it is linked to, its loader included: nothing, if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    if !output.status.success() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let directory = to.parent().with_context(|| format!("{} is in no directory", to.display()))?;
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("let everybody run {}", to.display()))
}

fn tar(directory: &Path, archive: &Path, names: &[&str]) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--create", "--owner=0", "--group=0", "--file"]).arg(archive);
    run(command.arg("--directory").arg(directory).args(names)).map(drop)
}

fn digest(file: &Path) -> Result<String> {
    let text = run(Command::new("sha256sum").arg(file))?;
    text.split(' ').next().map(str::to_owned).context("sha256sum said nothing")
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {errors}", command.get_program().display(), output.status);
    }
    String::from_utf8(output.stdout).context("its output is no text")
}
