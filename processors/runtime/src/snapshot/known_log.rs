//! Whether a snapshot is of this log.

use longshore_log::{Log, TopicPartition};

use super::{
    Error, Part, Snapshots, Wrong,
    description::{Description, LastFact, Partition},
};
use crate::last::last_before;

/// The last record before this offset; None if there is none, or none any more.
pub(super) async fn last_fact(
    log: &dyn Log,
    facts: &TopicPartition,
    before: u64,
) -> Result<Option<LastFact>, longshore_log::Error> {
    let last = last_before(log, facts, before).await?;
    Ok(last.map(|record| {
        let value = record.record.value.as_deref().unwrap_or_default();
        LastFact { offset: record.offset, blake3: blake3::hash(value).to_hex().to_string() }
    }))
}

impl Snapshots {
    /// The part and version that a partition of a snapshot is of, if this release has them.
    pub(super) fn part(&self, of: &Partition) -> Option<&Part> {
        let same = |part: &&Part| part.processor == of.processor && of.partition < u32::from(part.partitions);
        self.parts.iter().find(same).filter(|part| part.state_version == of.state_version)
    }

    /// Whether the snapshot is of this installation and log, and has something that this release can use.
    pub(super) async fn check(&self, description: &Description) -> Result<Result<(), Wrong>, Error> {
        let expected = &self.settings.installation;
        if description.installation != *expected {
            let (found, expected) = (description.installation.clone(), expected.clone());
            return Ok(Err(Wrong::Installation { found, expected }));
        }
        let (mut usable, mut others) = (0, Vec::new());
        for of in &description.partitions {
            let Some(part) = self.part(of) else {
                others.push(format!("{}/{} has {}", of.processor, of.partition, of.state_version));
                continue;
            };
            usable += 1;
            let facts = TopicPartition::new(part.facts, of.partition);
            let (offset, end) = (of.applied.fact_offset, self.log.end_offset(&facts).await?);
            if offset > end {
                return Ok(Err(Wrong::BeyondEnd { partition: facts.to_string(), offset, end }));
            }
            let last = last_fact(&*self.log, &facts, offset).await?;
            // What the log has lost cannot be compared; that is for the partition to see.
            if let (Some(there), Some(known)) = (last, &of.last_fact)
                && there != *known
            {
                return Ok(Err(Wrong::OtherFact { partition: facts.to_string(), offset: known.offset }));
            }
        }
        if usable == 0 && !description.partitions.is_empty() {
            others.truncate(4);
            return Ok(Err(Wrong::StateVersion(others.join(", "))));
        }
        if !others.is_empty() {
            tracing::info!(?others, "these states of the snapshot are of other versions, and are built from the log");
        }
        Ok(Ok(()))
    }
}
