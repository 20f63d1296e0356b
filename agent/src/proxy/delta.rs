//! Incremental xDS, as one Envoy after the other speaks it: who has what, what is sent next, and what it said. Pure.
//!
//! Owns: the pods that are to be served, and for each stream what its Envoy has. Each pod's resources of a kind are a
//! response of their own, so an answer is about one pod: one that is refused harms no other, and Envoy's words are kept
//! with it. Clusters come before the listeners that name them and go after them. An Envoy that was there before this
//! agent says what it has, and gets what differs.
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
    /// What its Envoy has; a kind that it has not asked for is not there.
    has: BTreeMap<Kind, BTreeMap<String, String>>,
    /// Responses that are not answered, by nonce.
    sent: BTreeMap<String, Sent>,
    /// Who is waiting for an answer.
    busy: BTreeSet<Owner>,
    /// Whom it does not take, and why, in its words.
    refused: BTreeMap<Owner, String>,
    next_nonce: u64,
}

#[derive(Debug)]
struct Sent {
    kind: Kind,
    /// `None` for the first response of a kind, which is about nobody.
    owner: Option<Owner>,
    /// What the Envoy has if it takes it: versions by name, `None` for what it does not have any more.
    changes: Vec<(String, Option<String>)>,
}

impl Delta {
    /// A connection has come; the latest is whom pods wait for.
    pub fn open(&mut self) -> StreamId {
        self.next_stream += 1;
        self.streams.insert(self.next_stream, Stream::default());
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

    /// What is sent because of what an Envoy has said.
    pub fn request(&mut self, id: StreamId, request: Request) -> Vec<Response> {
        let Some(stream) = self.streams.get_mut(&id) else { return Vec::new() };
        let mut responses = Vec::new();
        if let Entry::Vacant(first) = stream.has.entry(request.kind) {
            first.insert(request.has);
            // Envoy does not go on before it has heard something of each kind.
            responses.push(stream.send(id, request.kind, None, Vec::new(), Vec::new()));
            responses.extend(self.advance_all(id));
            return responses;
        }
        // An answer to what this stream has not sent, or a change of what it subscribes to: everything, always.
        let Some(sent) = stream.sent.remove(&request.nonce) else { return responses };
        let Some(owner) = sent.owner.clone() else { return responses };
        // What is refused may be what was wanted when it was sent; then nothing is known of what is wanted now.
        let wanted = self.wanted.get(&owner).map(|wanted| wanted.of_kind(sent.kind)).unwrap_or_default();
        let is_wanted = |(name, version): &(String, Option<String>)| {
            version.is_none()
                || wanted.iter().any(|one| one.name == *name && Some(&one.version) == version.as_ref())
        };
        let is_of_now = sent.changes.iter().all(is_wanted);
        stream.answered(sent, request.refused, is_of_now);
        responses.extend(self.advance(id, &owner));
        responses
    }

    /// How far a pod is with the Envoy that came last.
    pub fn state(&self, owner: &str) -> State {
        let Some(stream) = self.streams.values().next_back() else { return State::NoProxy };
        if let Some(refused) = stream.refused.get(owner) {
            return State::Refused(refused.clone());
        }
        let Some(wanted) = self.wanted.get(owner) else { return State::Pending };
        let has_all = Kind::ALL
            .into_iter()
            .all(|kind| wanted.of_kind(kind).iter().all(|resource| stream.has_version(kind, resource)));
        if has_all && !stream.busy.contains(owner) { State::Served } else { State::Pending }
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
        if stream.busy.contains(owner) || stream.refused.contains_key(owner) {
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
                return Some(stream.send(id, kind, Some(owner), missing, Vec::new()));
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
                return Some(stream.send(id, kind, Some(owner), Vec::new(), removed));
            }
        }
        None
    }
}

impl Stream {
    fn has_version(&self, kind: Kind, resource: &Resource) -> bool {
        self.has.get(&kind).and_then(|has| has.get(&resource.name)) == Some(&resource.version)
    }

    fn send(
        &mut self,
        stream: StreamId,
        kind: Kind,
        owner: Option<&str>,
        resources: Vec<Resource>,
        removed: Vec<String>,
    ) -> Response {
        self.next_nonce += 1;
        let nonce = self.next_nonce.to_string();
        let added = resources.iter().map(|resource| (resource.name.clone(), Some(resource.version.clone())));
        let changes = added.chain(removed.iter().map(|name| (name.clone(), None))).collect();
        self.busy.extend(owner.map(str::to_owned));
        self.sent.insert(nonce.clone(), Sent { kind, owner: owner.map(str::to_owned), changes });
        Response { stream, kind, nonce, resources, removed }
    }

    fn answered(&mut self, sent: Sent, refused: Option<String>, is_of_now: bool) {
        let Some(owner) = sent.owner else { return };
        self.busy.remove(&owner);
        let has = self.has.entry(sent.kind).or_default();
        if let Some(words) = refused {
            // Of two resources it may have taken one: it may have them all, in no version that is known.
            has.extend(sent.changes.into_iter().map(|(name, _)| (name, String::new())));
            if is_of_now {
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
