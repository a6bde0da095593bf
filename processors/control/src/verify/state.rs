//! The stored projections, compared with what the facts say.

use std::path::Path;

use longshore_fleet::Fleet;
use longshore_goals::Goals;
use longshore_log::{Log, TopicPartition};
use longshore_processor::{Processor, fingerprint};
use longshore_queue::Queue;
use longshore_replication::Replication;
use longshore_runtime::{Projection as _, Rocks, Wire};
use longshore_schemas::events::Event;

use super::{FaultKind, Faults};
use crate::{
    Error, FLEET_STORE, GOALS_STORE, PartitionFingerprint, QUEUE_STORE, REPLICATION_STORE, replay_fingerprints,
};

/// The fingerprints of the projections in a folder that nothing uses now. Those of another release, which would be
/// rebuilt, are left out.
pub fn stored_fingerprints(log: &dyn Log, state_dir: &Path) -> Result<Vec<PartitionFingerprint>, Error> {
    let rocks = Rocks::open(state_dir)?;
    let mut all = Vec::new();
    stored::<Queue>(log, &rocks, QUEUE_STORE, &mut all)?;
    stored::<Replication>(log, &rocks, REPLICATION_STORE, &mut all)?;
    stored::<Goals>(log, &rocks, GOALS_STORE, &mut all)?;
    stored::<Fleet>(log, &rocks, FLEET_STORE, &mut all)?;
    Ok(all)
}

fn stored<P: Wire>(
    log: &dyn Log,
    rocks: &Rocks,
    store_id: u8,
    all: &mut Vec<PartitionFingerprint>,
) -> Result<(), Error> {
    let partitions = log.partitions(P::Fact::TOPIC.name)?;
    for partition in 0..partitions {
        let number = u16::try_from(partition)
            .map_err(|_| Error::Config { field: "partitions", reason: "a processor has at most 65,535" })?;
        let store = rocks.partition(store_id, number);
        let applied = store.applied(P::NAME, P::STATE_VERSION).map_err(longshore_runtime::Error::from)?;
        if let Some(applied) = applied {
            let fingerprint = fingerprint(&store, P::TABLES).map_err(longshore_runtime::Error::from)?;
            all.push(PartitionFingerprint { processor: P::NAME, partition, applied, fingerprint });
        }
    }
    Ok(())
}

/// How many were compared, and what is wrong.
pub(super) async fn compare(log: &dyn Log, stored: Vec<PartitionFingerprint>) -> Result<(u64, Faults), Error> {
    let (mut faults, mut whole) = (Faults::default(), Vec::new());
    let compared = stored.len() as u64;
    for one in stored {
        let of = facts_of(&one);
        let end = log.end_offset(&of).await?;
        if one.applied.fact_offset > end {
            let text =
                format!("its projection has applied facts before {}, the log ends at {end}", one.applied.fact_offset);
            faults.add(FaultKind::State, &of, None, text);
        } else {
            whole.push(one);
        }
    }
    for one in whole {
        let of = facts_of(&one);
        match replay_fingerprints(log, &[one]).await {
            Ok(replayed) => {
                for again in replayed.iter().filter(|again| again.fingerprint != one.fingerprint) {
                    let text = format!(
                        "its projection at {} has the fingerprint {:.12}, a replay from zero {:.12}",
                        one.applied.fact_offset, one.fingerprint, again.fingerprint
                    );
                    faults.add(FaultKind::State, &of, None, text);
                }
            }
            // A fact that cannot be applied is told, and the other partitions are looked at.
            Err(Error::Runtime(error)) if error.halts() => {
                faults.add(FaultKind::State, &of, None, error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Ok((compared, faults))
}

fn facts_of(one: &PartitionFingerprint) -> TopicPartition {
    let topics = [
        (Queue::NAME, <Queue as Processor>::Fact::TOPIC),
        (Replication::NAME, <Replication as Processor>::Fact::TOPIC),
        (Goals::NAME, <Goals as Processor>::Fact::TOPIC),
        (Fleet::NAME, <Fleet as Processor>::Fact::TOPIC),
    ];
    let topic = topics.into_iter().find(|(processor, _)| *processor == one.processor);
    TopicPartition::new(topic.map_or(one.processor, |(_, topic)| topic.name), one.partition)
}
