//! What facts mean. Frozen for every released event.

use longshore_processor::{Order, Range, StateError, StoreMut};
use longshore_schemas::{
    ArtifactId, RegionName, Timestamp,
    events::{
        ArtifactFact, ArtifactImported, ArtifactSummary, Fact, ReplicaRegionsSet, ReplicaStatus, ReplicationStarted,
        RunSpec,
    },
};

use crate::tables::{self, Artifact, Pin, Replica, Source, Status, Wish};

type Evolved = Result<(), StateError>;

pub(crate) fn evolve(state: &mut dyn StoreMut, fact: &Fact<ArtifactFact>) -> Evolved {
    let at = fact.at;
    match &fact.event {
        ArtifactFact::ReplicationStarted(ReplicationStarted { summary, source, run, regions }) => {
            started(state, (summary, run, regions), Source::Built(source.clone()), at)
        }
        ArtifactFact::ReplicaProgressed(event) => change_replica(state, event.artifact, &event.region, at, |replica| {
            replica.bytes_per_second = rate(replica, event.bytes_copied, at);
            replica.status = Some(ReplicaStatus::Copying);
            replica.packs_done = event.packs_done;
            replica.bytes_copied = event.bytes_copied;
            replica.error = None;
        }),
        ArtifactFact::ReplicaStored(event) => {
            let packs = tables::ARTIFACTS.expect(state.as_store(), &event.artifact)?.summary.packs;
            change_replica(state, event.artifact, &event.region, at, |replica| {
                replica.status = Some(ReplicaStatus::Stored);
                replica.packs_done = packs;
                replica.bytes_copied = event.bytes_copied;
                replica.bytes_per_second = 0;
                replica.error = None;
            })
        }
        ArtifactFact::ReplicaFailed(event) => {
            change_artifact(state, event.artifact, |artifact| {
                if artifact.status == Status::Deployable {
                    artifact.status = Status::Replicating;
                    artifact.completed_at = None;
                }
            })?;
            change_replica(state, event.artifact, &event.region, at, |replica| {
                replica.status = Some(ReplicaStatus::Failed);
                replica.bytes_per_second = 0;
                replica.error = Some(event.error.clone());
                replica.last_error = replica.error.clone();
                replica.failures = replica.failures.saturating_add(1);
            })
        }
        ArtifactFact::ReplicationCompleted(event) => change_artifact(state, event.artifact, |artifact| {
            artifact.status = Status::Deployable;
            artifact.completed_at = Some(at);
        }),
        ArtifactFact::ArtifactPinned(event) => {
            let pin = Pin { deploy: event.deploy.clone(), pinned_at: at };
            tables::PINS.put(state, &(event.artifact, event.service.clone()), &pin)
        }
        ArtifactFact::ArtifactUnpinned(event) => {
            tables::PINS.delete(state, &(event.artifact, event.service.clone()));
            Ok(())
        }
        ArtifactFact::ArtifactRetired(event) => {
            let before = tables::ARTIFACTS.expect(state.as_store(), &event.artifact)?;
            count_plan(state, &before, -1)?;
            tables::LIVE.delete(state, &(before.built_at, event.artifact));
            change_artifact(state, event.artifact, |artifact| {
                artifact.status = Status::Retired;
                artifact.completed_at = None;
                artifact.retired_at = Some(at);
            })
        }
        ArtifactFact::Processed(_) => Ok(()),
        ArtifactFact::ReplicaRegionsSet(event) => regions_set(state, event),
        ArtifactFact::ArtifactImported(ArtifactImported { summary, origin, run, regions }) => {
            started(state, (summary, run, regions), Source::Imported(origin.clone()), at)
        }
        ArtifactFact::ArtifactKept(event) => {
            let wish = Wish { by: fact.actor.clone(), reason: event.reason.clone(), since: at };
            tables::KEPT.put(state, &event.artifact, &wish)
        }
        ArtifactFact::ArtifactLetGo(event) => {
            tables::KEPT.delete(state, &event.artifact);
            Ok(())
        }
    }
}

/// The first time, again with something new to say of it, or again after it was retired.
fn started(
    state: &mut dyn StoreMut,
    (summary, run, regions): (&ArtifactSummary, &RunSpec, &[RegionName]),
    source: Source,
    at: Timestamp,
) -> Evolved {
    let id = summary.artifact;
    let before = tables::ARTIFACTS.get(state.as_store(), &id)?;
    if let Some(before) = &before {
        tables::BY_TIME.delete(state, &(before.built_at, id));
        tables::LIVE.delete(state, &(before.built_at, id));
        count_plan(state, before, -1)?;
    }
    keep_replicas(state, id, regions, before.is_some_and(|before| before.status != Status::Retired))?;
    let name = (id, summary.name.clone());
    if let Some(earlier) = tables::NAMES.get(state.as_store(), &name)? {
        tables::BY_NAME.delete(state, &(summary.name.clone(), earlier, id));
    }
    tables::NAMES.put(state, &name, &at)?;
    tables::BY_NAME.put(state, &(summary.name.clone(), at, id), &())?;
    tables::BY_TIME.put(state, &(at, id), &())?;
    tables::LIVE.put(state, &(at, id), &())?;
    let artifact = Artifact {
        summary: summary.clone(),
        source,
        run: run.clone(),
        status: Status::Replicating,
        regions: regions.to_vec(),
        built_at: at,
        completed_at: None,
        retired_at: None,
    };
    count_plan(state, &artifact, 1)?;
    tables::ARTIFACTS.put(state, &id, &artifact)
}

/// The artifact is what it was, and has to be elsewhere as well, or no longer everywhere.
fn regions_set(state: &mut dyn StoreMut, event: &ReplicaRegionsSet) -> Evolved {
    let ReplicaRegionsSet { artifact: id, regions, added } = event;
    let mut artifact = tables::ARTIFACTS.expect(state.as_store(), id)?;
    count_plan(state, &artifact, -1)?;
    keep_replicas(state, *id, regions, true)?;
    artifact.regions = regions.clone();
    if !added.is_empty() && artifact.status == Status::Deployable {
        artifact.status = Status::Replicating;
        artifact.completed_at = None;
    }
    count_plan(state, &artifact, 1)?;
    tables::ARTIFACTS.put(state, id, &artifact)
}

fn count_plan(state: &mut dyn StoreMut, artifact: &Artifact, change: i64) -> Evolved {
    if artifact.status == Status::Retired {
        return Ok(());
    }
    let plan = tables::plan(&artifact.regions);
    let count = tables::PLANS.get(state.as_store(), &plan)?.unwrap_or(0).saturating_add_signed(change);
    if count == 0 {
        tables::PLANS.delete(state, &plan);
        return Ok(());
    }
    tables::PLANS.put(state, &plan, &count)
}

/// Bytes per second, with the last report counting a third, once there are two of them.
fn rate(before: &Replica, bytes_copied: u64, at: Timestamp) -> u64 {
    let Some(reported_at) = before.reported_at.filter(|_| before.status == Some(ReplicaStatus::Copying)) else {
        return 0;
    };
    let millis = u64::try_from(at.since(reported_at).as_millis()).unwrap_or(u64::MAX).max(1);
    let last = bytes_copied.saturating_sub(before.bytes_copied).saturating_mul(1_000) / millis;
    match before.bytes_per_second {
        0 => last,
        earlier => (earlier / 3).saturating_mul(2).saturating_add(last / 3),
    }
}

/// A row for each of these regions and no others; `valid` says whether what earlier rows say still holds.
fn keep_replicas(state: &mut dyn StoreMut, id: ArtifactId, regions: &[RegionName], valid: bool) -> Evolved {
    let earlier = tables::REPLICAS.list(state.as_store(), &Range::prefix(&id), Order::Ascending, usize::MAX)?;
    for (key, _) in &earlier {
        if !valid || !regions.contains(&key.1) {
            tables::REPLICAS.delete(state, key);
        }
    }
    for region in regions {
        let key = (id, region.clone());
        if !tables::REPLICAS.contains(state.as_store(), &key)? {
            tables::REPLICAS.put(state, &key, &Replica::default())?;
        }
    }
    Ok(())
}

fn change_artifact(state: &mut dyn StoreMut, id: ArtifactId, change: impl FnOnce(&mut Artifact)) -> Evolved {
    let mut artifact = tables::ARTIFACTS.expect(state.as_store(), &id)?;
    change(&mut artifact);
    tables::ARTIFACTS.put(state, &id, &artifact)
}

fn change_replica(
    state: &mut dyn StoreMut,
    id: ArtifactId,
    region: &RegionName,
    at: Timestamp,
    change: impl FnOnce(&mut Replica),
) -> Evolved {
    let key = (id, region.clone());
    let mut replica = tables::REPLICAS.expect(state.as_store(), &key)?;
    change(&mut replica);
    replica.reported_at = Some(at);
    tables::REPLICAS.put(state, &key, &replica)
}
