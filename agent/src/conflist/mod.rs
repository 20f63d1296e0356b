//! The files of a runtime's CNI configuration: what they say, and how veer's entry comes in and goes out. Pure.
//!
//! Owns: which files count, what a runtime reads in one, and the text of those that are changed ([`text`]). Never
//! does: open a file, or choose one to change; that is [`install`](crate::install). Called by: `doctor`, `install`.
//!
//! Runtimes sort the files whose names end in `.conf`, `.conflist` and `.json` by name and use the first: go-cni
//! (containerd) `loadFromConfDir`, ocicni (CRI-O) `loadNetworks`. So `10-a.conf` comes before `10-a.conflist`.
//! containerd stops at a first file that is broken, CRI-O takes the next.

pub mod text;
mod vendor;

use serde_json::Value;

pub use vendor::vendor;

/// What the runtimes read.
pub const ENDINGS: [&str; 3] = [".conf", ".conflist", ".json"];
/// Our plugin.
pub const VEER: &str = "veer-cni";
/// What Cilium puts behind the names of others' files, if it is exclusive.
pub const MOVED_BY_CILIUM: &str = ".cilium_bak";

/// A network configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// Its name, which keeps the addresses of its pods apart from those of others.
    pub name: Option<String>,
    /// Versions of the specification that a runtime may choose among; none means 0.1.0.
    pub versions: Vec<String>,
    /// Types of its plugins, in the order of ADD.
    pub plugins: Vec<String>,
    /// The configurations that a meta plugin (Multus) delegates to: lists of types, or names.
    pub delegates: Vec<Delegate>,
    /// Whether it is a list, to which plugins can be added; else it is one plugin.
    pub is_list: bool,
    /// Whether it says that plugins are in this file alone (libcni 1.3 and newer read others beside it).
    pub only_inlined: bool,
    /// Tencent's Multus: a fork that knows its delegates by `defaultDelegates`, and no primary network.
    pub is_tencent_multus: bool,
}

/// What a meta plugin delegates to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delegate {
    /// A copy of another configuration.
    Copy {
        /// The network's name.
        name: Option<String>,
        /// Types of its plugins.
        plugins: Vec<String>,
    },
    /// Another configuration by its name or file.
    Named(String),
}

impl Network {
    /// How often our plugin is in it.
    pub fn places(&self) -> usize {
        self.plugins.iter().filter(|plugin| *plugin == VEER).count()
    }

    /// Whether it is Multus as its own project ships it, which takes the first other file as its primary network.
    pub fn is_upstream_multus(&self) -> bool {
        let is_multus = |plugin: &String| plugin == "multus" || plugin == "multus-shim";
        self.plugins.iter().any(is_multus) && !self.is_tencent_multus
    }
}

/// Parses a file as a runtime does.
///
/// # Errors
/// What is wrong with it.
pub fn parse(file_name: &str, content: &str) -> Result<Network, String> {
    let value: Value = serde_json::from_str(content).map_err(|error| format!("is no JSON: {error}"))?;
    let is_list = file_name.ends_with(".conflist");
    let plugins = if is_list {
        let list = value.get("plugins").and_then(Value::as_array);
        list.ok_or("has no list \"plugins\", which a .conflist has")?.iter().collect()
    } else if value.get("type").is_some() {
        vec![&value]
    } else if value.get("plugins").is_some() {
        return Err("holds a list of plugins: its name must end in .conflist".to_owned());
    } else {
        return Err("has no \"type\", which a configuration of one plugin has".to_owned());
    };
    if plugins.is_empty() {
        return Err("has no plugin".to_owned());
    }
    let delegates = plugins.iter().flat_map(|plugin| delegates(plugin)).collect();
    let tencent = |plugin: &&Value| {
        let is = |key| plugin.get(key).is_some();
        type_of(plugin).as_deref() == Some("multus") && is("defaultDelegates") && !is("delegates")
    };
    let is_tencent_multus = plugins.iter().any(tencent);
    let types = plugins.into_iter().map(type_of).collect::<Option<Vec<_>>>();
    let single = value.get("cniVersion").and_then(text_of);
    let several = value.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    Ok(Network {
        name: value.get("name").and_then(text_of).filter(|name| !name.is_empty()),
        versions: single.into_iter().chain(several.filter_map(text_of)).collect(),
        plugins: types.ok_or("has a plugin without a \"type\"")?,
        delegates,
        is_list,
        only_inlined: value.get("loadOnlyInlinedPlugins").is_some_and(is_true),
        is_tencent_multus,
    })
}

fn type_of(plugin: &Value) -> Option<String> {
    text_of(plugin.get("type")?)
}

fn text_of(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// libcni takes the words, too.
fn is_true(value: &Value) -> bool {
    value.as_bool() == Some(true) || value.as_str().is_some_and(|word| word.eq_ignore_ascii_case("true"))
}

/// Multus: `delegates` holds copies, `clusterNetwork` names another configuration.
fn delegates(plugin: &Value) -> Vec<Delegate> {
    let copies = plugin.get("delegates").and_then(Value::as_array).into_iter().flatten().map(|delegate| {
        let list = delegate.get("plugins").and_then(Value::as_array);
        let plugins = list.map_or_else(
            || type_of(delegate).into_iter().collect(),
            |list| list.iter().filter_map(type_of).collect(),
        );
        Delegate::Copy { name: delegate.get("name").and_then(text_of), plugins }
    });
    let named = plugin.get("clusterNetwork").and_then(text_of).map(Delegate::Named);
    copies.chain(named).collect()
}
