//! What is in the binaries, as CycloneDX 1.6: the crates that are linked, Rust's own library, the C library. Pure but
//! for [`Inputs::read`].
//!
//! Out of cargo's own resolution for the target, normal dependencies alone: what builds, tests and derives is in no
//! binary. The eBPF programs are embedded in `veer`, so their crates count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::image::{About, rfc3339};
use crate::{exec, workspace};

/// What is linked into what a node gets.
const ROOTS: [&str; 3] = ["veer", "veer-cni", workspace::KERNEL_CRATE];

#[derive(Deserialize)]
pub(super) struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    description: Option<String>,
    source: Option<String>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// What it is made of.
pub(super) struct Inputs {
    pub(super) metadata: Metadata,
    /// Of the archives of crates, by name and version.
    pub(super) checksums: BTreeMap<(String, String), String>,
    pub(super) rustc: String,
    /// `glibc 2.36`
    pub(super) libc: String,
    pub(super) architecture: &'static str,
}

impl Inputs {
    /// Asks cargo, rustc and the C library.
    pub(super) fn read(root: &Path, architecture: &'static str) -> Result<Self> {
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let mut metadata = workspace::cargo(root);
        metadata.args(["metadata", "--format-version=1", "--locked", "--filter-platform", &target]);
        let metadata =
            serde_json::from_str(&exec::output(&mut metadata)?).context("read cargo's metadata")?;
        let lock = fs::read_to_string(root.join("Cargo.lock")).context("read Cargo.lock")?;
        let rustc = exec::output(Command::new("rustc").arg("--version").current_dir(root))?;
        let rustc = rustc.split_whitespace().nth(1).context("rustc tells no version")?.to_owned();
        let libc = exec::output(Command::new("getconf").arg("GNU_LIBC_VERSION"))?.trim().to_owned();
        Ok(Self { metadata, checksums: checksums(&lock), rustc, libc, architecture })
    }
}

fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""));
        line.and_then(|text| text.strip_suffix('"')).map(str::to_owned)
    };
    let of = |block| Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?));
    lock.split("[[package]]").filter_map(of).collect()
}

/// The document.
pub(super) fn of(inputs: &Inputs, about: &About) -> Value {
    let packages: BTreeMap<&str, &Package> =
        inputs.metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let dependencies: BTreeMap<&str, Vec<&str>> = inputs
        .metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), linked(node, &packages)))
        .collect();
    let roots: Vec<&str> = ROOTS
        .iter()
        .filter_map(|name| packages.values().find(|package| package.name == *name))
        .map(|root| root.id.as_str())
        .collect();
    let (mut seen, mut unread) = (BTreeSet::<&str>::from_iter(roots.clone()), roots);
    while let Some(id) = unread.pop() {
        let below = dependencies.get(id).into_iter().flatten();
        unread.extend(below.copied().filter(|id| seen.insert(id)));
    }
    let linked: Vec<&Package> = seen.iter().filter_map(|id| packages.get(id).copied()).collect();
    let mut components: Vec<Value> = linked.iter().map(|package| component(package, inputs)).collect();
    components.extend(of_the_system(inputs));
    let depends = linked.iter().map(|package| {
        let on = dependencies.get(package.id.as_str()).into_iter().flatten();
        let on: BTreeSet<String> = on.filter_map(|id| packages.get(id)).map(|on| purl(on)).collect();
        json!({ "ref": purl(package), "dependsOn": on })
    });
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": rfc3339(about.time),
            "component": {
                "type": "container",
                "bom-ref": "image",
                "name": "veer",
                "version": about.version,
                "licenses": [{ "expression": "Apache-2.0" }],
                "properties": [
                    { "name": "veer:revision", "value": about.revision },
                    { "name": "veer:architecture", "value": inputs.architecture },
                ],
            },
        },
        "components": components,
        "dependencies": depends.collect::<Vec<_>>(),
    })
}

/// Those of its dependencies that become part of it: not what builds or tests it, and no procedural macros.
fn linked<'a>(node: &'a Node, packages: &BTreeMap<&str, &Package>) -> Vec<&'a str> {
    let is_macro = |id: &str| {
        packages.get(id).is_some_and(|package| {
            package.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
        })
    };
    let is_linked = |dependency: &&Dependency| {
        dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()) && !is_macro(&dependency.pkg)
    };
    node.deps.iter().filter(is_linked).map(|dependency| dependency.pkg.as_str()).collect()
}

/// A member of the workspace has no source.
fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

fn component(package: &Package, inputs: &Inputs) -> Value {
    let mut component = json!({
        "type": if package.source.is_some() { "library" } else { "application" },
        "bom-ref": purl(package),
        "name": package.name,
        "version": package.version,
        "purl": purl(package),
    });
    let optional = [
        ("description", package.description.as_ref().map(|text| json!(text))),
        // Older crates write a slash.
        (
            "licenses",
            package.license.as_ref().map(|text| json!([{ "expression": text.replace('/', " OR ") }])),
        ),
        (
            "hashes",
            inputs
                .checksums
                .get(&(package.name.clone(), package.version.clone()))
                .map(|hash| json!([{ "alg": "SHA-256", "content": hash }])),
        ),
    ];
    if let Some(fields) = component.as_object_mut() {
        fields.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    }
    component
}

/// What no crate names, and what is in every static binary.
fn of_the_system(inputs: &Inputs) -> [Value; 2] {
    let (libc, version) = inputs.libc.split_once(' ').unwrap_or((&inputs.libc, "unknown"));
    [
        json!({
            "type": "library", "bom-ref": "rust-std", "name": "rust-std", "version": inputs.rustc,
            "description": "Rust's own library", "licenses": [{ "expression": "MIT OR Apache-2.0" }],
        }),
        json!({
            "type": "library", "bom-ref": "libc", "name": libc, "version": version,
            "description": "the C library, linked statically", "licenses": [{ "expression": "LGPL-2.1-or-later" }],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> Inputs {
        let package = |id: &str, kind: &str, source: Option<&str>| {
            json!({ "id": id, "name": id, "version": "1.0.0", "license": "MIT/Apache-2.0", "source": source,
                    "targets": [{ "kind": [kind] }] })
        };
        let edge = |to: &str, kind: Option<&str>| json!({ "pkg": to, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [
                package("veer", "bin", None), package("linked", "lib", Some("registry")), package("deep", "lib", Some("registry")),
                package("derive", "proc-macro", Some("registry")), package("tested", "lib", Some("registry")),
            ],
            "resolve": { "nodes": [
                { "id": "veer", "deps": [edge("linked", None), edge("derive", None), edge("tested", Some("dev"))] },
                { "id": "linked", "deps": [edge("deep", None)] },
                { "id": "deep", "deps": [] }, { "id": "derive", "deps": [] }, { "id": "tested", "deps": [] },
            ] },
        });
        let lock =
            "version = 4\n\n[[package]]\nname = \"deep\"\nversion = \"1.0.0\"\nchecksum = \"c0ffee\"\n";
        Inputs {
            metadata: serde_json::from_value(metadata).unwrap(),
            checksums: checksums(lock),
            rustc: "1.95.0".to_owned(),
            libc: "glibc 2.36".to_owned(),
            architecture: "amd64",
        }
    }

    #[test]
    fn what_is_linked_is_listed_and_what_builds_or_tests_is_not() {
        let about = About { version: "0.1.0".to_owned(), revision: "c0ffee".to_owned(), time: 0 };
        let document = of(&inputs(), &about);
        let components = document["components"].as_array().unwrap();
        let names: Vec<_> = components.iter().map(|component| component["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["deep", "linked", "veer", "rust-std", "glibc"]);
        assert_eq!(components[0]["hashes"], json!([{ "alg": "SHA-256", "content": "c0ffee" }]));
        assert_eq!(components[0]["licenses"], json!([{ "expression": "MIT OR Apache-2.0" }]));
        let of_linked = &document["dependencies"][1];
        assert_eq!(
            of_linked,
            &json!({ "ref": "pkg:cargo/linked@1.0.0", "dependsOn": ["pkg:cargo/deep@1.0.0"] })
        );
    }
}
