//! What requests and reports change.

use longshore_planted::{Bug, planted};
use longshore_processor::{Decision, Order, Range, StateError, Store, run_spec};
use longshore_schemas::{
    ArtifactId, RegionName, Timestamp,
    events::{
        ArtifactFact, ArtifactImported, ArtifactKept, ArtifactLetGo, ArtifactPinned, ArtifactSummary, ArtifactUnpinned,
        GoalRequest, ImportRequested, KeepRequested, LetGoRequested, PinAnswered, PinRequested, RefusalCode,
        ReplicaFailed, ReplicaProgressed, ReplicaReported, ReplicaStatus, ReplicaStored, ReplicationCompleted,
        ReplicationRequested, ReplicationStarted, RunSpec, UnpinRequested,
    },
};

use crate::{
    ERROR_BYTES_MAX, ORIGIN_BYTES_MAX, REASON_BYTES_MAX, Replication,
    tables::{self, Artifact, Replica, Status},
};

type Decided = Result<Decision<ArtifactFact>, StateError>;

impl Replication {
    pub(crate) fn start(&self, state: &dyn Store, event: &ReplicationRequested, now: Timestamp) -> Decided {
        let ReplicationRequested { summary, source, run } = event;
        let regions = self.config.regions.clone();
        let started =
            ReplicationStarted { summary: summary.clone(), source: source.clone(), run: run.clone(), regions };
        self.begin(state, (summary, run), started.into(), now)
    }

    /// What was built elsewhere. Of what was built here as well, the last that had something new to say is heard.
    pub(crate) fn import(&self, state: &dyn Store, event: &ImportRequested, now: Timestamp) -> Decided {
        let ImportRequested { summary, origin, run } = event;
        if let Err(reason) = run_spec::check(run).and_then(|()| check_origin(&origin.url)) {
            return Ok(Decision::refuse(RefusalCode::Invalid, reason));
        }
        let regions = self.config.regions.clone();
        let imported = ArtifactImported { summary: summary.clone(), origin: origin.clone(), run: run.clone(), regions };
        self.begin(state, (summary, run), imported.into(), now)
    }

    fn begin(
        &self,
        state: &dyn Store,
        (summary, run): (&ArtifactSummary, &RunSpec),
        fact: ArtifactFact,
        now: Timestamp,
    ) -> Decided {
        let id = summary.artifact;
        let known = tables::ARTIFACTS.get(state, &id)?.filter(|artifact| artifact.status != Status::Retired);
        if let Some(artifact) = &known
            && self.covers(artifact)
            && artifact.run == *run
            && !self.config.retention.is_worn(artifact, &summary.name, now)
            && tables::NAMES.contains(state, &(id, summary.name.clone()))?
        {
            return Ok(Decision::nothing());
        }
        let decision = Decision::nothing().fact(fact);
        // The copies of an artifact that was retired may be gone; those of any other are still there.
        let mut stored_everywhere = true;
        for region in &self.config.regions {
            stored_everywhere &= known.is_some() && replica(state, id, region)?.is_some_and(|r| r.is_stored());
        }
        Ok(if stored_everywhere { decision.fact(ReplicationCompleted { artifact: id }) } else { decision })
    }

    fn covers(&self, artifact: &Artifact) -> bool {
        self.config.regions.iter().all(|region| artifact.regions.contains(region))
    }
}

fn check_origin(url: &str) -> Result<(), String> {
    if url.is_empty() || url.len() > ORIGIN_BYTES_MAX {
        return Err(format!("origin must be a URL of 1 to {ORIGIN_BYTES_MAX} bytes that says where this was built"));
    }
    if !url.contains(':') || url.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("origin must be a URL, such as https://host/path, without spaces or control characters".into());
    }
    Ok(())
}

/// Only what is new becomes a fact: regions repeat their levels.
pub(crate) fn report(state: &dyn Store, event: &ReplicaReported) -> Decided {
    let ReplicaReported { artifact: id, region, status, packs_done, bytes_copied, error } = event;
    let Some(artifact) = tables::ARTIFACTS.get(state, id)? else {
        return Ok(Decision::refuse(RefusalCode::NotFound, format!("there is no artifact {id}")));
    };
    if artifact.status == Status::Retired {
        let reason = format!("artifact {id} is retired; its copy in region {region} is no longer wanted");
        return Ok(Decision::refuse(RefusalCode::Conflict, reason));
    }
    let Some(replica) = replica(state, *id, region)?.filter(|_| artifact.regions.contains(region)) else {
        let reason = format!("artifact {id} is not replicated to region {region}, but to {}", list(&artifact.regions));
        return Ok(Decision::refuse(RefusalCode::NotFound, reason));
    };
    let (id, region, bytes_copied) = (*id, region.clone(), *bytes_copied);
    let nothing = Decision::nothing();
    match status {
        ReplicaStatus::Copying => {
            let packs_done = (*packs_done).min(artifact.summary.packs);
            let level = (Some(ReplicaStatus::Copying), packs_done, bytes_copied);
            if replica.is_stored() || level == (replica.status, replica.packs_done, replica.bytes_copied) {
                return Ok(nothing);
            }
            Ok(nothing.fact(ReplicaProgressed { artifact: id, region, packs_done, bytes_copied }))
        }
        ReplicaStatus::Stored => {
            if replica.is_stored() {
                return Ok(nothing);
            }
            let complete = others_have_it(state, id, &artifact, &region)? || planted(Bug::CompleteAtFirstReplica);
            let decision = nothing.fact(ReplicaStored { artifact: id, region, bytes_copied });
            Ok(if complete { decision.fact(ReplicationCompleted { artifact: id }) } else { decision })
        }
        ReplicaStatus::Failed => {
            let error = error.as_deref().filter(|error| !error.is_empty()).unwrap_or("the region gave no reason");
            let error = error[..error.floor_char_boundary(ERROR_BYTES_MAX)].to_owned();
            if replica.status == Some(ReplicaStatus::Failed) && replica.error.as_ref() == Some(&error) {
                return Ok(nothing);
            }
            Ok(nothing.fact(ReplicaFailed { artifact: id, region, error }))
        }
    }
}

/// Always answered; a pin that is refused leaves no fact.
pub(crate) fn pin(state: &dyn Store, event: &PinRequested) -> Decided {
    let PinRequested { artifact: id, service, deploy, .. } = event;
    let run = match pinnable(state, event)? {
        Ok(run) => run,
        Err(refusal) => return Ok(Decision::nothing().request(answer(event, None, Some(refusal)))),
    };
    let pin = tables::PINS.get(state, &(*id, service.clone()))?;
    let decision = Decision::nothing().request(answer(event, Some(run), None));
    if pin.is_some_and(|pin| pin.deploy == *deploy) {
        return Ok(decision);
    }
    Ok(decision.fact(ArtifactPinned { artifact: *id, service: service.clone(), deploy: deploy.clone() }))
}

pub(crate) fn unpin(state: &dyn Store, event: &UnpinRequested) -> Decided {
    let UnpinRequested { artifact, service } = event.clone();
    if !tables::PINS.contains(state, &(artifact, service.clone()))? {
        return Ok(Decision::nothing());
    }
    Ok(Decision::nothing().fact(ArtifactUnpinned { artifact, service }))
}

/// What is retired may be half collected, and comes back only by being built.
pub(crate) fn keep(state: &dyn Store, event: &KeepRequested) -> Decided {
    let KeepRequested { artifact: id, reason } = event;
    let Some(artifact) = tables::ARTIFACTS.get(state, id)? else {
        return Ok(Decision::refuse(RefusalCode::NotFound, format!("there is no artifact {id}")));
    };
    if artifact.status == Status::Retired {
        return Ok(Decision::refuse(RefusalCode::Conflict, format!("artifact {id} is retired; build it again")));
    }
    if reason.len() > REASON_BYTES_MAX {
        let says = format!("reason: give at most {REASON_BYTES_MAX} bytes");
        return Ok(Decision::refuse(RefusalCode::Invalid, says));
    }
    if tables::KEPT.get(state, id)?.is_some_and(|wish| wish.reason == *reason) {
        return Ok(Decision::nothing());
    }
    Ok(Decision::nothing().fact(ArtifactKept { artifact: *id, reason: reason.clone() }))
}

pub(crate) fn let_go(state: &dyn Store, event: &LetGoRequested) -> Decided {
    let LetGoRequested { artifact } = *event;
    if !tables::KEPT.contains(state, &artifact)? {
        let reason = format!("nobody has asked for artifact {artifact} to be kept; there is nothing to let go");
        return Ok(Decision::refuse(RefusalCode::NotFound, reason));
    }
    Ok(Decision::nothing().fact(ArtifactLetGo { artifact }))
}

/// How to run the artifact, if every region that is asked for has it; otherwise why not, and what to do.
fn pinnable(state: &dyn Store, event: &PinRequested) -> Result<Result<RunSpec, String>, StateError> {
    let id = event.artifact;
    let Some(artifact) = tables::ARTIFACTS.get(state, &id)? else {
        return Ok(Err(format!("there is no artifact {id}; deploy one that a build has made")));
    };
    if artifact.status == Status::Retired {
        return Ok(Err(format!("artifact {id} is retired; build it again")));
    }
    let mut lacking = Vec::new();
    for region in &event.regions {
        let replica = replica(state, id, region)?.filter(|_| artifact.regions.contains(region));
        let Some(replica) = replica else {
            let regions = list(&artifact.regions);
            return Ok(Err(format!("artifact {id} is not replicated to region {region}, but to {regions}")));
        };
        if !replica.is_stored() && !planted(Bug::PinUnreplicated) {
            lacking.push(format!("region {region} yet ({})", standing(&replica, artifact.summary.packs)));
        }
    }
    if lacking.is_empty() {
        return Ok(Ok(artifact.run));
    }
    let lacking = lacking.join(", nor in ");
    Ok(Err(format!("artifact {id} is not in {lacking}; wait until it is deployable")))
}

fn standing(replica: &Replica, packs: u32) -> String {
    match &replica.error {
        Some(error) => format!("failed: {error}"),
        None => format!("{} of {packs} packs", replica.packs_done),
    }
}

fn answer(event: &PinRequested, run: Option<RunSpec>, refusal: Option<String>) -> GoalRequest {
    let PinRequested { artifact, service, deploy, .. } = event.clone();
    PinAnswered { service, deploy, artifact, run, refusal }.into()
}

pub(crate) fn replica(
    state: &dyn Store,
    artifact: ArtifactId,
    region: &RegionName,
) -> Result<Option<Replica>, StateError> {
    tables::REPLICAS.get(state, &(artifact, region.clone()))
}

fn others_have_it(
    state: &dyn Store,
    id: ArtifactId,
    artifact: &Artifact,
    region: &RegionName,
) -> Result<bool, StateError> {
    let replicas = tables::REPLICAS.list(state, &Range::prefix(&id), Order::Ascending, usize::MAX)?;
    let mut others = replicas.iter().filter(|((_, at), _)| at != region && artifact.regions.contains(at));
    Ok(others.all(|(_, replica)| replica.is_stored()))
}

fn list(regions: &[RegionName]) -> String {
    let names: Vec<&str> = regions.iter().map(RegionName::as_str).collect();
    names.join(", ")
}
