//! The newest goal of each service in this region, from the compacted topic `goal-state`, as far as it is signed by a key that is trusted:
//! whoever else can write to the topic changes nothing here.
//!
//! Every session remembers how far it has read the board, as a number that grows with each change. A service stands on the
//! board once, at its last change: a session that was slow finds the newest goal and none of those in between.

use std::{
    sync::{Arc, LazyLock, PoisonError, RwLock},
    time::Duration,
};

use longshore_log::{Log, ReadLimit, Reader, StoredRecord, TopicPartition};
use longshore_region_policy::board::{Board, Posted};
use longshore_schemas::{RegionName, stream::FromRegion, topics};
use longshore_service::metrics::Counters;
use longshore_signing::{
    TrustedKeys,
    goal::{self, GOAL},
    record,
};
use longshore_swarm::frames::Frame;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    catching_up::{ends, is_behind},
};

const REOPEN_WAIT: Duration = Duration::from_secs(1);

static UNTRUSTED: LazyLock<Counters<0>> = LazyLock::new(|| {
    Counters::new("longshore_untrusted_goals", "Records of goal-state that no trusted key signed", [])
});

/// A goal that is believed, and the frame that tells nodes of it.
pub(crate) type PostedGoal = Posted<Frame>;

/// See the module.
pub(crate) struct GoalBoard {
    region: RegionName,
    board: RwLock<Board<Frame>>,
    changed: watch::Sender<u64>,
}

impl GoalBoard {
    pub(crate) fn new(region: RegionName) -> Self {
        Self { region, board: RwLock::default(), changed: watch::Sender::new(0) }
    }

    /// Puts up a goal unless it is of another region or not newer. Whether it was put up.
    pub(crate) fn offer(&self, posted: PostedGoal) -> bool {
        if posted.goal.region != self.region {
            return false;
        }
        let changed = self.board.write().unwrap_or_else(PoisonError::into_inner).offer(posted);
        let Some(change) = changed else { return false };
        self.changed.send_replace(change);
        true
    }

    /// The goals that changed after the change of this number, and the number of the last.
    pub(crate) fn since(&self, change: u64) -> (u64, Vec<Arc<PostedGoal>>) {
        self.board.read().unwrap_or_else(PoisonError::into_inner).since(change)
    }

    /// Wakes with each change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Reads the topic into the board.
pub(crate) struct Follower {
    log: Arc<dyn Log>,
    reader: Box<dyn Reader>,
    board: Arc<GoalBoard>,
    trusted: TrustedKeys,
}

impl Follower {
    /// Reads all that is there now: a node that connects after this gets no goal that was already replaced.
    pub(crate) async fn catch_up(
        log: Arc<dyn Log>,
        board: Arc<GoalBoard>,
        trusted: TrustedKeys,
    ) -> Result<Self, Error> {
        let ends = ends(&*log, partitions(&*log)?).await?;
        let reader = open(&*log).await?;
        let mut follower = Self { log, reader, board, trusted };
        while is_behind(&*follower.reader, &ends) {
            let records = follower.reader.read(ReadLimit::default()).await?;
            follower.take(&records);
        }
        Ok(follower)
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let read = tokio::select! {
                read = self.reader.read(ReadLimit::default()) => read,
                () = shutdown.cancelled() => return,
            };
            match read {
                Ok(records) => self.take(&records),
                Err(error) => {
                    tracing::warn!(%error, "goals cannot be read from the log; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(REOPEN_WAIT) => {}
                        () = shutdown.cancelled() => return,
                    }
                    // From the start again: what is on the board already is not newer.
                    if let Ok(reader) = open(&*self.log).await {
                        self.reader = reader;
                    }
                }
            }
        }
    }

    fn take(&self, records: &[StoredRecord]) {
        for stored in records {
            let Some(value) = &stored.record.value else { continue };
            match self.believed(value, stored) {
                Ok(posted) => {
                    let (service, version) = (posted.goal.service.clone(), posted.goal.version);
                    if self.board.offer(posted) {
                        tracing::info!(region = %self.board.region, %service, %version, "goal received");
                    }
                }
                Err(reason) => {
                    UNTRUSTED.count([], 1);
                    tracing::error!(source = %stored.source, offset = stored.offset, reason, "goal skipped");
                }
            }
        }
    }

    fn believed(&self, value: &[u8], stored: &StoredRecord) -> Result<PostedGoal, String> {
        let header = stored.record.headers_named(record::SIGNATURE).next();
        let envelope = record::envelope(&GOAL, value, header).ok_or("it is not signed")?;
        let goal = goal::verify(&envelope, &self.trusted).map_err(|error| error.to_string())?;
        // Once for all of the region's nodes.
        let message = Frame::of(&FromRegion::Goal(envelope)).map_err(|error| error.to_string())?;
        Ok(Posted { goal, message })
    }
}

async fn open(log: &dyn Log) -> Result<Box<dyn Reader>, Error> {
    let partitions = partitions(log)?;
    let mut from = Vec::with_capacity(partitions.len());
    for of in partitions {
        let start = log.start_offset(&of).await?;
        from.push((of, start));
    }
    Ok(log.reader(from)?)
}

fn partitions(log: &dyn Log) -> Result<Vec<TopicPartition>, Error> {
    let topic = topics::GOAL_STATE.name;
    Ok((0..log.partitions(topic)?).map(|partition| TopicPartition::new(topic, partition)).collect())
}

#[cfg(test)]
mod tests {
    use longshore_schemas::{
        envelope::Envelope,
        events::{GoalVersion, RegionalGoal},
    };

    use super::*;

    fn goal(service: &str, revision: u64, step: u32) -> PostedGoal {
        let goal = RegionalGoal {
            region: "eu".parse().expect("valid"),
            service: service.parse().expect("valid"),
            version: GoalVersion { revision, step },
            targets: Vec::new(),
        };
        // Who follows the topic has looked at it.
        let envelope = Envelope { payload_type: String::new(), payload: String::new(), signatures: Vec::new() };
        Posted { goal, message: Frame::of(&FromRegion::Goal(envelope)).expect("short") }
    }

    fn board() -> GoalBoard {
        GoalBoard::new("eu".parse().expect("valid"))
    }

    fn shown(goals: &[Arc<PostedGoal>]) -> Vec<String> {
        goals.iter().map(|posted| format!("{} {}", posted.goal.service, posted.goal.version)).collect()
    }

    #[test]
    fn a_slow_reader_finds_only_the_newest() {
        let board = board();
        assert!(board.offer(goal("web", 1, 1)) && board.offer(goal("api", 1, 1)));
        let (at, goals) = board.since(0);
        assert_eq!(shown(&goals), ["web 1.1", "api 1.1"]);
        for step in 2..100 {
            assert!(board.offer(goal("web", 1, step)));
        }
        let (at, goals) = board.since(at);
        assert_eq!(shown(&goals), ["web 1.99"]);
        assert_eq!(board.since(at).1.len(), 0);
        assert_eq!(board.since(0).1.len(), 2);
    }

    #[test]
    fn versions_never_go_back_and_other_regions_are_not_ours() {
        let board = board();
        assert!(board.offer(goal("web", 2, 1)));
        for (revision, step) in [(2, 1), (2, 0), (1, 9)] {
            assert!(!board.offer(goal("web", revision, step)), "{revision}.{step}");
        }
        let mut elsewhere = goal("web", 9, 0);
        elsewhere.goal.region = "us".parse().expect("valid");
        assert!(!board.offer(elsewhere));
        assert_eq!(shown(&board.since(0).1), ["web 2.1"]);
    }
}
