//! Incremental xDS, as one Envoy after the other speaks it: who has what, what is sent next, and what it said. Pure.
//!
//! Owns: the pods that are to be served, and for each stream what its Envoy has. Each pod's resources of a kind are a
//! response of their own, so an answer is about one pod: one that is refused harms no other, and Envoy's words are kept
//! with it. Clusters come before the listeners that name them and go after them. An Envoy that was there before this
//! agent says what it has, and gets what differs. Its first response of a kind has that of all pods at once: an Envoy that
//! takes another's place has that one stop listening as soon as it has heard of listeners for the first time. If it refuses
//! any of them, all come again one by one.
//! Never does: I/O. Called by: `proxy::ads`.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};

use super::resources::{Kind, Resource, Resources};

/// A stream: one Envoy, as long as its connection lasts. A later one has a larger number.
pub type StreamId = u64;

/// A pod, by the part of its resources' names that they share: `shop/cart-1|4711`.
pub type Owner = String;

/// What an Envoy says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Of which kind of resources.
    pub kind: Kind,
    /// Which response it is an answer to; empty if to none.
    pub nonce: String,
    /// Why that was refused, in Envoy's words.
    pub refused: Option<String>,
    /// What it has from an earlier stream: versions by name. In the first request of a kind.
    pub has: BTreeMap<String, String>,
}

/// What an Envoy is sent.
#[derive(Clone, PartialEq, Debug)]
pub struct Response {
    /// To whom.
    pub stream: StreamId,
    /// Of which kind.
    pub kind: Kind,
    /// By which it is answered.
    pub nonce: String,
    /// New, or changed.
    pub resources: Vec<Resource>,
    /// Gone.
    pub removed: Vec<String>,
}

/// How far a pod is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// No Envoy is connected.
    NoProxy,
    /// Envoy has not answered yet.
    Pending,
    /// Envoy has all of it.
    Served,
    /// Envoy does not take it, and says why.
    Refused(String),
}

/// All of it.
#[derive(Debug, Default)]
pub struct Delta {
    wanted: BTreeMap<Owner, Resources>,
    /// Whether all pods of the node are among [`Self::wanted`]. Before that nothing is taken from an Envoy.
    is_complete: bool,
    /// Who was forgotten before that, and is to be taken from an Envoy all the same.
    gone: BTreeSet<Owner>,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: StreamId,
}

#[derive(Debug, Default)]
struct Stream {
    /// When its Envoy was started, in the kernel's clock ticks since the boot, if that is known.
    started: Option<u64>,
    /// What its Envoy has; a kind that it has not asked for is not there.
    has: BTreeMap<Kind, BTreeMap<String, String>>,
    /// Responses that are not answered, by nonce.
    sent: BTreeMap<String, Sent>,
    /// About whom responses are not answered, and how many: more than one only while the first of a kind is among them.
    busy: BTreeMap<Owner, usize>,
    /// Whom it does not take, and why, in its words.
    refused: BTreeMap<Owner, String>,
    next_nonce: u64,
}

#[derive(Debug)]
struct Sent {
    kind: Kind,
    /// About whom it is: one pod, or any number in the first response of a kind.
    owners: BTreeSet<Owner>,
    /// What the Envoy has if it takes it: versions by name, `None` for what it does not have any more.
    changes: Vec<(String, Option<String>)>,
}

impl Delta {
    /// A connection has come, from an Envoy that was `started` then, in the kernel's clock ticks since the boot. The one
    /// that was started last is whom pods wait for: one that drains may be the last to find an agent that comes back.
    pub fn open(&mut self, started: Option<u64>) -> StreamId {
        self.next_stream += 1;
        self.streams.insert(self.next_stream, Stream { started, ..Stream::default() });
        self.next_stream
    }

    /// A connection has gone.
    pub fn close(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
    }

    /// Who is to be served.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.wanted.keys()
    }

    /// How many Envoys are connected.
    pub fn connected(&self) -> usize {
        self.streams.len()
    }

    /// A pod is to be served, or served otherwise.
    pub fn want(&mut self, owner: &str, resources: Resources) -> Vec<Response> {
        self.try_again(owner);
        self.gone.remove(owner);
        self.wanted.insert(owner.to_owned(), resources);
        self.advance_everywhere(owner)
    }

    /// A pod is not to be served any more.
    pub fn forget(&mut self, owner: &str) -> Vec<Response> {
        self.try_again(owner);
        self.wanted.remove(owner);
        if !self.is_complete {
            self.gone.insert(owner.to_owned());
        }
        self.advance_everywhere(owner)
    }

    /// All pods of the node are known: what an Envoy has besides, it is to lose.
    pub fn complete(&mut self) -> Vec<Response> {
        self.is_complete = true;
        self.gone.clear();
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        streams.into_iter().flat_map(|stream| self.advance_all(stream)).collect()
    }

    /// Whom a response that is not answered yet is about, if that is one pod alone.
    pub fn asked_about(&self, stream: StreamId, nonce: &str) -> Option<&Owner> {
        let owners = &self.streams.get(&stream)?.sent.get(nonce)?.owners;
        owners.first().filter(|_| owners.len() == 1)
    }

    /// What is sent because of what an Envoy has said.
    pub fn request(&mut self, id: StreamId, request: Request) -> Vec<Response> {
        let Some(stream) = self.streams.get_mut(&id) else { return Vec::new() };
        if let Entry::Vacant(first) = stream.has.entry(request.kind) {
            first.insert(request.has);
            // Envoy does not go on before it has heard something of each kind, and be it nothing.
            let mut responses = vec![stream.first(id, request.kind, &self.wanted)];
            responses.extend(self.advance_all(id));
            return responses;
        }
        // An answer to what this stream has not sent, or a change of what it subscribes to: everything, always.
        let Some(sent) = stream.sent.remove(&request.nonce) else { return Vec::new() };
        // What is refused may be what was wanted when it was sent; then nothing is known of what is wanted now.
        let wanted = &self.wanted;
        let is_wanted = |(name, version): &(String, Option<String>)| {
            let of_now =
                wanted.get(owner_of(name)).map(|wanted| wanted.of_kind(sent.kind)).unwrap_or_default();
            version.is_none()
                || of_now.iter().any(|one| one.name == *name && Some(&one.version) == version.as_ref())
        };
        let is_of_now = sent.changes.iter().all(is_wanted);
        let owners = sent.owners.clone();
        stream.answered(sent, request.refused, is_of_now);
        owners.iter().filter_map(|owner| self.advance(id, owner)).collect()
    }

    /// How far a pod is with the Envoy that was started last.
    pub fn state(&self, owner: &str) -> State {
        // Of connections of one Envoy, or of Envoys of which nothing is known, the last.
        let Some(stream) = self.streams.values().max_by_key(|stream| stream.started) else {
            return State::NoProxy;
        };
        if let Some(refused) = stream.refused.get(owner) {
            return State::Refused(refused.clone());
        }
        let Some(wanted) = self.wanted.get(owner) else { return State::Pending };
        let has_all = Kind::ALL
            .into_iter()
            .all(|kind| wanted.of_kind(kind).iter().all(|resource| stream.has_version(kind, resource)));
        if has_all && !stream.busy.contains_key(owner) { State::Served } else { State::Pending }
    }

    fn try_again(&mut self, owner: &str) {
        for stream in self.streams.values_mut() {
            stream.refused.remove(owner);
        }
    }

    fn advance_everywhere(&mut self, owner: &str) -> Vec<Response> {
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        streams.into_iter().filter_map(|stream| self.advance(stream, owner)).collect()
    }

    fn advance_all(&mut self, id: StreamId) -> Vec<Response> {
        let Some(stream) = self.streams.get(&id) else { return Vec::new() };
        let mut owners: BTreeSet<Owner> = self.wanted.keys().cloned().collect();
        owners.extend(stream.has.values().flat_map(BTreeMap::keys).map(|name| owner_of(name).to_owned()));
        owners.iter().filter_map(|owner| self.advance(id, owner)).collect()
    }

    /// The next response about a pod, if none is under way.
    fn advance(&mut self, id: StreamId, owner: &str) -> Option<Response> {
        let stream = self.streams.get_mut(&id)?;
        if stream.busy.contains_key(owner) || stream.refused.contains_key(owner) {
            return None;
        }
        let wanted = self.wanted.get(owner);
        for kind in Kind::ALL {
            let missing: Vec<Resource> = wanted
                .map(|wanted| wanted.of_kind(kind))
                .unwrap_or_default()
                .iter()
                .filter(|resource| !stream.has_version(kind, resource))
                .cloned()
                .collect();
            if !missing.is_empty() {
                // A kind that is not asked for yet is sent when it is, and no other before it.
                stream.has.get(&kind)?;
                return Some(stream.send(id, kind, missing, Vec::new()));
            }
        }
        if wanted.is_none() && !self.is_complete && !self.gone.contains(owner) {
            return None;
        }
        for kind in Kind::ALL.into_iter().rev() {
            let wanted = wanted.map(|wanted| wanted.of_kind(kind)).unwrap_or_default();
            let is_wanted = |name: &String| wanted.iter().any(|resource| resource.name == *name);
            let has = stream.has.get(&kind).into_iter().flat_map(BTreeMap::keys);
            let removed: Vec<String> =
                has.filter(|name| owner_of(name) == owner && !is_wanted(name)).cloned().collect();
            if !removed.is_empty() {
                return Some(stream.send(id, kind, Vec::new(), removed));
            }
        }
        None
    }
}

impl Stream {
    fn has_version(&self, kind: Kind, resource: &Resource) -> bool {
        self.has.get(&kind).and_then(|has| has.get(&resource.name)) == Some(&resource.version)
    }

    /// Everything of a kind that its Envoy does not have.
    fn first(&mut self, id: StreamId, kind: Kind, wanted: &BTreeMap<Owner, Resources>) -> Response {
        let taken = wanted.iter().filter(|(owner, _)| !self.refused.contains_key(*owner));
        let all = taken.flat_map(|(_, resources)| resources.of_kind(kind));
        let missing = all.filter(|resource| !self.has_version(kind, resource)).cloned().collect();
        self.send(id, kind, missing, Vec::new())
    }

    fn send(
        &mut self,
        stream: StreamId,
        kind: Kind,
        resources: Vec<Resource>,
        removed: Vec<String>,
    ) -> Response {
        self.next_nonce += 1;
        let nonce = self.next_nonce.to_string();
        let added = resources.iter().map(|resource| (resource.name.clone(), Some(resource.version.clone())));
        let changes: Vec<_> = added.chain(removed.iter().map(|name| (name.clone(), None))).collect();
        let owners: BTreeSet<Owner> = changes.iter().map(|(name, _)| owner_of(name).to_owned()).collect();
        for owner in &owners {
            *self.busy.entry(owner.clone()).or_default() += 1;
        }
        self.sent.insert(nonce.clone(), Sent { kind, owners, changes });
        Response { stream, kind, nonce, resources, removed }
    }

    fn answered(&mut self, sent: Sent, refused: Option<String>, is_of_now: bool) {
        for owner in &sent.owners {
            if let Entry::Occupied(mut unanswered) = self.busy.entry(owner.clone()) {
                *unanswered.get_mut() -= 1;
                if *unanswered.get() == 0 {
                    unanswered.remove();
                }
            }
        }
        let has = self.has.entry(sent.kind).or_default();
        if let Some(words) = refused {
            // Of two resources it may have taken one: it may have them all, in no version that is known.
            has.extend(sent.changes.into_iter().map(|(name, _)| (name, String::new())));
            // Whom of many it does not take, it says when they come one by one.
            let owner = if sent.owners.len() == 1 { sent.owners.into_iter().next() } else { None };
            if let Some(owner) = owner.filter(|_| is_of_now) {
                self.refused.insert(owner, words);
            }
            return;
        }
        for (name, version) in sent.changes {
            match version {
                Some(version) => drop(has.insert(name, version)),
                None => drop(has.remove(&name)),
            }
        }
    }
}

/// Whose a resource is: what follows the direction in its name.
fn owner_of(name: &str) -> &str {
    name.split_once('|').map_or(name, |(_, owner)| owner)
}

#[cfg(test)]
mod tests;
