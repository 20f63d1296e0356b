//! Which attachments were made with our plugin: as long as there are any, some runtimes call it at their DEL.
//!
//! libcni notes the list that an attachment was made with (`cachedInfo.Config`), and CRI-O takes down by that; containerd
//! takes down by the list that is there at the time. Never does: change the cache. Called by: `installer`.

use std::fs;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::cnidir::content;
use crate::conflist::parse;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Noted {
    container_id: String,
    #[serde(default)]
    config: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
}

/// The attachments whose list has our plugin: the pod, or the container where there is none. A cache that is not there
/// has none.
///
/// # Errors
/// If it cannot be listed.
pub fn with_our_plugin(cache: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(cache.join("results")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found: Vec<String> =
        entries.flatten().filter_map(|entry| ours(&content(&entry.path()).ok()?)).collect();
    found.sort();
    Ok(found)
}

fn ours(noted: &[u8]) -> Option<String> {
    let noted: Noted = serde_json::from_slice(noted).ok()?;
    let list = String::from_utf8(BASE64_STANDARD.decode(&noted.config).ok()?).ok()?;
    let has_us = parse(".conflist", &list).is_ok_and(|network| network.places() > 0);
    let argument = |name: &str| noted.cni_args.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    has_us.then(|| match (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => noted.container_id.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libcni itself has left it.
    const CACHED: &str = include_str!("../../tests/cni-cache/libcni-1.3.0.json");

    #[test]
    fn an_attachment_is_ours_by_the_list_that_it_was_made_with() {
        let list = |kind: &str| {
            let list = format!(r#"{{"name":"pods","plugins":[{{"type":"bridge"}},{{"type":"{kind}"}}]}}"#);
            let mut noted: serde_json::Value = serde_json::from_str(CACHED).unwrap();
            noted["config"] = BASE64_STANDARD.encode(list).into();
            ours(noted.to_string().as_bytes())
        };
        assert_eq!(list("veer-cni").as_deref(), Some("shop/cart"));
        assert_eq!(list("portmap"), None);
    }
}
