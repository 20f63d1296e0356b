//! Builds the eBPF objects and leaves them in `OUT_DIR`, where `platform::bpf` embeds them; and beside them the descriptors of
//! Envoy's types, which `proxy::config` embeds. envoy-types has them in a file that its code does not name, so cargo is asked
//! where the crate is: they are of the very release whose types are compiled, and no copy of 3 MB is kept here.
//!
//! Why not aya-build: it runs the child through `rustup run`, and the other way to a working compiler,
//! Debian's `rustc-web` with `rust-web-src`, has no rustup. The rule here is: the compiler that builds
//! the agent, if it has its core library's sources, else `/usr/bin/rustc`, if that has.

#[path = "build/bare.rs"]
mod bare;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use self::bare::Maps;
use serde_json::Value;

const OBJECTS: [(&str, Maps); 2] = [("veer-node", Maps::All), ("veer-netns", Maps::Used)];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Where rust-src lives below a sysroot.
const CORE_SOURCES: &str = "lib/rustlib/src/rust/library/core/Cargo.toml";

/// In the sources of envoy-types.
const DESCRIPTORS: &str = "src/generated/types.bin";

fn main() {
    if let Err(problem) = descriptors() {
        eprintln!("\nthe descriptors of Envoy's types are not found: {problem}\n");
        std::process::exit(1);
    }
    if let Err(problem) = build() {
        // The one way for a build script to speak: cargo prints this behind its own "build failed".
        eprintln!("\nthe eBPF objects could not be built: {problem}\n");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    for path in ["ebpf", "common/src", "common/Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|skip| skip == "1") {
        // For editors and lints: everything compiles, nothing loads.
        return OBJECTS.iter().try_for_each(|(name, _)| write_if_absent(&out.join(name)));
    }

    let (rustc, cargo) = compiler()?;
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    // A target directory of its own: cargo would wait for the lock that the outer cargo holds.
    let target_dir = out.join("ebpf");
    let mut command = Command::new(&cargo);
    command
        .current_dir(root.join("ebpf"))
        .args(["build", "--package", "veer-ebpf", "--bins", "--release", "--locked"])
        .args(["-Zbuild-std=core", "--target", target, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTC", &rustc)
        // -Zbuild-std on a stable compiler. It reaches this child only.
        .env("RUSTC_BOOTSTRAP", "1")
        // Where `cargo install` puts bpf-linker; Debian's cargo does not look there by itself.
        .env("PATH", path_with_cargo_bin()?)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf");
    if env::var_os("CARGO_FEATURE_OTHER_BUILD").is_some() {
        // For tests of upgrades: programs that do the same by other instructions.
        command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "2");
    }
    for leaked in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET", "RUSTFLAGS"] {
        command.env_remove(leaked);
    }
    let output = command.output().map_err(|error| format!("start {}: {error}", cargo.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let hint = if text.contains("bpf-linker") && text.contains("not found") {
            "\nbpf-linker is missing: `cargo xtask setup` installs it"
        } else {
            ""
        };
        return Err(format!("{command:?}\n{text}{hint}"));
    }
    for (name, maps) in OBJECTS {
        let from = target_dir.join(target).join("release").join(name);
        let linked = fs::read(&from).map_err(|error| format!("read {}: {error}", from.display()))?;
        let bare = bare::bare(&linked, maps).map_err(|error| format!("strip {}: {error}", from.display()))?;
        let to = out.join(name);
        fs::write(&to, bare).map_err(|error| format!("write {}: {error}", to.display()))?;
    }
    Ok(())
}

fn descriptors() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("Cargo.toml");
    let mut command = Command::new(variable("CARGO")?);
    // For one platform, and not `--offline`: a build fetches no crates of other platforms, and without them cargo has no
    // metadata of all; the few that even this platform's build left out are fetched here.
    command
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", &variable("TARGET")?])
        .arg("--manifest-path")
        .arg(manifest);
    let output = command.output().map_err(|error| format!("start {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let packages = metadata.get("packages").and_then(Value::as_array).into_iter().flatten();
    let text = |package: &Value, key: &str| package.get(key)?.as_str().map(str::to_owned);
    let mut named = packages.filter(|package| text(package, "name").as_deref() == Some("envoy-types"));
    let manifest = named.next().and_then(|package| text(package, "manifest_path"));
    let from =
        PathBuf::from(manifest.ok_or("cargo metadata names no envoy-types")?).with_file_name(DESCRIPTORS);
    fs::copy(&from, out.join("envoy.bin")).map_err(|error| format!("copy {}: {error}", from.display()))?;
    Ok(())
}

fn path_with_cargo_bin() -> Result<OsString, String> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let bin = cargo_home.map(|home| home.join("bin"));
    env::join_paths(env::split_paths(&path).chain(bin)).map_err(|error| format!("PATH: {error}"))
}

/// A rustc that has the sources of its core library, and the cargo that fits it.
fn compiler() -> Result<(PathBuf, PathBuf), String> {
    let active = PathBuf::from(variable("RUSTC")?);
    let cargo = PathBuf::from(variable("CARGO")?);
    if has_core_sources(&active) {
        return Ok((active, cargo));
    }
    let debian = PathBuf::from(DEBIAN_RUSTC);
    if has_core_sources(&debian) {
        // Any cargo does, as long as it is not older than the sources' own manifests want.
        let own = Path::new("/usr/bin/cargo");
        return Ok((debian, if own.exists() { own.to_path_buf() } else { cargo }));
    }
    Err(format!(
        "neither {} nor {DEBIAN_RUSTC} has the sources of its core library.\n`cargo xtask setup` installs \
         them; by hand: `rustup component add rust-src`, or on Debian `apt-get install rustc-web rust-web-src`",
        active.display()
    ))
}

fn has_core_sources(rustc: &Path) -> bool {
    Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .is_some_and(|sysroot| Path::new(sysroot.trim()).join(CORE_SOURCES).exists())
}

fn write_if_absent(path: &Path) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    fs::write(path, []).map_err(|error| format!("write {}: {error}", path.display()))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
