//! What is pinned: how many entries every map has, and what there is of one pod.
//!
//! Owns: reading the maps by themselves, so that a test need not believe what `veer` says of them; and the two
//! acts of sabotage that CHECK must find. [`filling`](crate::filling) fills them. Never does: interpret an entry beyond its first
//! eight bytes, which in every map are the netns cookie of the pod.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData};
use veer_common::ABI_VERSION;
use veer_common::interface::{IndexKey, Interface, NameKey, RouteMatch};
use veer_common::maps::{
    Counters, Enrolment, HandOff, HandOffKey, ListenerKey, NetnsCookie, OwnAddressKey, PodPolicy,
    PortListKey, PortSet, RangeMatch, Settings, name,
};
use zerocopy::IntoBytes;

use crate::agent::Agent;
use crate::bpf;

/// The name that counts of links to a netns have, beside those of the maps.
pub const NETNS_LINKS: &str = "netns links";

/// Numbers of entries by map; what has none is not there.
pub type Counts = BTreeMap<&'static str, usize>;

/// The pin directory of an agent.
#[derive(Clone, Debug)]
pub struct Pinned {
    root: PathBuf,
}

impl Pinned {
    /// That of this agent, which need not run.
    pub fn of(agent: &Agent) -> Self {
        Self { root: agent.bpffs().join(format!("v{ABI_VERSION}")) }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Entries of every map, and links to netns.
    pub fn counts(&self) -> Result<Counts> {
        self.count(|_cookie| true)
    }

    /// The same of one pod.
    pub fn of_pod(&self, cookie: NetnsCookie) -> Result<Counts> {
        self.count(|other| other == cookie)
    }

    /// Whether the programs are told to report their decisions.
    pub fn watched(&self) -> Result<bool> {
        let settings: Array<_, Settings> = Map::Array(self.map(name::SETTINGS)?).try_into()?;
        Ok(settings.get(&0, 0)?.watched != 0)
    }

    /// Takes a pod's policy out of the map, as nobody should.
    pub fn remove_policy(&self, cookie: NetnsCookie) -> Result<()> {
        let mut pods: HashMap<_, NetnsCookie, PodPolicy> = Map::HashMap(self.map(name::PODS)?).try_into()?;
        pods.remove(&cookie).context("remove a policy")
    }

    /// Takes what a map has of a pod, as nobody should; says how many entries that were.
    pub fn lose(&self, map: &'static str, cookie: NetnsCookie) -> Result<usize> {
        match map {
            name::PODS => self.lose_of::<NetnsCookie, PodPolicy>(map, cookie),
            name::ENROLMENTS => self.lose_of::<NetnsCookie, Enrolment>(map, cookie),
            name::COUNTERS => self.lose_of::<NetnsCookie, Counters>(map, cookie),
            name::BEFORE_PROXY => self.lose_of::<NetnsCookie, u32>(map, cookie),
            name::PORTS => self.lose_of::<PortListKey, PortSet>(map, cookie),
            name::OWN_ADDRESSES => self.lose_of::<OwnAddressKey, u32>(map, cookie),
            name::LISTENERS => self.lose_of::<ListenerKey, u64>(map, cookie),
            name::RANGES => {
                let mut trie: LpmTrie<_, RangeMatch, u32> = Map::LpmTrie(self.map(map)?).try_into()?;
                let keys: Vec<_> = trie.keys().filter_map(Result::ok).collect();
                let of_pod = keys.iter().filter(|key| key.data().cookie == cookie.to_ne_bytes());
                let removed = of_pod.map(|key| trie.remove(key).context("remove a range"));
                removed.collect::<Result<Vec<()>>>().map(|lost| lost.len())
            }
            other => bail!("nobody has taught this how to lose entries of {other}"),
        }
    }

    fn lose_of<K: aya::Pod + IntoBytes + zerocopy::Immutable, V: aya::Pod>(
        &self,
        map: &'static str,
        cookie: NetnsCookie,
    ) -> Result<usize> {
        let mut entries: HashMap<_, K, V> = Map::HashMap(self.map(map)?).try_into()?;
        let keys: Vec<K> = entries.keys().filter_map(Result::ok).collect();
        let mut lost = 0;
        for key in keys {
            if self::cookie(key.as_bytes())? == cookie {
                entries.remove(&key).with_context(|| format!("remove from {map}"))?;
                lost += 1;
            }
        }
        Ok(lost)
    }

    /// Detaches a program from its cgroup, as nobody should: the link stays, and hangs on nothing.
    pub fn detach(&self, program: &str) -> Result<()> {
        let path = self.root.join("links").join(program);
        bpf::detach(&path).with_context(|| format!("detach {}", path.display()))
    }

    /// Detaches the inbound program from a pod's netns, as nobody should, likewise.
    pub fn detach_netns(&self, cookie: NetnsCookie) -> Result<()> {
        let path = self.netns_link(cookie);
        bpf::detach(&path).with_context(|| format!("detach {}", path.display()))
    }

    /// Removes the pin of the link to a pod's netns, as nobody should: without an agent, the link goes with it.
    pub fn remove_netns_link(&self, cookie: NetnsCookie) -> Result<()> {
        fs::remove_file(self.netns_link(cookie)).context("remove the link to a netns")
    }

    /// Pin of the link to a pod's netns.
    pub fn netns_link(&self, cookie: NetnsCookie) -> PathBuf {
        self.root.join("netns").join(cookie.to_string())
    }

    fn count(&self, wanted: impl Fn(NetnsCookie) -> bool) -> Result<Counts> {
        let rows = [
            (name::PODS, self.cookies::<NetnsCookie, PodPolicy>(name::PODS)?),
            (name::ENROLMENTS, self.cookies::<NetnsCookie, Enrolment>(name::ENROLMENTS)?),
            (name::COUNTERS, self.cookies::<NetnsCookie, Counters>(name::COUNTERS)?),
            (name::PORTS, self.cookies::<PortListKey, PortSet>(name::PORTS)?),
            (name::RANGES, self.cookies_of_trie::<RangeMatch>(name::RANGES)?),
            (name::INTERFACE_NAMES, self.cookies::<NameKey, u32>(name::INTERFACE_NAMES)?),
            (name::INTERFACES, self.cookies::<IndexKey, Interface>(name::INTERFACES)?),
            (name::ROUTES, self.cookies_of_trie::<RouteMatch>(name::ROUTES)?),
            (name::BEFORE_PROXY, self.cookies::<NetnsCookie, u32>(name::BEFORE_PROXY)?),
            (name::OWN_ADDRESSES, self.cookies::<OwnAddressKey, u32>(name::OWN_ADDRESSES)?),
            // A hash of sockets, whose keys are listed as those of any hash.
            (name::LISTENERS, self.cookies::<ListenerKey, u64>(name::LISTENERS)?),
            (name::HAND_OFFS, self.cookies::<HandOffKey, HandOff>(name::HAND_OFFS)?),
            (NETNS_LINKS, self.cookies_of_links()?),
        ];
        let count = |cookies: Vec<NetnsCookie>| cookies.into_iter().filter(|cookie| wanted(*cookie)).count();
        let counts = rows.into_iter().map(|(name, cookies)| (name, count(cookies)));
        Ok(counts.filter(|(_, count)| *count > 0).collect())
    }

    fn cookies<K: aya::Pod + IntoBytes + zerocopy::Immutable, V: aya::Pod>(
        &self,
        map: &'static str,
    ) -> Result<Vec<NetnsCookie>> {
        let map_of: HashMap<_, K, V> = Map::HashMap(self.map(map)?).try_into()?;
        let keys = map_of.keys().map(|key| cookie(key.with_context(|| format!("list {map}"))?.as_bytes()));
        keys.collect()
    }

    fn cookies_of_trie<K: aya::Pod + IntoBytes + zerocopy::Immutable>(
        &self,
        map: &'static str,
    ) -> Result<Vec<NetnsCookie>> {
        let trie: LpmTrie<_, K, u32> = Map::LpmTrie(self.map(map)?).try_into()?;
        let of = |key: Key<K>| cookie(key.data().as_bytes());
        trie.keys().map(|key| key.with_context(|| format!("list {map}")).and_then(of)).collect()
    }

    fn cookies_of_links(&self) -> Result<Vec<NetnsCookie>> {
        let directory = self.root.join("netns");
        let entries = fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let parse = |name: String| name.parse().with_context(|| format!("{name} is no netns cookie"));
        entries.map(|entry| parse(name(entry?))).collect()
    }

    /// A map of that name, open.
    pub(crate) fn map(&self, name: &str) -> Result<MapData> {
        let path: &Path = &self.root.join("maps").join(name);
        MapData::from_pin(path).with_context(|| format!("open {}", path.display()))
    }
}

fn cookie(key: &[u8]) -> Result<NetnsCookie> {
    let bytes = key.first_chunk().context("a key that is shorter than a netns cookie")?;
    Ok(NetnsCookie::from_ne_bytes(*bytes))
}
