//! Answers what people ask of this node, through its region: what a service says.
//!
//! Whoever asks must show that a control node lets them: a query is signed as goals are, names this node, and is of now. It takes nothing from
//! the services but the reading of a file.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use longshore_schemas::{
    NodeId, RegionName, RequestId,
    envelope::Envelope,
    events::{LOG_TAIL_BYTES_MAX, LogWanted, NodeQuery, Request},
    stream::{Answer, FromNode},
};
use longshore_signing::query::QUERY;
use tokio::sync::{Semaphore, mpsc};

use crate::{Error, Folders, shim::Shim, trust::Trust};

/// Queries that are answered at once; others are dropped, and asked again by whoever waits.
const AT_ONCE: usize = 4;
/// How old a query may be, or how far ahead of this machine's clock: one that was kept says nothing of what its sender wants now.
const AGE_MAX: Duration = Duration::from_secs(10 * 60);
/// Queries that are remembered, so that none is answered twice.
const REMEMBERED: usize = 64;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Queries(Arc<Shared>);

struct Shared {
    node: NodeId,
    folders: Folders,
    trust: Trust,
    turns: Arc<Semaphore>,
    answered: Mutex<VecDeque<RequestId>>,
}

impl Queries {
    pub fn new(node: NodeId, folders: Folders, trust: Trust) -> Self {
        let (turns, answered) = (Arc::new(Semaphore::new(AT_ONCE)), Mutex::default());
        Self(Arc::new(Shared { node, folders, trust, turns, answered }))
    }

    /// The answer goes to the region once it is there; of what is not believed, there is none.
    pub fn take(&self, envelope: Envelope, region: RegionName, to_region: mpsc::Sender<FromNode>) {
        if envelope.payload.len() > QUERY.envelope_bytes_max() {
            tracing::warn!(bytes = envelope.payload.len(), "a query is too large");
            return;
        }
        let shared = self.0.clone();
        let Ok(turn) = shared.turns.clone().try_acquire_owned() else {
            tracing::warn!("more queries at once than this node answers");
            return;
        };
        tokio::spawn(async move {
            let _turn = turn;
            let work = shared.clone();
            let answered = tokio::task::spawn_blocking(move || work.answer(&envelope, &region)).await;
            match answered {
                Ok(Ok((query, answer))) => {
                    // An error means that the node is stopping.
                    let _ = to_region.send(FromNode::Answer { query, answer }).await;
                }
                Ok(Err(error)) => tracing::warn!(error = error.whole(), "a query is not answered"),
                Err(error) => tracing::error!(%error, "answering a query failed"),
            }
        });
    }
}

impl Shared {
    fn answer(&self, envelope: &Envelope, region: &RegionName) -> Result<(RequestId, Answer), Error> {
        let Request { id, at, actor, event: NodeQuery::LogWanted(wanted), .. } = self.trust.query(envelope)?;
        if wanted.node != self.node || wanted.region != *region {
            return Err(Error::Refused(format!("it is for node {} of region {}", wanted.node, wanted.region)));
        }
        if !self.is_first(&id) {
            return Err(Error::Refused(format!("query {id} was answered before")));
        }
        let now = longshore_service::now();
        if now.since(at).max(at.since(now)) > AGE_MAX {
            let reason = format!("the query is of {at}, and the clock of node {} says {now}", self.node);
            return Ok((id, Answer::None(reason)));
        }
        tracing::info!(actor, service = %wanted.service, bytes = wanted.bytes, "a service's log is read");
        Ok((id, self.tail(&wanted)))
    }

    fn tail(&self, wanted: &LogWanted) -> Answer {
        let LogWanted { node, service, bytes, .. } = wanted;
        let folder = self.folders.service(service);
        if !folder.is_dir() {
            return Answer::None(format!("node {node} has nothing of {service}"));
        }
        match Shim::of(&folder).log_tail(u64::from((*bytes).min(LOG_TAIL_BYTES_MAX))) {
            Ok(text) => Answer::Log(text),
            Err(error) => Answer::None(format!("the log of {service} on node {node} cannot be read: {error}")),
        }
    }

    fn is_first(&self, query: &RequestId) -> bool {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if answered.contains(query) {
            return false;
        }
        if answered.len() == REMEMBERED {
            answered.pop_front();
        }
        answered.push_back(query.clone());
        true
    }
}
