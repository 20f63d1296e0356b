//! An OCI image and the archive of it: what `ctr images import`, `skopeo` and `docker load` take. Pure.
//!
//! Follows image-spec 1.1: `oci-layout`, `index.json`, `blobs/sha256`. `index.json` names one index with a manifest for
//! each architecture, also where there is one: what a DaemonSet refers to is the same then. An image is one layer.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::archive::{self, Entry};
use super::sha256;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const BLOBS: &str = "blobs/sha256";

/// Of what it was made.
pub(super) struct About {
    pub(super) version: String,
    /// The commit.
    pub(super) revision: String,
    /// Of the commit, in seconds since 1970.
    pub(super) time: u64,
}

impl About {
    /// As in the chart.
    pub(super) fn reference(&self) -> String {
        format!("veer:{}", self.version)
    }

    fn labels(&self) -> Value {
        json!({
            "org.opencontainers.image.title": "veer",
            "org.opencontainers.image.description": "Puts pods into a service mesh without touching them",
            "org.opencontainers.image.licenses": "Apache-2.0",
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.revision": self.revision,
        })
    }
}

/// What is stored under the hash of it.
#[derive(Clone)]
struct Blob {
    media_type: &'static str,
    bytes: Vec<u8>,
}

impl Blob {
    fn json(media_type: &'static str, value: &Value) -> Self {
        Self { media_type, bytes: value.to_string().into_bytes() }
    }

    fn hash(&self) -> String {
        sha256(&self.bytes)
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hash())
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len() })
    }
}

/// An image for one architecture.
pub(super) struct Image {
    /// In OCI's words: amd64, arm64.
    architecture: String,
    manifest: Blob,
    config: Blob,
    layer: Blob,
}

impl Image {
    /// Of the tar of its files.
    pub(super) fn of(architecture: &str, files: Vec<u8>, about: &About) -> Result<Self> {
        let files = Blob { media_type: LAYER, bytes: files };
        let created = rfc3339(about.time);
        let config = json!({
            "created": created,
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/bin"],
                "Entrypoint": ["/usr/local/bin/veer"],
                "Cmd": ["agent"],
                "Labels": about.labels(),
            },
            // Of the tar, not of what it is compressed to.
            "rootfs": { "type": "layers", "diff_ids": [files.digest()] },
            "history": [{ "created": created, "created_by": "cargo xtask package" }],
        });
        let layer = Blob { media_type: LAYER, bytes: archive::gzip(&files.bytes)? };
        let config = Blob::json(CONFIG, &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
            "annotations": about.labels(),
        });
        Ok(Self {
            architecture: architecture.to_owned(),
            manifest: Blob::json(MANIFEST, &manifest),
            config,
            layer,
        })
    }

    /// Out of an archive that [`archive()`] has made of one image.
    pub(super) fn read(archive: &[u8]) -> Result<Self> {
        let blobs = blobs(archive)?;
        let blob = |descriptor: &Value, media_type| {
            let digest =
                descriptor.get("digest").and_then(Value::as_str).context("a descriptor without a digest")?;
            let bytes = digest.strip_prefix("sha256:").and_then(|hash| blobs.get(hash)).cloned();
            let blob = Blob { media_type, bytes: bytes.with_context(|| format!("{digest} is not in it"))? };
            if blob.digest() != digest {
                bail!("{digest} is {}", blob.digest());
            }
            Ok(blob)
        };
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).context("read JSON");
        let only =
            |value: &Value, list: &str| match value.get(list).and_then(Value::as_array).map(Vec::as_slice) {
                Some([one]) => Ok(one.clone()),
                Some(_) | None => bail!("`{list}` does not name one image"),
            };
        let top = parse(blobs.get("index.json").context("there is no index.json")?)?;
        let index = blob(&only(&top, "manifests")?, INDEX)?;
        let entry = only(&parse(&index.bytes)?, "manifests")?;
        let manifest = blob(&entry, MANIFEST)?;
        let parsed = parse(&manifest.bytes)?;
        let architecture = entry.pointer("/platform/architecture").and_then(Value::as_str);
        Ok(Self {
            architecture: architecture.context("an image without an architecture")?.to_owned(),
            config: blob(parsed.get("config").context("a manifest without a config")?, CONFIG)?,
            layer: blob(&only(&parsed, "layers")?, LAYER)?,
            manifest,
        })
    }
}

/// The archive, and the digest by which it can be referred to.
pub(super) fn archive(images: &[Image], about: &About) -> Result<(Vec<u8>, String)> {
    let entry = |image: &Image| {
        let mut descriptor = image.manifest.descriptor();
        let platform = json!({ "architecture": image.architecture, "os": "linux" });
        descriptor.as_object_mut().map(|fields| fields.insert("platform".to_owned(), platform));
        descriptor
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": images.iter().map(entry).collect::<Vec<_>>(),
        "annotations": about.labels(),
    });
    let index = Blob::json(INDEX, &index);
    let mut named = index.descriptor();
    let names = json!({
        // What `ctr images import` calls it; the second is OCI's own.
        "io.containerd.image.name": format!("docker.io/library/{}", about.reference()),
        "org.opencontainers.image.ref.name": about.version,
    });
    named.as_object_mut().map(|fields| fields.insert("annotations".to_owned(), names));
    let top = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [named] });

    // By hash, so that a blob that two images share is there once.
    let blobs =
        images.iter().flat_map(|image| [&image.manifest, &image.config, &image.layer]).chain([&index]);
    let blobs: BTreeMap<String, &Blob> = blobs.map(|blob| (blob.hash(), blob)).collect();
    let file = |path: String, bytes: &[u8]| Entry::File { path, mode: 0o644, bytes: bytes.to_vec() };
    let mut entries = vec![
        file("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json".to_owned(), top.to_string().as_bytes()),
        Entry::Directory { path: "blobs".to_owned() },
        Entry::Directory { path: BLOBS.to_owned() },
    ];
    entries.extend(blobs.iter().map(|(hash, blob)| file(format!("{BLOBS}/{hash}"), &blob.bytes)));
    Ok((archive::tar(&entries, about.time)?, index.digest()))
}

/// The files of an archive, by the last part of their paths.
fn blobs(archive: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().context("read the archive")? {
        let mut entry = entry.context("read the archive")?;
        let path = entry.path().context("read a path")?.into_owned();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).with_context(|| format!("read {name}"))?;
        files.insert(name.to_owned(), bytes);
    }
    Ok(files)
}

/// `2026-11-21T11:23:30Z`
pub(super) fn rfc3339(time: u64) -> String {
    let (days, seconds) = (time / 86_400, time % 86_400);
    let (mut year, mut day) = (1970, days);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About { version: "0.1.0".to_owned(), revision: "c0ffee".to_owned(), time: 1_795_260_210 }
    }

    fn image(architecture: &str) -> Image {
        let files = [
            Entry::Directory { path: "bin".to_owned() },
            Entry::File { path: "bin/veer".to_owned(), mode: 0o755, bytes: architecture.as_bytes().to_vec() },
            Entry::Link { path: "veer".to_owned(), to: "bin/veer".to_owned() },
        ];
        Image::of(architecture, archive::tar(&files, about().time).unwrap(), &about()).unwrap()
    }

    #[test]
    fn the_same_files_give_the_same_archive_and_digest() {
        let (first, second) =
            (archive(&[image("amd64")], &about()).unwrap(), archive(&[image("amd64")], &about()).unwrap());
        assert!(first == second);
        assert_eq!(first.1, "sha256:b7b6aabe230c35d0f3d777cc7cea4cd4c9de1e195e7baf50d99d88fb80d49f16");
    }

    #[test]
    fn an_image_that_is_read_again_is_the_same_one() {
        let (bytes, digest) = archive(&[image("arm64")], &about()).unwrap();
        let read = Image::read(&bytes).unwrap();
        assert_eq!(read.architecture, "arm64");
        assert_eq!(archive(&[read], &about()).unwrap().1, digest);
    }

    #[test]
    fn an_archive_of_two_architectures_names_both_and_has_the_blobs_of_both() {
        let (bytes, digest) = archive(&[image("amd64"), image("arm64")], &about()).unwrap();
        let blobs = blobs(&bytes).unwrap();
        let index: Value = serde_json::from_slice(&blobs[digest.strip_prefix("sha256:").unwrap()]).unwrap();
        let of = |at: usize| index["manifests"][at]["platform"]["architecture"].clone();
        assert_eq!([of(0), of(1)], ["amd64", "arm64"]);
        // Two manifests, two configs, two layers and the index, and the layout's three entries.
        assert_eq!(blobs.len(), 7 + 4, "{:?}", blobs.keys());
        assert!(Image::read(&bytes).is_err(), "which of the two is meant?");
    }

    #[test]
    fn a_blob_that_is_not_what_its_name_says_is_refused() {
        let (bytes, _) = archive(&[image("amd64")], &about()).unwrap();
        let at = bytes.windows(8).position(|window| window == b"\"amd64\",").unwrap();
        let mut changed = bytes;
        changed[at + 1] = b'x';
        assert!(Image::read(&changed).is_err());
    }

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_260_210, "2026-11-21T11:23:30Z"),
        ] {
            assert_eq!(rfc3339(time), text);
        }
    }
}
