//! What of the proxies' metrics somebody asks for. Pure.

use crate::model::{Driver, could_name_a_pod};

/// What Envoy's users add to the path: it goes to each proxy.
const ENVOYS: [&str; 4] = ["usedonly", "filter", "histogram_buckets", "text_readouts"];

/// A question.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::admin) struct Asked {
    /// Only of pods with this driver.
    pub(super) driver: Option<Driver>,
    /// Only of this pod, by namespace and name.
    pub(super) pod: Option<(String, String)>,
    /// For the proxies, as it came; empty, or with its question mark.
    pub(super) query: String,
}

impl Asked {
    /// From what stands behind the question mark.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(in crate::admin) fn parse(query: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        let mut of_envoy = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key {
                "driver" => asked.driver = Some(driver(value)?),
                "pod" => asked.pod = Some(pod(value)?),
                other if ENVOYS.contains(&other) => of_envoy.push(part),
                other => {
                    let known = ENVOYS.join(", ");
                    return Err(format!("{other:?} is not one of driver, pod, {known}"));
                }
            }
        }
        if !of_envoy.is_empty() {
            asked.query = format!("?{}", of_envoy.join("&"));
        }
        Ok(asked)
    }

    /// Whether it is about pods with this driver.
    pub(super) fn is_about(&self, driver: Driver) -> bool {
        self.driver.is_none_or(|only| only == driver)
    }
}

fn driver(value: &str) -> Result<Driver, String> {
    [Driver::Node, Driver::Sidecar, Driver::Ztunnel]
        .into_iter()
        .find(|driver| driver.name() == value)
        .ok_or_else(|| format!("driver is {value:?}, and not node, sidecar or ztunnel"))
}

/// The namespace and the name of a pod, in a query.
///
/// # Errors
/// That it is none.
pub(in crate::admin) fn pod(value: &str) -> Result<(String, String), String> {
    // A slash need not be written so, and Prometheus does.
    let value = value.replace("%2F", "/").replace("%2f", "/");
    let (namespace, name) = value.split_once('/').unwrap_or_default();
    if could_name_a_pod(namespace, name) {
        Ok((namespace.to_owned(), name.to_owned()))
    } else {
        Err(format!("pod is {value:?}, and not NAMESPACE/NAME"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_understood_or_refused() {
        assert_eq!(Asked::parse("").unwrap(), Asked::default());
        let asked = Asked::parse("usedonly&pod=shop%2Fcart.v1&driver=node&filter=a.%2A").unwrap();
        let pod = Some(("shop".to_owned(), "cart.v1".to_owned()));
        let query = "?usedonly&filter=a.%2A".to_owned();
        assert_eq!(asked, Asked { driver: Some(Driver::Node), pod, query });
        assert!(!asked.is_about(Driver::Sidecar) && asked.is_about(Driver::Node));
        assert_eq!(Asked::parse("driver=ztunnel").unwrap().driver, Some(Driver::Ztunnel));
        for wrong in [
            "pod=cart",
            "pod=a/b/c",
            "pod=a/B",
            "pod=a%00/b",
            "pod=",
            "driver=",
            "driver=envoy",
            "format=json",
        ] {
            assert!(Asked::parse(wrong).is_err(), "{wrong}");
        }
    }
}
