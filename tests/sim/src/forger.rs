//! Keys, and one who has none or the wrong one: writes to the topics, as any stranger could whom the brokers let, and is never
//! to be believed.

use std::sync::Arc;

use longshore_log::Record;
use longshore_partition::{Gate, Keyring, seal};
use longshore_schemas::{
    RegionName,
    auth::{KnownKeys, RequestKey, SECRET_BYTES, Sender},
    codec::{self, Message},
    events::{
        ArtifactRequest, AttemptFailed, AttemptFinished, AttemptOutcome, BuildRequest, Event as Said, FailureReason,
        ReplicaReported, ReplicaStatus, ReportOrder, Request,
    },
};

use crate::world::{Event, World};

/// Who is named in whatever is forged. No fact may name it.
pub(crate) const FORGER: &str = "forger";

/// Whose word each key is, is part of the key: one secret is enough for all.
const SECRET: [u8; SECRET_BYTES] = [7; SECRET_BYTES];

pub(crate) fn gate(regions: &[RegionName]) -> Arc<dyn Gate> {
    let senders = regions.iter().cloned().map(Sender::Region).chain([Sender::Control]);
    let keys = senders.map(|sender| RequestKey::new(sender, &SECRET));
    Arc::new(Keyring::new(RequestKey::new(Sender::Control, &SECRET), KnownKeys::new(keys)))
}

/// The request as it stands on its topic, with its sender's word on it.
pub(crate) fn signed<E: Said>(sender: Sender, request: &Request<E>) -> Record
where
    Request<E>: Message,
{
    seal(&RequestKey::new(sender, &SECRET), E::TOPIC.name, unsigned(request))
}

fn unsigned<E: Said>(request: &Request<E>) -> Record
where
    Request<E>: Message,
{
    Record::new(request.event.key(), codec::encode(request).expect("what the simulator asks can be written"))
}

impl World {
    /// One round of the forger.
    pub(crate) fn forge(&mut self) {
        let id = format!("forged-{}", self.steps).parse().expect("an id");
        let at = self.log_time();
        let actor = FORGER.to_owned();
        if self.rng.chance(500) {
            let running = self.checker.running();
            let Some((job, attempt)) = self.rng.pick(&running).cloned() else { return };
            let Some(worker) = self.checker.worker_of(&job) else { return };
            let reason = FailureReason::CommandFailed;
            let outcome = AttemptOutcome::AttemptFailed(AttemptFailed { reason, message: "so it is said".to_owned() });
            let event = BuildRequest::from(AttemptFinished { job, attempt, worker, outcome });
            let request = Request { id, at, actor, trace: None, report: None, event };
            self.at(1, Event::Append(BuildRequest::TOPIC.name, unsigned(&request)));
            return;
        }
        // A region that speaks for another, as if it were that one's next process.
        let artifacts = self.checker.artifacts.clone();
        let Some(artifact) = self.rng.pick(&artifacts).copied() else { return };
        let regions = self.setting.regions.clone();
        let [own, other, ..] = &regions[..] else { return };
        let region = other.clone();
        let event = ReplicaReported {
            artifact,
            region,
            status: ReplicaStatus::Stored,
            packs_done: 2,
            bytes_copied: 90,
            error: None,
        };
        let (boot, sequence) = (i64::MAX as u64, self.steps);
        let report = Some(ReportOrder { sender: format!("region/{other}"), boot, sequence });
        let request = Request { id, at, actor, trace: None, report, event: ArtifactRequest::from(event) };
        let record = signed(Sender::Region(own.clone()), &request);
        self.at(1, Event::Append(ArtifactRequest::TOPIC.name, record));
    }
}
